// Many QEMUs from one saved guest: started together, watched together, ended together.

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { RamferryError } from '../memory/errors.js';
import type { RunDecision } from '../memory-file/run-decision.js';
import { fillTemplate, hasOption, optionArguments, optionValue } from '../qemu/command-line.js';
import { refuseSharedResources } from '../qemu/exclusive-resources.js';
import type { RestoredGuest, RunIncomingOptions } from '../qemu/incoming.js';

export interface StartOptions extends RunIncomingOptions {
  /** Path for a socket, if the start needs one. */
  readonly socket: string;
}

export interface StartedGuest extends RestoredGuest {
  /** Resolves when all its memory is there, rejects if it cannot come; none where it is from the start. */
  readonly loaded?: Promise<void>;
}

/** What gives a QEMU its guest. */
export interface GuestSource {
  /** Section names of the guest's devices. */
  readonly devices: readonly string[];
  /** What its user should know of the file, as sentences. */
  readonly warnings: readonly string[];
  /** Whether the guests are to run. */
  readonly decision: RunDecision;
  /** Starts a QEMU and its guest; leaves nothing behind where it rejects. */
  start(command: readonly string[], options: StartOptions): Promise<StartedGuest>;
  /** Calls `listener` if the file that the guests' memory comes from changes, or is about to. */
  onChange(listener: (reason: RamferryError) => void): void;
  /** Brings what the guests have not asked for yet, once all of them run. */
  loadRest?(): void;
  /** Lets the file go; the guests must have ended. */
  close(): void;
}

export interface ClonesOptions {
  readonly source: GuestSource;
  readonly count: number;
  /** A QEMU command line, with `{i}` for the number of the clone, from 0. */
  readonly template: readonly string[];
  /** Folder for the sockets of the clones' monitors and serial ports; short, as a socket's path has 107 bytes at most. */
  readonly folder: string;
  /** Ends a start that is under way, and all that it started. */
  readonly signal?: AbortSignal | undefined;
}

export interface Clone extends StartedGuest {
  readonly index: number;
  /** Path of a monitor for whoever wants to talk to it. */
  readonly qmp: string;
  /** Path of its first serial port, if the command line does not say where that goes. */
  readonly serial: string | undefined;
}

/** Bytes of memory that are a process's own: pages that it wrote, and what QEMU itself needs. 0 once it is gone. */
export const privateBytes = (pid: number): number => {
  try {
    const rollup = readFileSync(`/proc/${pid}/smaps_rollup`, 'utf8');
    return Number(/^Private_Dirty:\s+(\d+) kB$/m.exec(rollup)?.[1] ?? 0) * 1024;
  } catch {
    return 0;
  }
};

/** What makes the clones less different than they should be, as sentences. */
export const identityWarnings = ({ devices }: Pick<GuestSource, 'devices'>, template: readonly string[]): string[] => {
  if (!devices.includes('vmgenid')) {
    return [
      'The guest has no vmgenid device, so nothing tells it that it was cloned: all clones go on with the same state of ' +
        'their random number generators. Give the guest -device vmgenid,guid=auto before it is saved.',
    ];
  }
  const fixed = [...optionArguments(template, ['device'], 'driver')].some(
    ({ values }) => values.get('driver') === 'vmgenid' && (values.get('guid') ?? 'auto') !== 'auto',
  );
  return fixed ? ['All clones get the same vmgenid from the command line: write guid=auto.'] : [];
};

/** @throws RamferryError `usage`, if so many QEMUs of this command line cannot run side by side, or under our eyes */
export const checkTemplate = (template: readonly string[], count: number): void => {
  if (hasOption(template, 'daemonize')) {
    throw new RamferryError('usage', 'QEMU_COMMAND', 'With -daemonize nobody could watch over the clones.', {
      value: '-daemonize',
    });
  }
  if (count > 1) {
    refuseSharedResources(template, count);
  }
};

export class Clones {
  readonly all: readonly Clone[];
  /** Whether their guests run; else they are paused, as they were when they were saved, or as -S says. */
  readonly run: boolean;
  /** Milliseconds from when the last QEMU took commands until the last guest ran. */
  readonly runMs: number;
  #ending = false;

  private constructor(all: readonly Clone[], run: boolean) {
    this.all = all;
    this.run = run;
    const last = (moments: readonly number[]): number => moments.reduce((one, other) => Math.max(one, other));
    this.runMs = last(all.map(({ runsAt }) => runsAt)) - last(all.map(({ acceptedAt }) => acceptedAt));
  }

  /** Resolves when all run. Where one cannot, none is left, and the error says which. */
  static async start(options: ClonesOptions): Promise<Clones> {
    const { source, count, template, folder, signal } = options;
    checkTemplate(template, count);
    const leavePaused = hasOption(template, 'S') || !source.decision.runs;
    const serialPorts = hasSerialOption(template) ? 0 : source.devices.filter((name) => name === 'serial').length;
    const start = async (index: number): Promise<Clone> => {
      const socket = (name: string): string =>
        `unix:${optionValue(join(folder, `${index}.${name}`))},server=on,wait=off`;
      const ports = ['serial', ...Array.from({ length: serialPorts }, (_, port) => `serial${port}`).slice(1)];
      const command = [
        ...fillTemplate(template, index),
        ...['-qmp', socket('qmp')],
        ...ports.slice(0, serialPorts).flatMap((name) => ['-serial', socket(name)]),
      ];
      const guest = await source.start(command, {
        ...{ leavePaused, signal: starting },
        socket: join(folder, `${index}.migration`),
      });
      const serial = serialPorts > 0 ? join(folder, `${index}.serial`) : undefined;
      return { ...guest, index, qmp: join(folder, `${index}.qmp`), serial };
    };
    // One that cannot start ends the others, which would only be ended later.
    let first: { readonly index: number; readonly reason: unknown } | undefined;
    const failed = new AbortController();
    const starting = signal === undefined ? failed.signal : AbortSignal.any([signal, failed.signal]);
    const started: Clone[] = [];
    await Promise.all(
      Array.from({ length: count }, async (_, index) => {
        try {
          started[index] = await start(index);
        } catch (reason) {
          first ??= { index, reason };
          failed.abort(reason);
        }
      }),
    );
    if (first !== undefined) {
      await endAll(started.filter((clone) => clone !== undefined));
      signal?.throwIfAborted();
      throw startError(first.reason, first.index, options);
    }
    source.loadRest?.();
    return new Clones(started, !leavePaused);
  }

  /** Resolves when all memory of all of them is there; never, if that of one cannot come. */
  async loaded(): Promise<void> {
    try {
      await Promise.all(this.all.map((clone) => clone.loaded));
    } catch {
      await new Promise(() => {});
    }
  }

  /** Calls `listener` where the memory of one of them cannot come. */
  onLoadError(listener: (error: RamferryError) => void): void {
    for (const { index, loaded } of this.all) {
      loaded?.catch((error: unknown) => {
        if (error instanceof RamferryError && !this.#ending) {
          listener(ofClone(error, index));
        }
      });
    }
  }

  /** Resolves when every QEMU is gone. Calls `listener` for each that ends without being told to, with the error if it failed. */
  async ended(listener: (clone: Clone, error: RamferryError | undefined) => void): Promise<void> {
    await Promise.all(
      this.all.map(async (clone) => {
        const { code } = await clone.qemu.exited;
        if (!this.#ending) {
          listener(clone, code === 0 ? undefined : clone.qemu.exitError());
        }
      }),
    );
  }

  /** Ends all of them. */
  async end(): Promise<void> {
    this.#ending = true;
    await endAll(this.all);
  }
}

const endAll = async (clones: readonly Clone[]): Promise<void> => {
  await Promise.all(clones.map(({ qemu }) => qemu.quit()));
};

/** Whether the command line says itself where serial ports go. */
const hasSerialOption = (template: readonly string[]): boolean =>
  hasOption(template, 'serial') ||
  hasOption(template, 'nographic') ||
  [...optionArguments(template, ['device'], 'driver')].some(({ values }) =>
    /serial/.test(String(values.get('driver'))),
  );

const startError = (error: unknown, index: number, { count, template }: ClonesOptions): unknown => {
  const same = count > 1 && !template.some((word) => word.includes('{i}'));
  const hint = 'all clones have the same command line: what must differ takes {i}, as in file=disk{i}.qcow2';
  return error instanceof RamferryError ? ofClone(error, index, same ? hint : undefined) : error;
};

/** The error of one of them, which says of which. */
const ofClone = (error: RamferryError, index: number, hint = error.hint): RamferryError =>
  error.with(hint === undefined ? {} : { hint }, `Clone ${index}: ${error.message}`);
