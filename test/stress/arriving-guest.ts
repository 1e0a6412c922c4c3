// A workload guest at its destination: the engine that receives it, and what became of it.

import assert from 'node:assert/strict';
import type { ByteChannel } from '../../src/channel/channel.js';
import { IncomingConnections } from '../../src/channel/incoming-connections.js';
import {
  MemoryTarget,
  MigrationDestination,
  type MigrationDestinationOptions,
  PostcopyTarget,
} from '../../src/destination/index.js';
import { deviceStates } from '../../src/format/stream/index.js';
import { WorkloadGuest } from '../../src/guest/index.js';
import { RamBlockList } from '../../src/memory/index.js';
import type { StressGuest } from './stress-guest.js';

export class ArrivingGuest {
  guest: WorkloadGuest | undefined;
  /** Its memory and devices were there: the source is told so, or in postcopy its guest runs here. */
  hasCommitted = false;
  hasRun = false;
  /** Memory was compared with the source's while both stood still. */
  wasCompared = false;
  readonly ended: Promise<{ readonly status: string; readonly error: Error | undefined }>;
  readonly #abort = new AbortController();
  readonly #original: StressGuest;

  constructor(original: StressGuest, channel: ByteChannel, reconnect: (() => Promise<ByteChannel>) | undefined) {
    this.#original = original;
    this.ended = this.#receive(channel, reconnect);
  }

  async #receive(
    channel: ByteChannel,
    reconnect: (() => Promise<ByteChannel>) | undefined,
  ): Promise<{ status: string; error: Error | undefined }> {
    const { options, guest: original } = this.#original;
    let threads: Promise<void> | undefined;
    let blocks: RamBlockList;
    let early: Pick<MigrationDestinationOptions, 'earlySection'> = {};
    if (options.virtioMem === undefined) {
      blocks = RamBlockList.create({ segmentBytes: options.segmentBytes! });
    } else {
      // A memory device is part of the machine before anything arrives; and what was plugged beside it.
      const guest = WorkloadGuest.create(options);
      for (const block of original.blocks.blocks) {
        const { name, usedLength, maxLength } = block;
        if (guest.blocks.find(name) === undefined) {
          guest.blocks.add({ name, usedLength, maxLength });
        }
      }
      blocks = guest.blocks;
      this.guest = guest;
      threads = guest.boot();
      early = { earlySection: (section, body) => guest.loadEarly(section, body) };
    }
    const memory = options.virtioMem === undefined ? { blocks, memoryLimit: 2 ** 30 } : { blocks };
    const destination = new MigrationDestination({
      channel,
      target:
        reconnect === undefined
          ? new MemoryTarget(memory)
          : new PostcopyTarget({ ...memory, missingPages: () => this.guest!.missingPages('load-barrier') }),
      ...early,
      ...(reconnect !== undefined && {
        postcopy: { run: async () => this.run(), connections: new IncomingConnections(reconnect) },
      }),
      signal: this.#abort.signal,
      lingerMs: 50,
      onStatus: (status) => {
        if (status === 'active' && this.guest === undefined) {
          this.guest = WorkloadGuest.incoming(blocks, {
            writers: options.writers!,
            barrier: options.barrier!,
          });
          threads = this.guest.boot();
        }
      },
      commit: async ({ summary }) => {
        await threads;
        this.guest!.load(deviceStates(summary.tail, summary.devices));
        if (reconnect === undefined) {
          this.#compare();
        }
        this.hasCommitted = true;
      },
    });
    const { status } = await destination.run();
    await threads?.catch(() => {});
    return { status, error: destination.error };
  }

  /** With both guests standing still they must be the same. */
  #compare(): void {
    const { guest: original } = this.#original;
    if (!original.source.isRunning()) {
      const [here, there] = [original.digests(), this.guest!.digests()];
      // Whoever broke the link in between may have made it run on.
      if (!original.source.isRunning()) {
        assert.deepEqual(there, here, 'the memory that arrived is not the memory that was sent');
        this.wasCompared = true;
      }
    }
  }

  /** Its owner's wish goes along with it. */
  async run(): Promise<void> {
    this.hasRun = true;
    if (!this.#original.isPausedByOwner) {
      await this.guest!.resume();
    }
  }

  get isRunning(): boolean {
    return this.guest?.source.isRunning() === true;
  }

  cancel(): void {
    this.#abort.abort();
  }

  async discard(): Promise<void> {
    this.#abort.abort();
    await this.ended.catch(() => {});
    await this.guest?.shutdown();
  }
}
