// Postcopy and its recovery against a destination that notes whatever a real one would not survive. Precopy before the
// switch, stores and requests during it, links that break: the memory at the destination must be the source's at the stop.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { startCpuTimer } from '../../test/cpu-time.js';
import { type Cut, PostcopyDestination } from '../../test/postcopy-destination.js';
import { PAGE, ScriptedGuest, ScriptedHints } from '../../test/source-kit.js';
import { nextTurn, until } from '../../test/until.js';
import type { ByteChannel } from '../channel/channel.js';
import { TOKEN_MARK } from '../format/stream/migration-token.js';
import { pong, receivedBitmap, requestPages, shut } from '../format/stream/return-path.js';
import { RamferryError } from '../memory/errors.js';
import type { RamBlock } from '../memory/ram-block.js';
import { MigrationSource, type MigrationSourceOptions } from './migration-source.js';
import { defaultParameters, type MigrationParameters } from './parameters.js';
import type { PostcopyOptions } from './postcopy.js';
import { PostcopySink } from './postcopy-sink.js';
import type { MigrationReport } from './statistics.js';
import type { MigrationStatus } from './status.js';

interface Setting {
  readonly pages?: readonly number[];
  readonly hostPageSize?: number;
  readonly postcopy?: Partial<PostcopyOptions>;
  readonly parameters?: Partial<MigrationParameters>;
  readonly cut?: Cut;
  readonly stallMs?: number;
  readonly guest?: ScriptedGuest;
  /** The connection as the source gets it. */
  readonly through?: (channel: ByteChannel) => ByteChannel;
  /** Send what is asked for over a second connection. */
  readonly preempt?: boolean;
}

/** A guest, its destination and the engine between them; the switch is ordered at once unless a test waits. */
const setUp = ({
  pages = [60, 20],
  hostPageSize = PAGE,
  postcopy,
  parameters,
  cut,
  stallMs,
  preempt = false,
  through = (channel) => channel,
  ...given
}: Setting = {}) => {
  const guest = given.guest ?? new ScriptedGuest(pages, 2 ** 22, hostPageSize);
  const { blocks } = guest.blocks;
  const destination = new PostcopyDestination(blocks);
  const statuses: MigrationStatus[] = [];
  const status: { changed: () => unknown } = { changed: () => {} };
  const source = new MigrationSource({
    guest,
    sink: new PostcopySink(through(destination.connect(cut)), {
      ...(stallMs !== undefined && { stallMs }),
      ...(preempt && { openPreempt: async () => destination.connectPreempt() }),
    }),
    parameters: { ...defaultParameters, ...parameters },
    postcopy: { prefetchPages: 4, ...postcopy },
    onStatus: (value) => {
      statuses.push(value);
      status.changed();
    },
  } satisfies MigrationSourceOptions);
  const reached = async (wanted: MigrationStatus): Promise<void> => {
    while (source.state.value !== wanted) {
      assert.ok(!source.state.ended, `${wanted} is not reached: ${source.state.value}, ${source.error?.message}`);
      await new Promise<void>((resolve) => {
        status.changed = resolve;
      });
    }
  };
  return { guest, blocks, destination, source, statuses, status, reached };
};

const fill = (guest: ScriptedGuest, everyNth = 1): void => {
  for (const block of guest.blocks.blocks) {
    for (let page = 0; page < block.usedPages; page += everyNth) {
      guest.store(block, page, (page % 255) + 1);
    }
  }
};

/** PC-19: what the guest reads at the destination is what it last wrote at the source. */
const assertArrived = (guest: ScriptedGuest, destination: PostcopyDestination): void => {
  assert.deepEqual(destination.violations, []);
  for (const block of guest.blocks.blocks) {
    for (let page = 0; page < block.usedPages; page += 1) {
      assert.equal(destination.value(block.name, page), guest.load(block, page), `${block.name} page ${page}`);
    }
  }
};

/** Pages that are missing when the destination starts to listen, by block; taken at that step. */
const missingAtListen = (destination: PostcopyDestination, blocks: readonly RamBlock[]): Map<string, boolean[]> => {
  const missing = new Map<string, boolean[]>();
  destination.onListen = () => {
    for (const { name } of blocks) {
      missing.set(
        name,
        Array.from(destination.placed(name).content, (value) => value < 0),
      );
    }
  };
  return missing;
};

const completed = (report: MigrationReport): void => {
  assert.equal(report['error-desc'], undefined);
  assert.equal(report.status, 'completed');
};

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
for (const preempt of [false, true]) {
  test(`with release-ram no page goes that is still under way${preempt ? ', whatever is asked for meanwhile' : ''}`, async () => {
    let asked = 0;
    const released = new Set<number>();
    const early: string[] = [];
    const { guest, destination, source } = setUp({
      pages: [3000],
      preempt,
      // A slow line: what is asked for is answered over the other connection while a write is under way on this one.
      through: (channel) => {
        const write = channel.write.bind(channel);
        channel.write = (bytes, done) => {
          if (destination.isRunning && asked < 20) {
            asked += 1;
            destination.request('block0', 2999 - asked);
          }
          setTimeout(() => write(bytes, done), 3);
        };
        return channel;
      },
      postcopy: {
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
    completed(await running);
    assert.deepEqual(destination.violations, []);
    assert.deepEqual([early, released.size], [[], 3000]);
    assert.ok(asked > 10, `${asked} requests`);
  });
}

// RC-8
test('with release-ram a broken link cannot be mended', async () => {
  const { guest, destination, source, reached } = setUp({
    cut: { toDestination: 40 * PAGE },
    postcopy: { releaseWith: () => {} },
  });
  fill(guest);
  const running = source.run();
  source.startPostcopy();
  await reached('postcopy-paused');
  assert.throws(() => source.recoverPostcopy(async () => destination.connect()), { code: 'RELEASE_RAM' });
  assert.equal(source.state.value, 'postcopy-paused');
  source.fail(new Error('given up'));
  assert.equal((await running).status, 'failed');
});

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

/** Runs a postcopy whose links break as `cuts` say, one after the other; the last link holds. */
const recoverThrough = async (cuts: readonly Cut[], setting: Setting = {}): Promise<MigrationReport> => {
  const { guest, blocks, destination, source, reached } = setUp({ ...setting, ...(cuts[0] && { cut: cuts[0] }) });
  fill(guest, 2);
  let asked = 0;
  destination.onRecord = () => {
    const block = blocks[(asked += 1) % blocks.length]!;
    const page = (asked * 37) % block.usedPages;
    const first = page - (page % (block.hostPageSize / PAGE));
    if (destination.isRunning && asked % 31 === 0 && destination.placed(block.name).content[first]! < 0) {
      destination.request(block.name, first, block.hostPageSize);
    }
  };
  const running = source.run();
  source.startPostcopy();
  for (const cut of [...cuts.slice(1), {}]) {
    await until(() => source.state.ended || source.state.value === 'postcopy-paused');
    if (source.state.ended) {
      break;
    }
    // Lost with the package: no QEMU comes back from there.
    if (!destination.isRunning) {
      source.fail(new Error('given up'));
      return running;
    }
    let connections = 0;
    source.recoverPostcopy(async () => {
      connections += 1;
      return connections === 1 ? destination.connect(cut) : destination.connectPreempt();
    });
    await reached('postcopy-recover-setup').catch(() => {});
    await nextTurn();
  }
  const report = await running;
  completed(report);
  // RC-1, RC-3, RC-5: the destination refuses a page that it has, and would miss one that it has not.
  assertArrived(guest, destination);
  for (const { name, usedPages } of blocks) {
    assert.deepEqual(Array.from(destination.placed(name).placed), new Array(usedPages).fill(1));
  }
  return report;
};

// RC-1, RC-2, RC-3, RC-4, RC-5, RC-6, RC-7, RC-9, RC-11, PC-15
test('links that break at any byte, in either direction, during recovery too: everything arrives once', async () => {
  const cut = fc.oneof(
    fc.record({ toDestination: fc.integer({ min: 1, max: 120 * PAGE }) }),
    fc.record({ toDestination: fc.integer({ min: 1, max: 200 }) }),
    fc.record({ toSource: fc.integer({ min: 1, max: 200 }) }),
  );
  let recoveries = 0;
  await fc.assert(
    fc.asyncProperty(
      fc.array(cut, { minLength: 1, maxLength: 5 }),
      fc.constantFrom(1, 4, 64),
      fc.boolean(),
      async (cuts, hostPages, preempt) => {
        const pages = hostPages === 64 ? [128, 64] : [100, 40, 8];
        const setting = { pages, hostPageSize: hostPages * PAGE, preempt };
        const report = await recoverThrough([{ toDestination: 500 + 60 * PAGE }, ...cuts], setting);
        recoveries += report.ramferry.postcopy!.recoveries;
      },
    ),
    { numRuns: process.env['RAMFERRY_SLOW'] === '1' ? 400 : 60 },
  );
  assert.ok(recoveries > 40, `${recoveries}`);
});

// RC-8, RC-10, PC-4
test('only a paused postcopy is recovered; without a link to take it is paused again; the log rests', async () => {
  const { guest, destination, source, reached } = setUp({ postcopy: { isLazy: true } });
  assert.throws(() => source.recoverPostcopy(async () => destination.connect()), { code: 'NOT_PAUSED' });
  const running = source.run();
  source.startPostcopy();
  await reached('postcopy-active');
  await nextTurn();
  destination.request('block0', 5);
  await until(() => destination.placed('block0').content[5]! >= 0);
  // What is still noted after the stop is not looked at.
  guest.mark(guest.blocks.find('block0')!, 5, 1);
  destination.request('block0', 7);
  await nextTurn();
  source.pausePostcopy();
  await reached('postcopy-paused');
  const before = source.report();
  source.recoverPostcopy(async () => {
    throw new Error('nobody listens');
  });
  await reached('postcopy-recover-setup');
  await reached('postcopy-paused');
  assert.match(source.report()['error-desc']!, /nobody listens/);
  source.recoverPostcopy(async () => destination.connect());
  await reached('postcopy-active');
  source.finishPostcopy();
  const report = await running;
  completed(report);
  assert.deepEqual(report.ramferry.logClears, before.ramferry.logClears);
  assert.equal(report.ram['dirty-sync-count'], before.ram['dirty-sync-count']);
  assertArrived(guest, destination);
});

// RC-5
test('a host page that a broken link has cut in two is sent whole, from its start', async () => {
  const hostPages = 64;
  const { guest, destination, source, reached } = setUp({
    pages: [4 * hostPages],
    hostPageSize: hostPages * PAGE,
    parameters: { maxPostcopyBandwidth: 100 * PAGE },
  });
  fill(guest);
  // The limit makes the first batch end within its host page.
  destination.onRecord = () => source.pausePostcopy();
  const running = source.run();
  source.startPostcopy();
  await reached('postcopy-paused');
  destination.onRecord = () => {};
  source.setParameters({ maxPostcopyBandwidth: 0 });
  assert.ok(destination.bytesIn > PAGE && destination.bytesIn < hostPages * PAGE, `${destination.bytesIn}`);
  source.recoverPostcopy(async () => destination.connect());
  completed(await running);
  assertArrived(guest, destination);
});

// RC-6, RC-7, RC-9: nothing is sent before the last answer of this connection, whatever the ones before have said
test('a recovery waits for every answer, and ends again in a pause if a link breaks meanwhile', async () => {
  const { guest, destination, source, reached } = setUp({ cut: { toDestination: 40 * PAGE } });
  fill(guest);
  const running = source.run();
  source.startPostcopy();
  const pages = (): number => destination.steps.filter((step) => step.startsWith('page')).length;
  for (const answers of ['nothing', 'bitmaps', 'all', 'nothing', 'bitmaps'] as const) {
    await reached('postcopy-paused');
    const before = pages();
    destination.answersInRecovery = answers;
    source.recoverPostcopy(async () => destination.connect({ toDestination: 10 * PAGE }));
    await reached('postcopy-recover');
    if (answers === 'all') {
      await reached('postcopy-active');
      continue;
    }
    for (let turn = 0; turn < 20; turn += 1) {
      await nextTurn();
    }
    assert.deepEqual([source.state.value, pages()], ['postcopy-recover', before]);
    source.pausePostcopy();
  }
  await reached('postcopy-paused');
  destination.answersInRecovery = 'all';
  source.recoverPostcopy(async () => destination.connect());
  completed(await running);
  assertArrived(guest, destination);
});

// RC-6, spec/qemu-wire-format.md 5.5
for (const [what, answer, sentence] of [
  ['a bitmap of another size', receivedBitmap('block0', new Uint8Array(16)), /"block0" has 16 bytes, expected are 8/],
  [
    'a bitmap without its end mark',
    receivedBitmap('block0', new Uint8Array(8)).fill(0, -8),
    /"block0" ends without its end mark/,
  ],
  ['a bitmap of an unknown block', receivedBitmap('elsewhere', new Uint8Array(8)), /"elsewhere", unasked/],
  ['a bitmap twice', Buffer.concat([1, 2].map(() => receivedBitmap('block0', new Uint8Array(8)))), /"block0", unasked/],
  [
    'an acknowledgement that is none',
    Uint8Array.of(0, 6, 0, 4, 0, 0, 0, 0),
    /acknowledges the resume with 0 instead of 1/,
  ],
] as const) {
  test(`a destination that answers a recovery with ${what} is left paused, and can be recovered`, async () => {
    const { guest, destination, source, reached, statuses } = setUp({ cut: { toDestination: 40 * PAGE } });
    fill(guest);
    const running = source.run();
    source.startPostcopy();
    await reached('postcopy-paused');
    destination.answersInRecovery = 'nothing';
    source.recoverPostcopy(async () => destination.connect());
    await reached('postcopy-recover');
    destination.say(answer);
    await reached('postcopy-paused');
    assert.match(source.report()['error-desc']!, sentence);
    destination.answersInRecovery = 'all';
    source.recoverPostcopy(async () => destination.connect());
    completed(await running);
    assertArrived(guest, destination);
    assert.equal(statuses.filter((status) => status === 'postcopy-paused').length, 2);
  });
}

// RC-1, RC-12; spec/qemu-wire-format.md 5.6
test('a source that comes new to an interrupted postcopy sends what is missing, and nothing else', async () => {
  const first = setUp({ cut: { toDestination: 40 * PAGE } });
  const { guest, destination } = first;
  fill(guest);
  const interrupted = first.source.run();
  first.source.startPostcopy();
  await first.reached('postcopy-paused');
  first.source.fail(new Error('the server is gone'));
  await interrupted;
  const source = new MigrationSource({
    guest,
    sink: new PostcopySink(destination.connect()),
    parameters: defaultParameters,
    postcopy: { prefetchPages: 0, recovers: true },
  });
  const report = await source.run();
  completed(report);
  assertArrived(guest, destination);
  assert.ok(report.ram.normal < 60, `${report.ram.normal} pages`);
});

// RD-6
test('what is discarded is out of the send bitmap again after a recovery', async () => {
  const guest = new ScriptedGuest([60]);
  const granule = 16 * PAGE;
  const vmem = guest.blocks.add({ name: 'vmem', usedLength: 8 * granule, discardGranularity: granule });
  vmem.discardManager!.populate(granule, 2 * granule);
  fill(guest);
  const { destination, source, reached } = setUp({ guest, cut: { toDestination: 30 * PAGE } });
  const running = source.run();
  source.startPostcopy();
  await reached('postcopy-paused');
  source.recoverPostcopy(async () => destination.connect());
  completed(await running);
  assert.deepEqual(destination.violations, []);
  const { placed } = destination.placed('vmem');
  assert.deepEqual(
    Array.from(placed),
    Array.from(placed, (_, page) => (page >= 16 && page < 48 ? 1 : 0)),
  );
});
