// A relay that is told to stop in the moment in which its origin lets go.

import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { inPieces, ScriptedChannel } from '../../test/scripted-channel.js';
import { MemoryChannel } from '../../test/source-kit.js';
import { StreamBuilder, testDevice } from '../../test/streams.js';
import type { WriteDone } from '../channel/channel.js';
import { listen } from '../channel/listen-node.js';
import { openChannel } from '../channel/open-channel-node.js';
import { Command } from '../format/stream/constants.js';
import { PostcopyPing } from '../format/stream/postcopy-commands.js';
import { pong, shut } from '../format/stream/return-path.js';
import { command, ping } from '../format/stream/write.js';
import { WorkloadGuest } from '../guest/workload/workload-guest-node.js';
import type { RamferryError } from '../memory/errors.js';
import { MigrationSource } from '../source/migration-source.js';
import { defaultParameters } from '../source/parameters.js';
import { StreamSink } from '../source/stream-sink.js';
import { Relay } from './relay.js';

const folder = mkdtempSync(join(tmpdir(), 'ramferry-relay-'));
after(() => rmSync(folder, { recursive: true, force: true }));

/** Takes what comes, and answers when it has the devices and when it has the end of the stream. */
class Destination extends MemoryChannel {
  hasConfirmed = false;
  #isLoaded = false;

  override write(bytes: Uint8Array, done: WriteDone): void {
    const hasEnd = this.#isLoaded;
    this.#isLoaded ||= Buffer.from(bytes).includes(Buffer.from(ping(PostcopyPing.DEVICES_LOADED)));
    const answer = hasEnd ? shut(0) : this.#isLoaded ? pong(PostcopyPing.DEVICES_LOADED) : undefined;
    super.write(bytes, (error) => {
      done(error);
      if (answer !== undefined && !this.destroyed) {
        this.hasConfirmed = hasEnd;
        this.answer(answer);
      }
    });
  }
}

test('a guest with a device whose state iterates stays at its origin: postcopy may be nothing for it', async () => {
  const { bytes } = new StreamBuilder()
    .header()
    .raw(command(Command.OPEN_RETURN_PATH))
    .ramStart([{ name: 'pc.ram', usedLength: 4096 }])
    .iterable('0000:00:05.0/vfio')
    .part([{ block: 'pc.ram', page: 0, kind: 'zero' }])
    .end()
    .devices([testDevice('cpu', 40)]);
  const channel = new Destination();
  const relay = new Relay({
    spool: join(folder, 'spool-vfio'),
    destinations: [channel],
    signal: new AbortController().signal,
    prefetchPages: 0,
    maxBandwidth: 0,
  });
  const end = await relay.run(new ScriptedChannel().sendAndEnd(inPieces(bytes, bytes.length)));
  assert.deepEqual([end.guest, (end.error as RamferryError).code], ['origin', 'UNKNOWN_ITERABLE']);
  assert.equal(channel.hasConfirmed, false);
});

test('a relay that is cancelled while its origin lets go hands the guest over: it would be nowhere else', async () => {
  const guest = WorkloadGuest.create({ memoryBytes: 4 * 2 ** 20, writers: 1, segmentBytes: 2 ** 25 });
  await guest.start();
  const listener = await listen(`unix:${join(folder, 'origin.sock')}`);
  const channel = new Destination();
  const cancelled = new AbortController();
  const relay = new Relay({
    spool: join(folder, 'spool'),
    destinations: [channel],
    signal: cancelled.signal,
    prefetchPages: 0,
    maxBandwidth: 0,
  });
  const sent = openChannel(listener.uri, { direction: 'both' }).then((sending) =>
    new MigrationSource({
      guest: guest.source,
      sink: new StreamSink(sending, { returnPath: true }),
      parameters: defaultParameters,
    }).run(),
  );
  const origin = await listener.accept();
  const write = origin.write.bind(origin);
  let isTold = false;
  origin.write = (bytes, done) => {
    // SHUT(0): the word by which the origin lets go.
    if (bytes[1] === 1) {
      isTold = true;
      cancelled.abort(new Error('SIGINT'));
    }
    write(bytes, done);
  };
  const end = await relay.run(origin);
  assert.equal((await sent).status, 'completed', String(end.error));
  assert.deepEqual([isTold, guest.source.isRunning()], [true, false]);
  assert.deepEqual(
    [end.guest, end.destinations.map(({ error }) => error?.message), channel.hasConfirmed, end.isSpoolKept],
    ['destinations', [undefined], true, false],
  );
  await listener.close();
  await guest.shutdown();
});
