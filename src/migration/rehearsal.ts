// A postcopy into nothing, before the real one. The first time through, the engine's code is compiled as it goes, which
// takes several milliseconds: as long as all of QEMU's part of a restore. The destination does not have to wait for that
// if it was done before it listens.

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { ByteChannel } from '../channel/channel.js';
import { listen } from '../channel/listen-node.js';
import { openChannel } from '../channel/open-channel-node.js';
import { Command, ElementType } from '../format/stream/constants.js';
import { PostcopyPing } from '../format/stream/postcopy-commands.js';
import { pong, requestPages } from '../format/stream/return-path.js';
import { RamferryError } from '../memory/errors.js';
import type { SourceGuest } from '../source/guest.js';
import { MigrationSource } from '../source/migration-source.js';
import { defaultParameters } from '../source/parameters.js';
import { PostcopySink } from '../source/postcopy-sink.js';

/** Enough for the compiler to notice; a few milliseconds in all. */
const REQUESTS = 150;

const PREFETCH_PAGES = 8;

/** What is done oftener than these is as quick as it gets; a third of a second in all. */
const REPETITIONS = 20;

/** Rehearses, once or oftener, until `awaited` is settled. */
export async function rehearseMeanwhile(awaited: Promise<unknown>, guest: SourceGuest): Promise<void> {
  const over = new AbortController();
  const stop = (): void => over.abort();
  awaited.then(stop, stop);
  for (let times = 0; times < REPETITIONS && !over.signal.aborted; times += 1) {
    await rehearsePostcopy(guest, over.signal);
  }
}

/**
 * Serves some pages of a guest that does not run, and writes nothing anywhere. Does nothing for a guest that can run: it
 * would be stopped.
 * @param signal ends it early
 */
export async function rehearsePostcopy(guest: SourceGuest, signal?: AbortSignal): Promise<void> {
  const { blocks } = guest.blocks;
  const [block] = blocks.filter(({ migrated }) => migrated);
  if (guest.log !== undefined || block === undefined) {
    return;
  }
  const ends = await connectedEnds();
  if (ends === undefined) {
    return;
  }
  const [near, far] = ends;
  if (signal?.aborted === true) {
    near.destroy();
    far.destroy();
    return;
  }
  const scratch = new Uint8Array(1024 * 1024);
  far.read({ buffer: () => scratch, received: () => {}, ended: () => {}, failed: () => {} });
  const say = (bytes: Uint8Array): void => far.write(bytes, () => {});
  // No request may find that its page came along: it would not be answered, and nothing would follow.
  const stride = Math.max(PREFETCH_PAGES + 1, Math.ceil(block.usedPages / REQUESTS)) * (block.hostPageSize / 4096);
  let asked = 0;
  const channel: ByteChannel = {
    peer: 'rehearsal',
    closed: near.closed,
    write: (bytes, done) => {
      const isPackage = bytes[0] === ElementType.COMMAND && bytes[2] === Command.PACKAGED;
      near.write(bytes, (error) => {
        done(error);
        if (isPackage) {
          say(pong(PostcopyPing.DEVICES_LOADED));
        }
        const page = asked * stride;
        if ((isPackage || asked > 0) && page < block.usedPages) {
          asked += 1;
          say(requestPages(page * 4096, block.hostPageSize, block.name));
        } else if (asked > 0) {
          end();
        }
      });
    },
    read: (reader) => near.read(reader),
    pause: () => near.pause(),
    resume: () => near.resume(),
    end: () => near.end(),
    destroy: () => near.destroy(),
  };
  const source = new MigrationSource({
    guest,
    sink: new PostcopySink(channel),
    parameters: defaultParameters,
    postcopy: { prefetchPages: PREFETCH_PAGES, isLazy: true },
    // Nobody would go on with it.
    onStatus: (status) => status === 'postcopy-paused' && end(),
  });
  const end = (): void => {
    source.fail(new RamferryError('failed', 'REHEARSED', 'The rehearsal is over.'));
  };
  signal?.addEventListener('abort', end);
  source.startPostcopy();
  await source.run();
  signal?.removeEventListener('abort', end);
  far.destroy();
}

/**
 * Two ends of a socket, which is part of what is rehearsed; undefined where no temporary file can be made. It is in a folder of
 * ours alone: pages of the guest go over it, and nobody else shall be the one who connects.
 */
const connectedEnds = async (): Promise<[ByteChannel, ByteChannel] | undefined> => {
  let folder: string | undefined;
  try {
    folder = mkdtempSync(join(tmpdir(), 'ramferry-'));
    const listener = await listen(`unix:${join(folder, 's')}`);
    try {
      return await Promise.all([openChannel(listener.uri, { direction: 'both' }), listener.accept()]);
    } finally {
      await listener.close();
    }
  } catch {
    return undefined;
  } finally {
    if (folder !== undefined) {
      rmSync(folder, { recursive: true, force: true });
    }
  }
};
