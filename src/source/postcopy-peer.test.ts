// Destinations of a postcopy that say what they should not, ask for too much or do nothing: no guest is lost, and each is named.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { startCpuTimer } from '../../test/cpu-time.js';
import { assertArrived, completed, fill, setUp } from '../../test/postcopy-kit.js';
import { PAGE, ScriptedGuest } from '../../test/source-kit.js';
import { nextTurn } from '../../test/until.js';
import { pong, requestPages, shut } from '../format/stream/return-path.js';
import { RamferryError } from '../memory/errors.js';
import type { RamBlock } from '../memory/ram-block.js';

// PC-9: each leaves the migration paused with a sentence, and the guest at the destination
for (const [what, bytes, code] of [
  ['an unknown block', requestPages(0, PAGE, 'elsewhere'), 'PAGE_REQUEST'],
  ['a page beyond the used length', requestPages(60 * PAGE, PAGE, 'block0'), 'PAGE_REQUEST'],
  ['half a page', requestPages(2048, PAGE, 'block0'), 'PAGE_REQUEST'],
  ['no pages', requestPages(0, 0, 'block0'), 'PAGE_REQUEST'],
  ['a page of the block before, without one', requestPages(0, PAGE), 'PAGE_REQUEST'],
  ['a message of type 8', Uint8Array.of(0, 8, 0, 0), 'RETURN_PATH_MESSAGE'],
  ['an end before the end', shut(0), 'CONFIRMED_TOO_EARLY'],
  ['a bitmap that nobody asked for', Uint8Array.of(0, 5, 0, 2, 1, 0x78), 'RECEIVED_BITMAP'],
] as const) {
  test(`a destination that sends ${what} is left paused`, async () => {
    const { guest, destination, source, reached } = setUp({ postcopy: { isLazy: true } });
    const running = source.run();
    source.startPostcopy();
    await reached('postcopy-active');
    await nextTurn();
    destination.say(bytes);
    await reached('postcopy-paused');
    source.fail(new Error('given up'));
    const report = await running;
    assert.equal(report.status, 'failed');
    assert.equal((source.error as { code?: string }).code, code);
    assert.equal(guest.resumes, 0);
  });
}

// spec/qemu-wire-format.md 7.9 item 19
test('a flood of requests is read no faster than it is served, and what others want is sent on', async () => {
  const { guest, destination, source, reached } = setUp({ pages: [64], postcopy: { prefetchPages: 0 } });
  fill(guest);
  const running = source.run();
  source.startPostcopy();
  await reached('postcopy-active');
  for (let index = 0; index < 20_000; index += 1) {
    destination.say(requestPages(0, PAGE, 'block0'));
  }
  completed(await running);
  assertArrived(guest, destination);
  assert.ok(destination.pauses > 0);
});

test('a destination that never reads and never stops asking costs two writes and a queue, and is given up', async () => {
  const { guest, destination, source, reached } = setUp({ pages: [400], stallMs: 500 });
  fill(guest);
  const running = source.run();
  source.startPostcopy();
  await reached('postcopy-active');
  // With the first page that comes then: all of them take but a few turns.
  await new Promise<void>((resolve) => {
    destination.onPage = () => {
      destination.isDeaf = true;
      resolve();
    };
  });
  for (let index = 0; index < 20_000; index += 1) {
    destination.say(requestPages((index % 400) * PAGE, PAGE, 'block0'));
  }
  await reached('postcopy-paused');
  source.fail(new Error('given up'));
  assert.equal((await running).status, 'failed');
  assert.match(source.error!.message, /neither said nor read anything/);
  assert.ok(destination.unread > 0 && destination.unread < 140 * PAGE, `${destination.unread} bytes`);
  assert.ok(destination.pauses > 0);
});

test('who asks for all memory again and again takes no time from others', async () => {
  class EmptyGuest extends ScriptedGuest {
    readonly #content = new Map<RamBlock, number>();

    contentBitmap(block: RamBlock): number {
      const address = this.#content.get(block) ?? this.blocks.bitmaps.allocate(block.usedPages);
      this.#content.set(block, address);
      return address;
    }
  }
  const pages = 2 ** 14;
  const greedy = setUp({ guest: new EmptyGuest([pages]), postcopy: { isLazy: true } });
  const other = setUp({ pages: [300] });
  fill(other.guest);
  const running = greedy.source.run();
  greedy.source.startPostcopy();
  await greedy.reached('postcopy-active');
  const ask = (): void => greedy.destination.say(requestPages(0, pages * PAGE, 'block0'));
  await new Promise<void>((resolve) => {
    greedy.destination.onPage = (_name, page) => page === pages - 1 && resolve();
    ask();
  });
  for (let index = 0; index < 10_000; index += 1) {
    ask();
  }
  const cpuMs = startCpuTimer();
  other.source.startPostcopy();
  completed(await other.source.run());
  const took = cpuMs();
  greedy.source.fail(new Error('the test is over'));
  await running;
  assertArrived(other.guest, other.destination);
  // Looked at page by page, a queue of such requests takes more than a second.
  assert.ok(took < 1000, `${took} ms`);
});

// PC-9
test('whatever a destination says: the migration goes on or is paused with a sentence', async () => {
  const request = fc
    .tuple(fc.integer({ min: -2, max: 70 }), fc.integer({ min: 0, max: 4 }), fc.constantFrom('block0', 'block1', 'x'))
    .map(([page, count, name]) => requestPages(Math.max(0, page * 2048), count * 2048, name));
  const said = fc.oneof(
    { weight: 4, arbitrary: request },
    { weight: 2, arbitrary: fc.integer().map((value) => pong(value >>> 0)) },
    fc.uint8Array({ maxLength: 40 }),
    fc
      .tuple(fc.nat(9), fc.uint8Array({ maxLength: 24 }))
      .map(([type, rest]) => Uint8Array.of(0, type, 0, rest.length, ...rest)),
  );
  let paused = 0;
  await fc.assert(
    fc.asyncProperty(fc.array(said, { minLength: 1, maxLength: 20 }), async (messages) => {
      const { guest, destination, source, reached } = setUp({ postcopy: { isLazy: true } });
      fill(guest);
      const running = source.run();
      source.startPostcopy();
      await reached('postcopy-active');
      await nextTurn();
      for (const message of messages) {
        destination.say(message);
      }
      for (let turn = 0; turn < 10; turn += 1) {
        await nextTurn();
      }
      if (source.state.value === 'postcopy-paused') {
        paused += 1;
        source.fail(new Error('given up'));
        assert.equal((await running).status, 'failed');
        assert.ok(source.error instanceof RamferryError && source.error.message.length > 20, `${source.error}`);
      } else {
        source.fail(new Error('the test is over'));
        await running;
        assert.equal(source.error!.message, 'the test is over');
      }
      assert.deepEqual(destination.violations, []);
      assert.equal(guest.resumes, 0);
    }),
    { numRuns: 150 },
  );
  assert.ok(paused > 20 && paused < 150, `${paused}`);
});

test('a destination that does nothing at all is given up', async () => {
  const { destination, source, reached, guest } = setUp({ stallMs: 500 });
  destination.answersLoaded = false;
  const running = source.run();
  source.startPostcopy();
  await reached('postcopy-paused');
  source.fail(new Error('given up'));
  assert.equal((await running).status, 'failed');
  assert.match(source.error!.message, /neither said nor read anything for 0.5 s/);
  assert.match((source.error as RamferryError).hint!, /--preempt/);
  assert.equal(guest.resumes, 0);
});
