// `ramferry clone FILE -n N -- QEMU-COMMAND …`: N QEMUs from one saved guest, all running at once.

import fs from 'node:fs';
import { type Command, Option } from 'commander';
import { channelError } from '../channel/channel-error.js';
import { RamferryError } from '../memory/errors.js';
import { shellCommand } from '../memory/shell-command.js';
import { demandPath, readDemandFile, writeDemandFile } from '../memory-file/demand-file-node.js';
import { memoryFile } from '../memory-file/open-snapshot-file-node.js';
import {
  type Clone,
  Clones,
  checkTemplate,
  type GuestSource,
  identityWarnings,
  privateBytes,
} from '../migration/clones.js';
import { MapRestore, type RamSource } from '../migration/map-restore.js';
import { ServeRestore } from '../migration/serve-restore.js';
import { parseInteger } from './arguments.js';
import { cloneExample } from './clone-hint.js';
import { formatBytes, formatDuration, formatTable } from './format.js';
import { plural } from './inspect-text.js';
import type { Progress } from './progress.js';
import { inSlices, type Surroundings } from './read-memory-file.js';
import { RunFolder } from './run-folder.js';
import { oneLine } from './safe-text.js';
import type { Invocation, Verb } from './verb.js';

interface CloneOptions {
  readonly count: number;
  readonly by?: 'map' | 'serve';
  readonly punch?: boolean;
  readonly run?: boolean;
  readonly digest: boolean;
  readonly stop?: boolean;
}

const HELP = `
The command line is the guest's own, as it was saved: the same machine and devices. In it
  {i}         is the number of the clone, from 0: for what must differ, as in file=disk{i}.qcow2 or mac=52:54:00:00:00:{i}
  -incoming   is not needed; RAM becomes a private mapping of the file, at the place of -m or of -object memory-backend-ram
Each clone has a QMP socket of its own, and a serial port on a socket where the guest has one and -serial does not say
where it goes. The sockets are named once all clones run (with --json too), and are gone when they end.

A guest that was saved while it was paused stays paused: cont in its monitor, or --run, starts it.
A file that was saved live may hold stale bytes for pages that are zero; each guest makes its own copies of them zero. Where
they are more than 16384 pages the guests get a copy that lives as long as they do, or --punch makes them holes in FILE.
While guests run from FILE it must not change: who opens it for writing is made to wait, and the clones are ended.`;

export const clone: Verb<CloneOptions> = {
  configure: (command: Command) => {
    command
      .addOption(new Option('-n, --count <n>', 'how many').argParser(parseInteger(1, 1000)).default(1))
      .addOption(
        new Option('--by <way>', 'how the clones get their memory; by default map where that is possible').choices([
          'map',
          'serve',
        ]),
      )
      .option('--run', 'start the guests, also if they were saved while paused')
      .option('--no-digest', 'do not check FILE against FILE.digest first, where that is there')
      .option('--punch', 'make stale bytes in FILE holes; what FILE says stays the same, its bytes do not')
      .option('--stop', 'end all clones of FILE, wherever they were started')
      .addHelpText('after', HELP);
  },
  examples: [
    [
      'guest.mapped -n 8 -- qemu-system-x86_64 -M pc -m 1G -nodefaults -display none',
      'eight guests, running within a second',
    ],
    [
      'guest.mapped -n 4 -- qemu-system-x86_64 -M q35 -m 4G -drive file=disk{i}.qcow2,if=virtio',
      'each with its own disk: qemu-img create -f qcow2 -b disk.qcow2 -F qcow2 disk0.qcow2',
    ],
    ['guest.mapped --stop', 'ends them; so does Ctrl-C where they were started'],
  ],

  files: ([file], { by }) => ({ reads: [memoryFile(file!).path], writes: by === 'map' ? [] : [demandPath(file!)] }),

  async run({ operands, options, signal, progress, publish }) {
    const [operand, ...template] = operands as [string, ...string[]];
    const { path: file } = memoryFile(operand);
    const prefix = folderPrefix(file);
    if (options.stop === true) {
      const stopped = await RunFolder.stopAll(prefix);
      return { document: { file, stopped }, text: `${plural(stopped, 'set')} of clones of ${oneLine(file)} ended\n` };
    }
    if (template.length === 0) {
      throw new RamferryError('usage', 'QEMU_COMMAND', 'There is no QEMU command line to start clones with.', {
        hint: `Write the guest's own behind --, with the devices that it has: ${await cloneExample(operand, options.count)}`,
      });
    }
    checkTemplate(template, options.count);
    const start = performance.now();
    const source = await openSource(operand, template, options, { signal, progress });
    try {
      const warnings = [...source.warnings, ...source.guests.warnings, ...identityWarnings(source.guests, template)];
      for (const warning of warnings) {
        progress.note(`warning: ${warning}`);
      }
      const facts = { file, by: source.by, ...source.facts, warnings };
      const failure = await supervise({
        ...{ source: source.guests, template, file, prefix, count: options.count, signal, progress, start },
        publish: ({ document, text }) => publish({ document: { ...facts, ...document }, text }),
      });
      await source.finish();
      // The clones are gone: what there was to say of them was said when they ran.
      return { document: facts, text: '', failure };
    } finally {
      source.guests.close();
    }
  },
};

interface OpenedSource {
  readonly by: 'map' | 'serve';
  readonly guests: GuestSource;
  readonly warnings: readonly string[];
  /** For the JSON document. */
  readonly facts: object;
  /** Says and keeps what was learned from the clones. */
  finish(): Promise<void>;
}

/** By mapping where that is possible, unless told otherwise. */
const openSource = async (
  operand: string,
  template: readonly string[],
  { by, punch, run = false, digest: checksDigest }: CloneOptions,
  surroundings: Surroundings,
): Promise<OpenedSource> => {
  const { signal, progress } = surroundings;
  if (by !== 'serve') {
    try {
      const guests = await MapRestore.prepare(operand, template, {
        signal,
        stale: punch === true ? 'punch' : 'zero',
        ...{ run, checksDigest },
        inSlices: (...slice) => inSlices(surroundings, ...slice),
      });
      noteSource(progress, memoryFile(operand).path, guests);
      const { mapped, source, streamBytes, stalePages, obstacles } = guests;
      return {
        by: 'map',
        guests,
        warnings: obstacles,
        facts: { ram: { mapped, source, stalePages, streamBytes } },
        finish: async () => {},
      };
    } catch (error) {
      if (!(error instanceof RamferryError && error.code === 'NOT_MAPPABLE') || by === 'map') {
        throw error;
      }
      progress.note(`${error.message} Its pages are served instead.`);
    }
  }
  const note = (text: string): void => progress.note(text);
  const list = demandPath(operand);
  const known = readDemandFile(list, note);
  const guests = await ServeRestore.prepare(operand, { firstPages: known, run, checksDigest, signal });
  const finish = async (): Promise<void> => {
    await writeDemandFile(list, known, guests.demands.pages, note);
    progress.note(`the clones asked for ${plural(guests.demands.count, 'page')} before it had come`);
  };
  return { by: 'serve', guests, warnings: [], facts: {}, finish };
};

/** The clones of a file are found by the file. */
const folderPrefix = (file: string): string => {
  try {
    const stat = fs.statSync(file);
    if (!stat.isFile() && !stat.isBlockDevice()) {
      throw new RamferryError('usage', 'NOT_A_FILE', `${file} is no file that clones could have their memory from.`, {
        file,
        hint: 'write what comes from a pipe to a file first',
      });
    }
    const { dev, ino } = stat;
    return `ramferry-clone-${dev}-${ino}`;
  } catch (error) {
    throw channelError(error, 'open', file);
  }
};

const sources: Readonly<Record<RamSource, string>> = {
  file: 'stay there: each guest makes its own copies of them zero',
  punched: 'were made holes; what the file says is the same',
  copy: 'stay there: the guests have a copy',
};

const noteSource = (progress: Progress, file: string, { source, stalePages }: MapRestore): void => {
  if (stalePages > 0) {
    progress.note(`stale bytes of ${plural(stalePages, 'zero page')} in ${file} ${sources[source]}`);
  } else if (source === 'copy') {
    progress.note(`this QEMU cannot map a part of a file: the guests have a copy of their memory in ${file}`);
  }
};

interface Supervision {
  readonly source: GuestSource;
  readonly template: readonly string[];
  readonly file: string;
  readonly prefix: string;
  readonly count: number;
  readonly signal: AbortSignal;
  readonly progress: Progress;
  /** When the verb began. */
  readonly start: number;
  readonly publish: Invocation<CloneOptions>['publish'];
}

/** From the first start to the last end; resolves with what failed on the way. */
const supervise = async (options: Supervision): Promise<RamferryError | undefined> => {
  const { source, template, file, prefix, count, signal, progress, start, publish } = options;
  let stopped: () => void = () => {};
  const stop = new Promise<void>((resolve) => {
    stopped = resolve;
  });
  signal.addEventListener('abort', stopped);
  const folder = new RunFolder(prefix, stopped);
  try {
    const clones = await Clones.start({ source, count, template, folder: folder.path, signal });
    try {
      const failures: RamferryError[] = [];
      const fail = (reason: RamferryError): void => {
        failures.push(reason);
        stopped();
      };
      source.onChange(fail);
      clones.onLoadError(fail);
      progress.finish();
      await publish({
        document: {
          running: clones.run,
          clones: clones.all.map(describe),
          'run-time': clones.runMs,
          'total-time': performance.now() - start,
        },
        text: cloneTable(clones.all),
      });
      void clones.loaded().then(() => {
        if (clones.all.some(({ loaded }) => loaded !== undefined)) {
          progress.note(`all memory of all clones is there, after ${formatDuration(performance.now() - start)}`);
        }
      });
      progress.note(
        `${stateOf(clones, source)}; they end with Ctrl-C, or anywhere with: ${shellCommand`ramferry clone ${file} --stop`}`,
      );
      await Promise.race([
        stop,
        clones.ended((ended, error) => {
          progress.note(
            error === undefined ? `clone ${ended.index} has ended` : `clone ${ended.index}: ${error.message}`,
          );
          failures.push(...(error === undefined ? [] : [error]));
        }),
      ]);
      return failures[0];
    } finally {
      await clones.end();
    }
  } finally {
    folder.remove();
    signal.removeEventListener('abort', stopped);
  }
};

/** `3 clones run`, or why they do not. */
const stateOf = ({ all, run }: Clones, { decision }: GuestSource): string => {
  const clones = plural(all.length, 'clone');
  if (run) {
    return `${clones} ${all.length === 1 ? 'runs' : 'run'}`;
  }
  return decision.runs
    ? `${clones} loaded and paused, as -S says`
    : `${clones} loaded and paused, as the guest was when it was saved (${decision.savedAs}; --run starts it)`;
};

const describe = (entry: Clone): object => {
  const { index, qemu, qmp, serial, startedAt, acceptedAt, runsAt, resumeMs } = entry;
  return {
    ...{ index, pid: qemu.pid, qmp, serial, acceptMs: acceptedAt - startedAt, resumeMs, runMs: runsAt - startedAt },
    privateBytes: privateBytes(qemu.pid),
  };
};

const cloneTable = (clones: readonly Clone[]): string => {
  const rows = clones.map(({ index, qemu, qmp, serial, startedAt, acceptedAt, runsAt, resumeMs }) => [
    ...[String(index), String(qemu.pid), formatDuration(acceptedAt - startedAt), formatDuration(resumeMs)],
    ...[formatDuration(runsAt - startedAt), formatBytes(privateBytes(qemu.pid)), [qmp, serial ?? ''].join(' ').trim()],
  ]);
  const head = ['clone', 'pid', 'accepts', 'restored in', 'runs after', 'private', 'sockets'];
  return formatTable([head, ...rows], ['right', 'right', 'right', 'right', 'right', 'right', 'left']);
};
