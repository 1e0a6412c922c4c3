// A saved guest as a source of QEMUs that run at once and get their pages as they ask for them: what `clone` does where
// the file cannot be mapped. Each guest has a migration of its own; what they share is the file, in the page cache.

import { setTimeout as delay } from 'node:timers/promises';
import { FileGuard } from '../guest/file-guard-node.js';
import { memoryFile, openSnapshotFile } from '../guest/open-snapshot-file-node.js';
import type { RamferryError } from '../memory/errors.js';
import { withIncomingDefer } from '../qemu/command-line.js';
import { QEMU_EXIT_MS, runIncoming } from '../qemu/incoming.js';
import { QemuProcess } from '../qemu/qemu-process.js';
import type { GuestPage } from '../source/postcopy.js';
import type { GuestSource, StartedGuest, StartOptions } from './clones.js';
import { Migration, type MigrationEnd } from './migration.js';

/** Pages sent behind one that is asked for: half as many requests (spec/qemu-lab.md, rule 4). */
const PREFETCH_PAGES = 32;

/** For how long a migration waits for its QEMU to start. */
const QEMU_START_MS = 60_000;

export class ServeRestore implements GuestSource {
  readonly devices: readonly string[];
  readonly #operand: string;
  readonly #firstPages: readonly GuestPage[];
  readonly #guard: FileGuard;
  readonly #migrations = new Set<Migration>();

  private constructor(operand: string, devices: readonly string[], firstPages: readonly GuestPage[], guard: FileGuard) {
    this.#operand = operand;
    this.devices = devices;
    this.#firstPages = firstPages;
    this.#guard = guard;
  }

  /** @param firstPages what such a guest is known to ask for first */
  static async prepare(operand: string, firstPages: readonly GuestPage[] = []): Promise<ServeRestore> {
    const guard = FileGuard.take(memoryFile(operand).path);
    try {
      const { snapshot, close } = await openSnapshotFile(operand);
      close();
      const devices = snapshot.summary.devices.map(({ name }) => name);
      return new ServeRestore(operand, devices, firstPages, guard);
    } catch (error) {
      guard.release();
      throw error;
    }
  }

  onChange(listener: (reason: RamferryError) => void): void {
    this.#guard.onChange(listener);
  }

  async start(command: readonly string[], { socket, leavePaused = false }: StartOptions): Promise<StartedGuest> {
    const startedAt = performance.now();
    const uri = `unix:${socket}`;
    // Both get ready at the same time.
    const migration = new Migration({
      guest: { kind: 'snapshot-file', file: this.#operand },
      uri,
      parameters: { maxBandwidth: 0, maxPostcopyBandwidth: 0 },
      // What nobody asks for would only keep the others from starting; `loadRest` is for that.
      postcopy: { atOnce: true, isLazy: true, prefetchPages: PREFETCH_PAGES, firstPages: this.#firstPages },
      retryMs: QEMU_START_MS,
      onStatus: (status) => status === 'postcopy-paused' && migration.abandonPostcopy(),
    });
    this.#migrations.add(migration);
    const loaded = migration.ended.finally(() => this.#migrations.delete(migration));
    loaded.catch(() => {});
    let qemu: QemuProcess | undefined;
    try {
      qemu = await QemuProcess.start(withIncomingDefer(command));
      const acceptedAt = performance.now();
      const running = runIncoming(qemu, uri, { capabilities: ['postcopy-ram'], leavePaused });
      const resumeMs = await Promise.race([running, failureOf(loaded, qemu)]);
      return { qemu, startedAt, acceptedAt, resumeMs, runsAt: performance.now(), loaded };
    } catch (error) {
      endMigration(migration);
      qemu?.kill();
      await qemu?.exited;
      throw error;
    }
  }

  loadRest(): void {
    for (const migration of this.#migrations) {
      migration.finishPostcopy();
    }
  }

  close(): void {
    for (const migration of this.#migrations) {
      endMigration(migration);
    }
    this.#guard.release();
  }
}

const endMigration = (migration: Migration): void => {
  migration.cancel();
  migration.abandonPostcopy();
};

/** Rejects if the migration fails, with QEMU's words if that was the reason; else never settles. */
const failureOf = async (ended: Promise<MigrationEnd>, qemu: QemuProcess): Promise<never> => {
  const { error } = await ended;
  if (error === undefined) {
    return new Promise(() => {});
  }
  await Promise.race([qemu.exited, delay(QEMU_EXIT_MS, undefined, { ref: false })]);
  throw qemu.isRunning ? error : qemu.exitError();
};
