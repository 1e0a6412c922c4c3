// `ramferry serve FILE URI`: a saved guest runs at once in a stock QEMU, which is told that this is the end of a postcopy
// migration; its pages come from the file as it asks for them.

import type { Command } from 'commander';
import { UNANSWERED } from '../channel/answering-channel.js';
import { parseUri } from '../channel/uri.js';
import { RamferryError } from '../memory/errors.js';
import { shellCommand } from '../memory/shell-command.js';
import { demandPath, readDemandFile, writeDemandFile } from '../memory-file/demand-file-node.js';
import { memoryFile } from '../memory-file/open-snapshot-file-node.js';
import { Migration } from '../migration/migration.js';
import type { MigrationReport } from '../source/statistics.js';
import { parseInteger } from './arguments.js';
import { Destination, QMP_OPTION } from './destination.js';
import { formatCount, formatDuration, formatTable } from './format.js';
import { addSendingOptions, type MigrationVerbOptions, parametersOf, traceOf } from './migration-options.js';
import { progressOf, totalsTable } from './migration-report.js';
import { recovery } from './serve-hints.js';
import type { Verb } from './verb.js';

interface ServeOptions extends MigrationVerbOptions {
  readonly prefetch: number;
  readonly lazy?: boolean;
  readonly finishAfter?: number;
  readonly recover?: boolean;
  readonly preempt?: boolean;
  readonly retry: number;
  readonly demand: boolean;
  readonly digest: boolean;
  readonly run?: boolean;
  readonly qmp?: string;
}

const MS = 1000;

export const serve: Verb<ServeOptions> = {
  configure: (command: Command) => {
    addSendingOptions(command, { maxBandwidth: 0 })
      .option('--prefetch <pages>', 'pages to send behind each one that the guest asks for', parseInteger(0, 4096), 32)
      .option('--lazy', 'send only what the guest asks for, until SIGUSR2 says to finish')
      .option('--finish-after <seconds>', 'with --lazy: finish then by itself', parseInteger(0, 31_536_000))
      .option('--recover', 'the guest runs there already and waits, since its server is gone (postcopy-paused)')
      .option('--preempt', 'requested pages over a second connection: QEMU 8.0 or later with postcopy-preempt on')
      .option(
        '--retry <seconds>',
        'wait this long for a destination that does not listen yet',
        parseInteger(0, 86_400),
        0,
      )
      .option('--run', 'the guest is to run, also if it was saved while paused')
      .option(...QMP_OPTION)
      .option('--no-digest', 'do not check what is read against FILE.digest, where that is there')
      .option('--no-demand', 'neither use nor write FILE.demand, which remembers what the guest asks for first');
  },
  examples: [
    ['guest.mig unix:/run/in.sock --retry 10', 'into a QEMU that is told migrate-incoming unix:/run/in.sock'],
    ['guest.mig tcp:host2:4444 --max-bandwidth 100M', 'with at most 100 MiB/s of what the guest does not wait for'],
    ['guest.mig unix:/run/in.sock --lazy', 'only what the guest asks for; kill -USR2 sends the rest'],
    ['guest.mig unix:/run/new.sock --recover', 'after migrate-recover unix:/run/new.sock: goes on where a server died'],
  ],
  files: ([file], { demand }) => ({ reads: [memoryFile(file!).path], writes: demand ? [demandPath(file!)] : [] }),

  async run({ operands, options, signal, progress }) {
    const [file, uri] = operands as [string, string];
    const { kind } = parseUri(uri);
    if (kind !== 'tcp' && kind !== 'unix' && kind !== 'fd') {
      throw new RamferryError('usage', 'NOT_A_DESTINATION', `${uri} is not a destination that can ask for pages.`, {
        value: uri,
        hint: 'serve goes to tcp:, unix: or fd:',
      });
    }
    if (kind === 'fd' && options.preempt === true) {
      throw new RamferryError('usage', 'NOT_A_DESTINATION', `${uri} is one connection, and --preempt needs two.`, {
        value: uri,
      });
    }
    const list = demandPath(file);
    const known = options.demand ? readDemandFile(list, (text) => progress.note(text)) : [];
    let isLazy = options.lazy === true;
    const destination = await Destination.open(uri, options.qmp, 'postcopy-ram');
    const migration = new Migration({
      onGuest: (guest) => {
        destination.expect(guest);
        for (const note of guest.notes) {
          progress.note(note);
        }
      },
      guest: { kind: 'snapshot-file', file, run: options.run === true, checksDigest: options.digest },
      uri,
      parameters: { ...parametersOf(options), maxPostcopyBandwidth: options.maxBandwidth ?? 0 },
      postcopy: {
        atOnce: true,
        prefetchPages: options.prefetch,
        isLazy: options.lazy === true,
        firstPages: known,
        recovers: options.recover === true,
        preempt: options.preempt === true,
      },
      retryMs: options.retry * MS,
      onLoadSilence: async () => {
        const error = await destination.whyNotLoaded();
        if (error !== undefined) {
          migration.notLoaded(error);
        }
      },
      // Lazily, it ends when the guest has asked for everything.
      onProgress: (report) => progress.update({ ...progressOf(report), ...(isLazy && { isWaiting: true }) }),
      // One process serves over one link; whoever starts the next one knows the address.
      onStatus: (status) => status === 'postcopy-paused' && migration.abandonPostcopy(),
      ...traceOf(options.trace, progress),
    });
    const finish = (): void => {
      isLazy = false;
      migration.finishPostcopy();
    };
    process.on('SIGUSR2', finish);
    const timer = options.finishAfter === undefined ? undefined : setTimeout(finish, options.finishAfter * MS);
    signal.addEventListener('abort', () => {
      migration.cancel();
      migration.abandonPostcopy();
    });
    try {
      const { report, error, demands } = await migration.ended.catch((reason: unknown) => {
        throw orSent(reason, file, uri);
      });
      if (options.demand) {
        await writeDemandFile(list, known, demands, (text) => progress.note(text));
      }
      // A peer that is gone before it asked for anything may never have taken the guest.
      const hasRun = options.recover === true || (report.ramferry.postcopy?.demands ?? 0) > 0;
      const state = await destination.stateAfter(error && withAdvice(error, hasRun, file, uri), true);
      const tables = [totalsTable(report), demandTable(report), state.text].filter((text) => text !== '');
      return {
        document: { file, uri, ...report, destination: state.document },
        text: error === undefined ? tables.join('\n') : '',
        failure: state.failure,
      };
    } finally {
      await destination.close();
      process.off('SIGUSR2', finish);
      clearTimeout(timer);
    }
  },
};

/** A guest that cannot be served can be sent. */
const orSent = (reason: unknown, file: string, uri: string): unknown =>
  reason instanceof RamferryError && reason.code === 'POSTCOPY_OBSTACLE' && reason.kind === 'invalid'
    ? reason.with({ hint: `Have it loaded before it runs: ${shellCommand`ramferry send ${file} ${uri}`}` })
    : reason;

/** What to do about a failure, where the error itself does not say. */
const withAdvice = (error: RamferryError, hasRun: boolean, file: string, uri: string): RamferryError => {
  const needs = `Look at the destination: it needs the capability postcopy-ram, which a QEMU without userfaultfd refuses, and migrate-incoming ${uri} after that.`;
  if (error.value === UNANSWERED && !hasRun) {
    return error.with({ hint: `${needs} ${error.hint}` });
  }
  if (error.hint !== undefined && error.code !== 'PEER_CLOSED') {
    return error;
  }
  const paused = `Should QEMU say postcopy-paused, its guest waits there: ${recovery(file, uri)}`;
  const hint = hasRun ? paused : `${needs} ${paused}`;
  return error.with({ hint });
};

/** What the guest asked for, and how long it waited. */
const demandTable = ({ downtime, ramferry: { postcopy } }: MigrationReport): string =>
  postcopy === undefined
    ? ''
    : formatTable(
        [
          ['handed over in', formatDuration(downtime ?? 0)],
          [
            'asked for',
            `${formatCount(postcopy.demandedPages)} pages, ${formatCount(postcopy.prefetchedPages)} came along`,
          ],
          ...(postcopy.serviceMs === undefined
            ? []
            : [['service time', `p50 ${postcopy.serviceMs.p50} ms, p99 ${postcopy.serviceMs.p99} ms`]]),
        ],
        ['left', 'left'],
      );
