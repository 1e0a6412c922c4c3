// Postcopy up to the switch and over it, against a destination that notes whatever a real one would not survive: the memory there must
// be the source's at the stop, and from the package on the guest is the destination's.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { assertArrived, completed, fill, missingAtListen, setUp } from '../../test/postcopy-kit.js';
import { PAGE, ScriptedGuest, ScriptedHints } from '../../test/source-kit.js';
import { nextTurn, until } from '../../test/until.js';
import { TOKEN_MARK } from '../format/stream/migration-token.js';
import type { RamBlock } from '../memory/ram-block.js';

// FH-16, PC-14
for (const isSwitched of [false, true]) {
  test(`with postcopy announced, a guest is not asked for free pages${isSwitched ? '' : ', even if nobody switches'}`, async () => {
    const { guest, blocks, destination, source } = setUp();
    const hints = new ScriptedHints();
    guest.hints = hints;
    fill(guest);
    hints.hint(blocks[0]!, 0, 60);
    if (isSwitched) {
      source.startPostcopy();
    }
    completed(await source.run());
    assert.deepEqual(hints.calls, []);
    assertArrived(guest, destination);
  });
}

// PC-1, PC-2, PC-3, PC-5, PC-6, PC-12, PC-15, PC-19, G-1
test('switched at any moment, under stores and requests: stale pages are discarded, each missing page comes once', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.integer({ min: 1, max: 12 }), { minLength: 1, maxLength: 3 }),
      // Batches of 16 pages while the guest asks: the largest host pages take several.
      fc.constantFrom(1, 2, 8, 64),
      fc.nat(12),
      fc.boolean(),
      fc.infiniteStream(fc.nat(2 ** 30)),
      async (sizes, hostPages, turns, preempt, random) => {
        const next = (below: number): number => random.next().value! % below;
        const setting = { pages: sizes.map((size) => size * Math.max(8, hostPages)), hostPageSize: hostPages * PAGE };
        const { guest, blocks, destination, source } = setUp({
          ...setting,
          preempt,
          postcopy: { prefetchPages: next(20) },
          parameters: { maxBandwidth: 4_000_000, downtimeLimit: 0 },
        });
        const missing = missingAtListen(destination, blocks);
        const anyPage = (): [RamBlock, number] => {
          const block = blocks[next(blocks.length)]!;
          return [block, next(block.usedPages)];
        };
        destination.onRecord = () => {
          const [block, page] = anyPage();
          const first = page - (page % hostPages);
          if (destination.isRunning && next(48) === 0 && destination.placed(block.name).content[first]! < 0) {
            destination.request(block.name, first, block.hostPageSize);
          }
        };
        fill(guest, 3);
        const running = source.run();
        for (let turn = 0; turn < turns; turn += 1) {
          guest.store(...anyPage(), 1 + next(255));
          await nextTurn();
        }
        guest.beforeStop = () => guest.store(...anyPage(), 77);
        source.startPostcopy();
        completed(await running);
        assertArrived(guest, destination);
        for (const { name } of blocks) {
          assert.deepEqual(Array.from(destination.placed(name).placed), missing.get(name)!.map(Number), name);
        }
        assert.equal(guest.running, false);
        assert.equal(guest.resumes, 0);
      },
    ),
    { numRuns: 60 },
  );
});

// PC-2, PC-10, PC-20; spec/qemu-wire-format.md 5.4
test('the order of the switch, twelve ranges a command, and downtime ends with the package', async () => {
  // 50 pages in the first window of 100 ms.
  const { guest, blocks, destination, source } = setUp({ pages: [100], parameters: { maxBandwidth: 500 * PAGE } });
  fill(guest);
  destination.onRecord = (page) => page === 40 && source.startPostcopy();
  // Every other one is stale, and all from about the fiftieth on are missing: 21 ranges.
  guest.beforeStop = () => {
    for (let page = 0; page < 40; page += 2) {
      guest.store(blocks[0]!, page, 9);
    }
  };
  let downtime: number | undefined;
  destination.onPage = () => {
    downtime ??= source.report().downtime;
  };
  const report = await source.run();
  completed(report);
  const commands = destination.steps.filter((step) => !/^(discard|page) /.test(step));
  // What a destination of ours will know this source by.
  const token = commands.splice(2, 5);
  assert.ok(token[0] === `ping ${TOKEN_MARK}` && token.every((step) => step.startsWith('ping ')), `${token}`);
  assert.deepEqual(commands, [
    ...['command 1', 'ping 1', `advise ${PAGE} ${PAGE}`],
    ...['discarded block0', 'discarded block0'],
    ...['ping 2', 'package', 'listen', 'ping 3', 'run', 'ping 4', 'end'],
  ]);
  const discards = destination.steps.filter((step) => step.startsWith('discard'));
  assert.deepEqual([discards.indexOf('discarded block0'), discards.length], [12, 21 + 2]);
  assert.ok(downtime !== undefined && report.downtime === downtime);
  assert.ok(report.ram['postcopy-bytes'] > 60 * PAGE && report.ram['precopy-bytes'] > 40 * PAGE);
});

// spec/qemu-wire-format.md 5.2
test('a guest without content has a page discarded all the same: QEMU would wait for ever', async () => {
  class EmptyGuest extends ScriptedGuest {
    contentBitmap(block: RamBlock): number {
      return this.blocks.bitmaps.allocate(block.usedPages);
    }
  }
  const guest = new EmptyGuest([40, 8]);
  const { destination, source } = setUp({ guest });
  source.startPostcopy();
  completed(await source.run());
  assert.equal(destination.steps.filter((step) => step.startsWith('discard ')).length, 1);
  assertArrived(guest, destination);
});

// PC-16, PC-11
test('with release-ram, pages go back to the system once it has taken them, and not before the switch', async () => {
  const { guest, blocks, destination, source } = setUp({
    pages: [300, 6000, 70],
    parameters: { maxBandwidth: 2000 * PAGE, downtimeLimit: 0 },
    postcopy: {
      releaseWith: (block, firstPage, pageCount) => {
        assert.ok(destination.isRunning);
        block.forEachRange(firstPage, pageCount, ({ segment, address, firstPage: first }, page, count) => {
          const start = address + (page - first) * PAGE;
          segment.bytes.fill(0, start, start + count * PAGE);
        });
      },
    },
  });
  destination.isGathering = true;
  fill(guest);
  destination.onRecord = (page) => page === 290 && source.startPostcopy();
  destination.onListen = () => {
    for (let page = 5; page < 6000; page += 97) {
      destination.request('block1', page);
    }
  };
  completed(await source.run());
  assert.deepEqual(destination.violations, []);
  for (const block of blocks) {
    for (let page = 0; page < block.usedPages; page += 1) {
      assert.equal(destination.value(block.name, page), (page % 255) + 1, `${block.name} page ${page}`);
      assert.equal(guest.load(block, page), 0, `${block.name} page ${page} is still here`);
    }
  }
});

// PC-16
for (const [preempt, isLazy, how] of [
  [false, false, ''],
  [true, false, ', whatever is asked for meanwhile'],
  [true, true, ', and none is forgotten though all was looked at before'],
] as const) {
  test(`with release-ram no page goes that is still under way${how}`, async () => {
    let asked = 0;
    let mayAsk = !isLazy;
    const released = new Set<number>();
    const early: string[] = [];
    const { guest, destination, source, reached } = setUp({
      pages: [3000],
      preempt,
      // A slow line: what is asked for is answered over the other connection while a write is under way on this one.
      through: (channel) => {
        const write = channel.write.bind(channel);
        channel.write = (bytes, done) => {
          if (destination.isRunning && mayAsk && asked < 20) {
            asked += 1;
            destination.request('block0', 2999 - asked);
          }
          setTimeout(() => write(bytes, done), 3);
        };
        return channel;
      },
      postcopy: {
        isLazy,
        prefetchPages: 0,
        releaseWith: ({ name }, firstPage, pageCount) => {
          for (let page = firstPage; page < firstPage + pageCount; page += 1) {
            released.add(page);
            if (destination.placed(name).content[page]! < 0) {
              early.push(`${name}:${page}`);
            }
          }
        },
      },
    });
    destination.isGathering = true;
    fill(guest);
    const running = source.run();
    source.startPostcopy();
    if (isLazy) {
      await reached('postcopy-active');
      for (let turn = 0; turn < 50; turn += 1) {
        await nextTurn();
      }
      mayAsk = true;
      source.finishPostcopy();
    }
    completed(await running);
    assert.deepEqual(destination.violations, []);
    assert.deepEqual([early, released.size], [[], 3000]);
    assert.ok(asked > 10, `${asked} requests`);
  });
}

// PC-11
test('before the package a broken link gives the guest back, after it never', async () => {
  let before = 0;
  for (let toDestination = 40; toDestination < 1000; toDestination += 41) {
    const { guest, source, statuses } = setUp({ pages: [60], cut: { toDestination } });
    fill(guest);
    const running = source.run();
    source.startPostcopy();
    await until(() => source.state.ended || source.state.value === 'postcopy-paused');
    const isLost = statuses.includes('postcopy-active');
    before += isLost ? 0 : 1;
    source.fail(new Error('given up'));
    assert.equal((await running).status, 'failed');
    assert.equal(guest.running, !isLost);
  }
  assert.ok(before > 0 && before < 24, `${before} before the package`);
});

// PC-11: the package may be on its way in part when its write fails
test('from the first byte of the package on the guest is the destination’s, whatever fails', async () => {
  let isBroken = false;
  const { guest, destination, source, reached } = setUp({
    through: (channel) => {
      const write = channel.write.bind(channel);
      channel.write = (bytes, done) => {
        write(bytes, done);
        if (!isBroken && source.state.value === 'postcopy-active') {
          isBroken = true;
          throw new Error('the system call fails');
        }
      };
      return channel;
    },
  });
  fill(guest);
  const running = source.run();
  source.startPostcopy();
  await reached('postcopy-paused');
  assert.ok(isBroken && !guest.running);
  source.fail(new Error('given up'));
  assert.equal((await running).status, 'failed');
  assert.deepEqual([guest.running, guest.resumes, destination.hasEnded], [false, 0, false]);
});

test('who hears of a pause may give up in that very moment', async () => {
  const { source, status, guest } = setUp({ pages: [60], cut: { toDestination: 30 * PAGE } });
  fill(guest);
  status.changed = () => source.state.value === 'postcopy-paused' && source.fail(new Error('given up'));
  source.startPostcopy();
  assert.equal((await source.run()).status, 'failed');
  assert.equal(guest.resumes, 0);
});
