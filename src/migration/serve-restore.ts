// A saved guest as a source of QEMUs that run at once and get their pages as they ask for them: what `clone` does where
// the file cannot be mapped. Each guest has a migration of its own; all of them share the opened file and this thread,
// as a thread for each would take longer to start than the guests take to run.

import { setTimeout as delay } from 'node:timers/promises';
import { RamferryError } from '../memory/errors.js';
import { withDigest } from '../memory-file/checked-snapshot.js';
import { FileGuard } from '../memory-file/file-guard-node.js';
import { memoryFile, type OpenedSnapshotFile, openSnapshotFile } from '../memory-file/open-snapshot-file-node.js';
import { decideRun, type RunDecision } from '../memory-file/run-decision.js';
import { inTurns } from '../memory-file/slices-node.js';
import { SnapshotGuest } from '../memory-file/snapshot-guest.js';
import { hasOption, withIncomingDefer } from '../qemu/command-line.js';
import { qemuVersion } from '../qemu/find-qemu.js';
import { QEMU_EXIT_MS, runIncoming, withWords } from '../qemu/incoming.js';
import { LoadWitness } from '../qemu/load-witness.js';
import { QemuProcess } from '../qemu/qemu-process.js';
import { MigrationSource } from '../source/migration-source.js';
import { defaultParameters } from '../source/parameters.js';
import type { GuestPage } from '../source/postcopy.js';
import type { GuestSource, StartedGuest, StartOptions } from './clones.js';
import { connectionLost } from './connection-lost.js';
import { DemandList } from './demand-list.js';
import { openPostcopySink } from './open-sink.js';
import { refusePinnedDevices, refusePinningCommand } from './postcopy-obstacles.js';

/** Pages sent behind one that is asked for: half as many requests (spec/qemu-lab.md, rule 4). */
const PREFETCH_PAGES = 32;

/** A QEMU that was told to listen does so within milliseconds. */
const LISTEN_MS = 10_000;

export interface ServeRestoreOptions {
  /** What such a guest is known to ask for first. */
  readonly firstPages?: readonly GuestPage[];
  /** The guests are to run, also if they were saved while paused. Default false. */
  readonly run?: boolean;
  /** Compare what is read with the digest of the file, where it has one. Default true. */
  readonly checksDigest?: boolean;
  /** Ends the preparation. */
  readonly signal?: AbortSignal;
}

export class ServeRestore implements GuestSource {
  readonly devices: readonly string[];
  readonly decision: RunDecision;
  readonly warnings: readonly string[];
  /** What all of them asked for. */
  readonly demands = new DemandList();
  readonly #opened: OpenedSnapshotFile;
  readonly #firstPages: readonly GuestPage[];
  readonly #guard: FileGuard;
  readonly #sources = new Set<MigrationSource>();

  private constructor(
    opened: OpenedSnapshotFile,
    decision: RunDecision,
    warnings: readonly string[],
    firstPages: readonly GuestPage[],
    guard: FileGuard,
  ) {
    this.#opened = opened;
    this.decision = decision;
    this.warnings = warnings;
    this.devices = opened.snapshot.summary.devices.map(({ name }) => name);
    this.#firstPages = firstPages;
    this.#guard = guard;
  }

  /** @throws RamferryError POSTCOPY_OBSTACLE if the guest would be harmed */
  static async prepare(
    operand: string,
    { firstPages = [], run = false, checksDigest = true, signal }: ServeRestoreOptions = {},
  ): Promise<ServeRestore> {
    const guard = FileGuard.take(memoryFile(operand).path);
    let opened: OpenedSnapshotFile | undefined;
    try {
      opened = await openSnapshotFile(operand);
      refusePinnedDevices(opened.snapshot.summary, operand);
      const decision = decideRun(opened.snapshot.summary, opened.container.libvirt, run);
      let warnings: readonly string[] = [];
      if (checksDigest) {
        const { snapshot, checked, notChecked } = withDigest(opened.snapshot, opened.container);
        await checked?.checkIfQuick(inTurns(signal));
        opened = { ...opened, snapshot };
        warnings = notChecked === undefined ? [] : [notChecked];
      }
      return new ServeRestore(opened, decision, warnings, firstPages, guard);
    } catch (error) {
      opened?.close();
      guard.release();
      throw error;
    }
  }

  onChange(listener: (reason: RamferryError) => void): void {
    this.#guard.onChange(listener);
  }

  async start(command: readonly string[], options: StartOptions): Promise<StartedGuest> {
    const { socket, leavePaused = false, signal } = options;
    refusePinningCommand(command);
    const version = await qemuVersion(command);
    const startedAt = performance.now();
    const uri = `unix:${socket}`;
    // Made while QEMU starts, as this takes a while too.
    // After a postcopy QEMU starts the guest whatever its state says, unless -S keeps it from that.
    const stopped = leavePaused && !hasOption(command, 'S') ? ['-S'] : [];
    const starting = QemuProcess.start([...withIncomingDefer(command), ...stopped], { version, signal });
    starting.catch(() => {});
    const { snapshot, container } = this.#opened;
    const guest = new SnapshotGuest(snapshot, container.file);
    for (const block of guest.blocks.blocks) {
      guest.contentBitmap(block);
    }
    const qemu = await starting;
    const acceptedAt = performance.now();
    // Nobody is left to connect to once the start has failed.
    const failed = new AbortController();
    const connecting = signal === undefined ? failed.signal : AbortSignal.any([signal, failed.signal]);
    try {
      const running = runIncoming(qemu, uri, { capabilities: ['postcopy-ram'], leavePaused, signal });
      running.catch(() => {});
      let onLoaded = (): void => {};
      const devicesLoaded = new Promise<void>((resolve) => {
        onLoaded = resolve;
      });
      const loaded = this.#migrate(guest, { uri, signal: connecting }, new LoadWitness(qemu.qmp), onLoaded);
      loaded.catch(() => {});
      // One that is to stay paused says nothing before it has all of its memory, which it gets once all others run.
      const paused = leavePaused ? [devicesLoaded.then(() => performance.now() - acceptedAt)] : [];
      const resumeMs = await Promise.race([running, ...paused, failureOf(loaded, qemu)]);
      return { qemu, startedAt, acceptedAt, resumeMs, runsAt: performance.now(), loaded };
    } catch (error) {
      failed.abort(error);
      qemu.kill();
      await qemu.exited;
      throw error;
    }
  }

  /** Resolves when all memory is there. */
  async #migrate(
    guest: SnapshotGuest,
    { uri, signal }: { readonly uri: string; readonly signal: AbortSignal },
    witness: LoadWitness,
    onLoaded: () => void,
  ): Promise<void> {
    const onLoadSilence = async (): Promise<void> => {
      const error = await witness.ask(uri);
      if (error !== undefined) {
        source.notLoaded(error);
      }
    };
    const source = new MigrationSource({
      guest,
      sink: await openPostcopySink({ uri, retryMs: LISTEN_MS, signal }, { onLoadSilence: () => void onLoadSilence() }),
      parameters: defaultParameters,
      // What nobody asks for would only keep the others from starting; `loadRest` is for that.
      postcopy: {
        isLazy: true,
        prefetchPages: PREFETCH_PAGES,
        firstPages: this.#firstPages,
        onDemand: this.demands.add,
        onLoaded,
      },
      // Its QEMU is here and ours: there is nobody else who could go on with it.
      onStatus: (status) => status === 'postcopy-paused' && source.fail(connectionLost(uri)),
    });
    this.#sources.add(source);
    source.startPostcopy();
    try {
      const { status } = await source.run();
      if (status !== 'completed') {
        throw source.error ?? connectionLost(uri);
      }
    } finally {
      this.#sources.delete(source);
    }
  }

  loadRest(): void {
    for (const source of this.#sources) {
      source.finishPostcopy();
    }
  }

  close(): void {
    for (const source of this.#sources) {
      source.fail(new RamferryError('failed', 'CANCELLED', 'Cancelled.'));
    }
    this.#opened.close();
    this.#guard.release();
  }
}

/** Rejects if the migration fails, with QEMU's words if that was the reason; else never settles. */
const failureOf = async (loaded: Promise<void>, qemu: QemuProcess): Promise<never> => {
  try {
    await loaded;
  } catch (error) {
    await Promise.race([qemu.exited, delay(QEMU_EXIT_MS, undefined, { ref: false })]);
    throw qemu.isRunning ? await withWords(qemu, error) : qemu.exitError();
  }
  return new Promise(() => {});
};
