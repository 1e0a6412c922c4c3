// Which pages leave in which order behind the switch to postcopy: those that are asked for, what comes along, and the rest.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { assertArrived, completed, fill, type Setting, setUp } from '../../test/postcopy-kit.js';
import { PAGE, ScriptedGuest } from '../../test/source-kit.js';
import { nextTurn, until } from '../../test/until.js';
import type { RamferryError } from '../memory/errors.js';
import type { RamBlock } from '../memory/ram-block.js';

// PC-7, PC-8, PC-17, PC-18
test('what is asked for comes at once while the background is held back, and asking twice sends nothing', async () => {
  const { guest, destination, source, reached } = setUp({
    pages: [400],
    parameters: { maxPostcopyBandwidth: 20 * PAGE },
    postcopy: { prefetchPages: 0 },
  });
  fill(guest);
  const running = source.run();
  source.startPostcopy();
  await reached('postcopy-active');
  const started = performance.now();
  const wanted = Array.from({ length: 100 }, (_, index) => 399 - index);
  for (const page of wanted) {
    const arrived = new Promise<void>((resolve) => {
      destination.onPage = (_name, placed) => placed === page && resolve();
    });
    // The source has come to rest, as far as its background lets it.
    for (let turn = 0; turn < 6; turn += 1) {
      await nextTurn();
    }
    destination.request('block0', page);
    await arrived;
    for (let turn = 0; turn < 6; turn += 1) {
      await nextTurn();
    }
    destination.request('block0', page);
  }
  // At the limit of the background, 100 pages would take 5 s.
  assert.ok(performance.now() - started < 4000, `${performance.now() - started} ms`);
  assert.ok(destination.steps.filter((step) => step.startsWith('page')).length < 140);
  source.setParameters({ maxPostcopyBandwidth: 0 });
  const report = await running;
  completed(report);
  assertArrived(guest, destination);
  assert.equal(report.ram['postcopy-requests'], 200);
  assert.equal(report.ramferry.postcopy?.demands, 100);
  assert.ok(report.ramferry.postcopy!.serviceMs!.p50 <= report.ramferry.postcopy!.serviceMs!.max);
});

// PC-8, PC-15: what the main connection is busy with does not matter
test('with a preempt channel, a page comes although nothing else does, alone; what is behind it follows elsewhere', async () => {
  const { guest, destination, source, reached } = setUp({
    pages: [400],
    preempt: true,
    postcopy: { isLazy: true, prefetchPages: 8 },
  });
  fill(guest);
  const running = source.run();
  source.startPostcopy();
  await reached('postcopy-active');
  const arrived: number[] = [];
  destination.onPage = (_name, page) => arrived.push(page);
  const settled = async (): Promise<void> => {
    for (let turn = 0; turn < 20; turn += 1) {
      await nextTurn();
    }
  };
  destination.request('block0', 100);
  await settled();
  assert.deepEqual(
    [arrived.toSorted((a, b) => a - b), destination.preemptPages],
    [[...Array(9)].map((_, i) => 100 + i), 1],
  );
  destination.isDeaf = true;
  const last = [300, 200, 320, 310];
  for (const page of last) {
    destination.request('block0', page);
    await settled();
  }
  assert.deepEqual(arrived.slice(9), last);
  assert.equal(destination.preemptPages, 5);
  assert.deepEqual(destination.violations, []);
  source.fail(new Error('the test is over'));
  await running;
});

// spec/qemu-wire-format.md 7.7: the destination confirms when it has got what it asked for
for (const [end, pagesBehind] of [
  ['until the destination has what it asked for', 2],
  ['but not over the main one when it closes it', 1],
] as const) {
  test(`zero pages that were left out are sent behind the end over the preempt channel, ${end}`, async () => {
    class AlmostEmptyGuest extends ScriptedGuest {
      contentBitmap(block: RamBlock): number {
        const address = this.blocks.bitmaps.allocate(block.usedPages);
        this.blocks.bitmaps.kernels.setRange(address, 3, 1);
        return address;
      }
    }
    const { destination, source } = setUp({ guest: new AlmostEmptyGuest([40]), preempt: true });
    const endStream = destination.end.bind(destination);
    destination.end = () => {
      destination.request('block0', 7);
      destination.request('block0', 30);
      endStream();
    };
    destination.onPage = () => {
      if (destination.hasEnded && pagesBehind === 1) {
        destination.closePreempt();
      }
    };
    source.startPostcopy();
    completed(await source.run());
    for (let turn = 0; turn < 5; turn += 1) {
      await nextTurn();
    }
    assert.deepEqual(destination.violations, []);
    assert.deepEqual([destination.hasEnded, destination.preemptPages], [true, pagesBehind]);
  });
}

// PC-11
test('a destination that wants no preempt channel leaves the guest at the source, and is named', async () => {
  const { guest, destination, source } = setUp({ preempt: true });
  destination.acceptsPreempt = false;
  source.startPostcopy();
  const { status } = await source.run();
  assert.equal(status, 'failed');
  assert.match(source.error!.message, /^The destination test:destination has no preempt channel for us\.$/);
  assert.match((source.error as RamferryError).hint!, /postcopy-preempt/);
  assert.deepEqual([guest.running, destination.isListening], [true, false]);
});

// spec/qemu-wire-format.md 7.9 item 6: QEMU deadlocks on an end that comes while its devices load
test('while the devices load what they ask for is sent, nothing else, and no end', async () => {
  const { guest, blocks, destination, source } = setUp();
  destination.answersLoaded = false;
  const running = source.run();
  source.startPostcopy();
  await until(() => destination.isListening);
  const sent = (): string[] => destination.steps.filter((step) => step.startsWith('page'));
  const settled = async (): Promise<void> => {
    for (let turn = 0; turn < 20; turn += 1) {
      await nextTurn();
    }
  };
  await settled();
  assert.deepEqual(sent(), []);
  destination.request('block1', 3);
  await until(() => sent().length > 0);
  await settled();
  assert.deepEqual(sent(), ['page block1:3', 'page block1:4', 'page block1:5', 'page block1:6', 'page block1:7']);
  for (const { name, usedPages } of blocks) {
    for (let page = 0; page < usedPages; page += 1) {
      if (destination.placed(name).content[page]! < 0) {
        destination.request(name, page);
      }
    }
  }
  await until(() => sent().length >= 80);
  await settled();
  assert.equal(destination.hasEnded, false);
  destination.load();
  completed(await running);
  assertArrived(guest, destination);
});

test('a lazy source sends what is asked for and the first pages, until it shall finish', async () => {
  const firstPages = [
    { blockName: 'block0', page: 7 },
    { blockName: 'nowhere', page: 0 },
    { blockName: 'block1', page: 10_000 },
  ];
  const asked: string[] = [];
  const { guest, destination, source, reached } = setUp({
    postcopy: {
      isLazy: true,
      prefetchPages: 1,
      firstPages,
      onDemand: ({ blockName, page }) => asked.push(`${blockName}:${page}`),
    },
  });
  fill(guest);
  const running = source.run();
  source.startPostcopy();
  await reached('postcopy-active');
  destination.request('block1', 3);
  await until(() => destination.placed('block1').content[4]! >= 0);
  for (let turn = 0; turn < 20; turn += 1) {
    await nextTurn();
  }
  const pages = destination.steps.filter((step) => step.startsWith('page')).sort();
  assert.deepEqual(pages, ['page block0:7', 'page block0:8', 'page block1:3', 'page block1:4']);
  assert.deepEqual(asked, ['block1:3']);
  source.finishPostcopy();
  completed(await running);
  assertArrived(guest, destination);
});

// PC-6
for (const [preempt, how] of [
  [false, ''],
  [true, ', on the preempt channel'],
] as const) {
  test(`a lazy source sends a host page to its end, however long that takes${how}`, async () => {
    // Two batches and more.
    const hostPages = 1024;
    const { guest, destination, source, reached } = setUp({
      pages: [2 * hostPages],
      hostPageSize: hostPages * PAGE,
      preempt,
      postcopy: { isLazy: true, prefetchPages: 0 },
    });
    fill(guest);
    const running = source.run();
    source.startPostcopy();
    await reached('postcopy-active');
    // A run of the loop takes 50 ms.
    destination.onRecord = () => {
      for (const until = performance.now() + 0.3; performance.now() < until; ) {}
    };
    destination.request('block0', hostPages, hostPages * PAGE);
    for (let turn = 0; destination.placed('block0').content[hostPages]! < 0; turn += 1) {
      assert.ok(turn < 10_000);
      await nextTurn();
    }
    destination.onRecord = () => {};
    source.finishPostcopy();
    completed(await running);
    assertArrived(guest, destination);
  });
}

// PC-6
for (const preempt of [false, true]) {
  test(`what is asked for amid a host page waits for its rest${preempt ? ', but for the preempt channel' : ''}`, async () => {
    const hostPages = 512;
    const { guest, destination, source } = setUp({
      pages: [3 * hostPages, hostPages],
      hostPageSize: hostPages * PAGE,
      preempt,
      postcopy: { prefetchPages: 0 },
    });
    fill(guest);
    const order: string[] = [];
    destination.onPage = (name, page) => page % hostPages === 0 && order.push(`${name}:${page / hostPages}`);
    let asked = false;
    destination.onRecord = (page) => {
      // The second host page of the first block: the other one has none.
      if (destination.isListening && page === hostPages + 70 && !asked) {
        asked = true;
        destination.request('block1', 0, hostPages * PAGE);
      }
    };
    const running = source.run();
    source.startPostcopy();
    completed(await running);
    assertArrived(guest, destination);
    const sorted = preempt ? order.toSorted() : order;
    assert.ok(asked);
    assert.deepEqual(
      sorted,
      preempt ? ['block0:0', 'block0:1', 'block0:2', 'block1:0'] : ['block0:0', 'block0:1', 'block1:0', 'block0:2'],
    );
  });
}

// PC-18 comes after it: not even what is asked for may leave, since the guest would run.
test('a held guest gets the pages that its devices need, alone, and no other before it is released', async () => {
  let hasLoaded = false;
  const { guest, destination, source, reached } = setUp({
    postcopy: { isHeld: true, firstPages: [{ blockName: 'block0', page: 9 }], onLoaded: () => (hasLoaded = true) },
  });
  fill(guest);
  destination.answersLoaded = false;
  const pages = (): string[] => destination.steps.filter((step) => step.startsWith('page'));
  const turns = async (): Promise<void> => {
    for (let turn = 0; turn < 20; turn += 1) {
      await nextTurn();
    }
  };
  const running = source.run();
  source.startPostcopy();
  await reached('postcopy-active');
  await turns();
  assert.deepEqual(pages(), []);
  destination.request('block1', 3);
  await turns();
  assert.deepEqual([pages(), hasLoaded], [['page block1:3'], false]);
  destination.load();
  destination.request('block0', 40);
  await turns();
  destination.request('block0', 50);
  await turns();
  assert.deepEqual([pages(), hasLoaded, destination.isRunning], [['page block1:3'], true, true]);
  source.releasePostcopy();
  completed(await running);
  assert.equal(pages()[1], 'page block0:40');
  assertArrived(guest, destination);
});

/** Asks for a page of block0 and then for one of block1, as soon as the destination listens: the pages that came between them. */
const sentBetween = async (page: number, setting: Setting): Promise<string[]> => {
  const { guest, destination, source, reached } = setUp({ pages: [1200, 8], ...setting });
  fill(guest);
  const pages: string[] = [];
  destination.onPage = (name, placed) => pages.push(`${name}:${placed}`);
  destination.onListen = () => {
    destination.request('block0', page);
    destination.request('block1', 5);
  };
  const running = source.run();
  source.startPostcopy();
  await reached('postcopy-active');
  await until(() => pages.includes('block1:5'));
  source.setParameters({ maxPostcopyBandwidth: 0 });
  source.finishPostcopy();
  completed(await running);
  assertArrived(guest, destination);
  return pages.slice(pages.indexOf(`block0:${page}`) + 1, pages.indexOf('block1:5'));
};

// PC-8, PC-18
test('a page asked for as last time brings what was asked for next then, up to a bound and within the limit', async () => {
  // Last time: every third page, from the last one down; in between the background came by.
  const firstPages = Array.from({ length: 400 }, (_, index) => ({ blockName: 'block0', page: (399 - index) * 3 }));
  for (const maxPostcopyBandwidth of [0, 20 * PAGE]) {
    const between = await sentBetween(900, {
      postcopy: { isLazy: true, prefetchPages: 0, firstPages },
      parameters: { maxPostcopyBandwidth },
    });
    const [least, most] = maxPostcopyBandwidth > 0 ? [0, 20] : [256, 258];
    assert.ok(between.length >= least && between.length <= most, `${between.length}`);
    const next = Array.from(
      { length: between.length },
      (_, index) => `block0:${900 - 3 * Math.floor((index + 1) / 3) + ((index + 1) % 3)}`,
    );
    assert.deepEqual(between, next);
  }
});

// PC-8, PC-18
test('a page that nobody asked for last time brings more of its kind, unless only what is asked for may leave', async () => {
  const firstPages = [{ blockName: 'block1', page: 0 }];
  for (const [isLazy, maxPostcopyBandwidth, least, most] of [
    [false, 0, 256, 256],
    [false, 20 * PAGE, 0, 20],
    [true, 0, 0, 0],
  ] as const) {
    const between = await sentBetween(700, {
      postcopy: { isLazy, prefetchPages: 0, firstPages },
      parameters: { maxPostcopyBandwidth },
    });
    assert.ok(between.length >= least && between.length <= most, `${between.length}`);
    assert.deepEqual(
      between,
      Array.from({ length: between.length }, (_, index) => `block0:${701 + index}`),
    );
  }
});

test('pages known to be zero are sent to who waits for one, and to nobody else', async () => {
  class HalfEmptyGuest extends ScriptedGuest {
    contentBitmap(block: RamBlock): number {
      const address = this.blocks.bitmaps.allocate(block.usedPages);
      for (let page = 0; page < block.usedPages; page += 2) {
        this.blocks.bitmaps.kernels.setRange(address, page, 1);
      }
      return address;
    }
  }
  const guest = new HalfEmptyGuest([40]);
  fill(guest, 2);
  const { destination, source, reached } = setUp({ guest, postcopy: { prefetchPages: 8 } });
  const running = source.run();
  source.startPostcopy();
  await reached('postcopy-active');
  destination.request('block0', 21);
  destination.request('block0', 21);
  completed(await running);
  assertArrived(guest, destination);
  const { placed } = destination.placed('block0');
  assert.deepEqual(
    Array.from(placed),
    Array.from(placed, (_, page) => (page % 2 === 0 || page === 21 ? 1 : 0)),
  );
});
