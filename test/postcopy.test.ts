// Postcopy with our engines at both ends, in one thread: guests whose stores the test makes, guest threads at the destination
// whose accesses the test makes, and links that break where the test says.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { IncomingConnections } from '../src/channel/incoming-connections.js';
import { MigrationDestination } from '../src/destination/migration-destination.js';
import { PostcopyTarget } from '../src/destination/postcopy-target.js';
import type { IncomingReport } from '../src/destination/statistics.js';
import { allocateLoadBarrier } from '../src/dirty-log/load-barrier.js';
import { LoadBarrierReader } from '../src/dirty-log/load-barrier-reader.js';
import { LoadBarrier } from '../src/dirty-log/missing-pages-load-barrier.js';
import { allocateStoreBarrier } from '../src/dirty-log/store-barrier.js';
import { BitmapMemory } from '../src/memory/bitmap-memory.js';
import type { RamBlock } from '../src/memory/ram-block.js';
import { RamBlockList } from '../src/memory/ram-block-list.js';
import { MigrationSource } from '../src/source/migration-source.js';
import { defaultParameters, type MigrationParameters } from '../src/source/parameters.js';
import type { PostcopyOptions } from '../src/source/postcopy.js';
import { PostcopySink } from '../src/source/postcopy-sink.js';
import type { MigrationReport } from '../src/source/statistics.js';
import { type Cut, type Link, link } from './linked-channels.js';
import { randomChoices } from './random.js';
import { PAGE, ScriptedGuest } from './source-kit.js';
import { nextTurn, until } from './until.js';

const CUTS = process.env['RAMFERRY_SLOW'] === '1' ? 200 : 40;
const SEGMENT_BYTES = 2 ** 18;

/** A guest thread at the destination, which the test moves. */
class GuestThread extends LoadBarrierReader {
  /** Touches a page; false if it has to wait for it from now on. */
  touch(block: RamBlock, page: number): boolean {
    if (this.isThere(block, page)) {
      return true;
    }
    this.announce(block, page);
    return false;
  }
}

const THREADS = 3;

/** The guest as it arrives. */
class ArrivingGuest {
  readonly blocks = RamBlockList.create({ bitmaps: BitmapMemory.create(2 ** 24), segmentBytes: SEGMENT_BYTES });
  readonly threads: readonly GuestThread[];
  readonly target: PostcopyTarget;
  /** Pages that were missing when the guest was about to run, by block. */
  readonly missing = new Map<string, boolean[]>();
  /** Called then. */
  onSwitch: () => void = () => {};
  /** How often each page was placed since, by block. */
  readonly placed = new Map<string, Uint8Array>();
  isRunning = false;

  /** `blocks`: what there is of the machine before the source says so. */
  constructor(addBlocks?: (blocks: RamBlockList) => void) {
    const loads = allocateLoadBarrier(THREADS);
    const shared = { ...allocateStoreBarrier('unconditional', THREADS), loads };
    this.threads = Array.from({ length: THREADS }, (_, index) => new GuestThread(loads, index, this.blocks.bitmaps));
    addBlocks?.(this.blocks);
    const missingPages = (): LoadBarrier => {
      for (const block of this.blocks.blocks) {
        const pages = Array.from({ length: block.usedPages }, (_, page) => !this.isReceived(block, page));
        this.missing.set(block.name, pages);
        this.placed.set(block.name, new Uint8Array(block.usedPages));
      }
      this.onSwitch();
      return new LoadBarrier(shared, this.blocks);
    };
    this.target = new PostcopyTarget({
      blocks: this.blocks,
      ...(addBlocks === undefined && { memoryLimit: 2 ** 24 }),
      missingPages,
    });
  }

  isReceived(block: RamBlock, page: number): boolean {
    return this.target.isReceived(block, page);
  }

  block(name: string): RamBlock {
    return this.blocks.find(name)!;
  }

  /** Counts what is placed, without keeping the engine from it. */
  count(): void {
    const { onPlaced } = this.target;
    this.target.onPlaced = (block, pages, count) => {
      for (const page of pages.subarray(0, count)) {
        this.placed.get(block.name)![page]! += 1;
      }
      onPlaced(block, pages, count);
    };
  }
}

interface Setting {
  readonly pages?: readonly number[];
  readonly guest?: ScriptedGuest;
  readonly arriving?: ArrivingGuest;
  readonly postcopy?: Partial<PostcopyOptions>;
  readonly parameters?: Partial<MigrationParameters>;
  /** Where the links break, one after the other; the one after the last holds. */
  readonly cuts?: readonly Cut[];
  /** No connection follows the last one. */
  readonly givesUp?: boolean;
  /** The source dies with its first link, and another one takes over. */
  readonly replaces?: boolean;
}

const setUp = ({
  pages = [150, 40],
  guest = new ScriptedGuest(pages, SEGMENT_BYTES),
  arriving = new ArrivingGuest(),
  postcopy,
  parameters,
  cuts = [],
  givesUp = false,
  replaces = false,
}: Setting = {}) => {
  let connections = 0;
  let isOver = false;
  // So that another source can take over.
  const token = replaces ? new Uint8Array(16).fill(5) : undefined;
  const connect = (): Link => link(cuts[connections++]);
  let current = connect();
  const startSource = (options?: Partial<PostcopyOptions>): MigrationSource =>
    new MigrationSource({
      guest,
      sink: new PostcopySink(current.source, { token }),
      parameters: { ...defaultParameters, ...parameters },
      postcopy: { prefetchPages: 4, ...options },
    });
  const source = startSource(postcopy);
  const destination = new MigrationDestination({
    channel: current.destination,
    target: arriving.target,
    postcopy: {
      run: async () => {
        arriving.isRunning = true;
      },
      connections: new IncomingConnections(async () => {
        await until(() => isOver || current.isBroken());
        if (isOver || (givesUp && connections > cuts.length)) {
          throw new Error('no connection will come');
        }
        await until(() => isOver || source.state.value === 'postcopy-paused');
        current = connect();
        if (replaces) {
          source.fail(new Error('the source died'));
          await sourceEnded;
          void startSource({ recovers: true }).run();
        } else {
          source.recoverPostcopy(async () => current.source);
        }
        return current.destination;
      }),
    },
  });
  arriving.count();
  let sourceEnded: Promise<MigrationReport> | undefined;
  const run = (): Promise<[MigrationReport, IncomingReport]> => {
    sourceEnded = source.run();
    const incoming = destination.run().finally(() => {
      isOver = true;
    });
    return Promise.all([sourceEnded, incoming]);
  };
  return { guest, arriving, source, destination, run, link: () => current };
};

const fill = (guest: ScriptedGuest, everyNth = 1, value = 1): void => {
  for (const block of guest.blocks.blocks) {
    for (let page = 0; page < block.usedPages; page += everyNth) {
      guest.store(block, page, ((page + value) % 255) + 1);
    }
  }
};

/** PC-19: what the guest reads here is what it last wrote there. */
const assertArrived = (guest: ScriptedGuest, arriving: ArrivingGuest): void => {
  for (const block of guest.blocks.blocks) {
    const copy = arriving.block(block.name);
    for (let page = 0; page < block.usedPages; page += 1) {
      assert.equal(copy.read(page * PAGE, 1)[0], guest.load(block, page), `page ${page} of ${block.name}`);
    }
  }
};

const completed = ([outgoing, incoming]: [MigrationReport, IncomingReport]): void => {
  assert.deepEqual([outgoing['error-desc'], incoming['error-desc']], [undefined, undefined]);
  assert.deepEqual([outgoing.status, incoming.status], ['completed', 'completed']);
  assert.equal(incoming.ramferry.postcopy!.duplicates, 0);
};

/** Threads that touch random pages while any arrive. */
const touchWhileArriving = (arriving: ArrivingGuest, next: (below: number) => number): void => {
  const { onPlaced } = arriving.target;
  arriving.target.onPlaced = (block, pages, count) => {
    onPlaced(block, pages, count);
    for (const thread of arriving.threads) {
      const { blocks } = arriving.blocks;
      const touched = blocks[next(blocks.length)]!;
      thread.touch(touched, next(touched.usedPages));
    }
  };
};

// PC-1, PC-5, PC-19
test('switched at any moment: what is stale or never came is missing, and comes once', async () => {
  await fc.assert(
    fc.asyncProperty(fc.nat(12), fc.integer(), async (turns, seed) => {
      const next = randomChoices(seed);
      const { guest, arriving, source, run } = setUp({
        pages: [90, 1, 130],
        postcopy: { prefetchPages: next(20) },
        parameters: { maxBandwidth: 4_000_000, downtimeLimit: 0 },
      });
      arriving.onSwitch = () => {
        for (const block of guest.blocks.blocks) {
          arriving.missing.get(block.name)!.forEach((isMissing, page) => {
            // What is here is what the guest had when it stopped, and what is missing was sent to nobody or is stale.
            const isRight = arriving.block(block.name).read(page * PAGE, 1)[0] === guest.load(block, page);
            assert.ok(isMissing || isRight, `page ${page} of ${block.name}`);
          });
        }
      };
      touchWhileArriving(arriving, next);
      fill(guest, 3);
      const running = run();
      for (let turn = 0; turn < turns; turn += 1) {
        const block = guest.blocks.blocks[next(3)]!;
        guest.store(block, next(block.usedPages), 1 + next(255));
        await nextTurn();
      }
      guest.beforeStop = () => guest.store(guest.blocks.find('block2')!, next(130), 77);
      source.startPostcopy();
      completed(await running);
      assertArrived(guest, arriving);
      for (const [name, placed] of arriving.placed) {
        assert.deepEqual(Array.from(placed), arriving.missing.get(name)!.map(Number), name);
      }
    }),
    { numRuns: 60 },
  );
});

test('a page that a thread waits for comes first, and is asked for once', async () => {
  const { guest, arriving, source, run } = setUp({ postcopy: { prefetchPages: 0, isLazy: true } });
  fill(guest);
  const placed: string[] = [];
  const { onPlaced } = arriving.target;
  arriving.target.onPlaced = (block, pages, count) => {
    onPlaced(block, pages, count);
    placed.push(...Array.from(pages.subarray(0, count), (page) => `${block.name}:${page}`));
  };
  const running = run();
  source.startPostcopy();
  await until(() => arriving.isRunning);
  const [first, second] = arriving.threads;
  assert.equal(first!.touch(arriving.block('block1'), 7), false);
  assert.equal(second!.touch(arriving.block('block1'), 7), false);
  await until(() => placed.length > 0);
  assert.deepEqual(placed, ['block1:7']);
  assert.equal(first!.touch(arriving.block('block1'), 7), true);
  source.finishPostcopy();
  const reports = await running;
  completed(reports);
  assert.equal(reports[1].ramferry.postcopy!.requests, 1);
  assert.equal(reports[0].ram['postcopy-requests'], 1);
  assertArrived(guest, arriving);
});

// RC-1, RC-2, RC-3, RC-6, RC-7, RC-9, RC-11, RC-12
test('links that break at any byte, in either direction, during recovery too: everything arrives once', async () => {
  const next = randomChoices(1);
  let recoveries = 0;
  for (let round = 0; round < CUTS; round += 1) {
    const anywhere = (): Cut => (next(3) === 0 ? { toSource: 1 + next(400) } : { toDestination: 1 + next(120 * PAGE) });
    const early = (): Cut => (next(2) === 0 ? { toSource: 1 + next(60) } : { toDestination: 1 + next(80) });
    const cuts = [anywhere(), ...Array.from({ length: 1 + next(4) }, () => (next(2) === 0 ? early() : anywhere()))];
    const setting = setUp({ cuts, postcopy: { prefetchPages: next(10) } });
    const { guest, arriving, source, destination, run } = setting;
    touchWhileArriving(arriving, next);
    fill(guest, 2);
    const running = run();
    source.startPostcopy();
    await until(() => source.state.ended || /completed|failed/.test(destination.report().status));
    const { status, ramferry } = destination.report();
    if (status === 'failed') {
      // Before the devices had come: the guest is at the source, which does not know whether it may go on.
      assert.equal(arriving.isRunning, false);
    } else if (status === 'completed') {
      assertArrived(guest, arriving);
      assert.equal(ramferry.postcopy!.duplicates, 0);
      recoveries += ramferry.postcopy!.recoveries;
      for (const [name, placed] of arriving.placed) {
        assert.deepEqual(
          Array.from(placed),
          arriving.missing.get(name)!.map(Number),
          `${name}, cuts ${JSON.stringify(cuts)}`,
        );
      }
    }
    // A link that broke under the last message leaves the source paused.
    for (let turn = 0; turn < 50 && !source.state.ended; turn += 1) {
      await nextTurn();
    }
    source.fail(new Error('the test is over'));
    await running;
  }
  assert.ok(recoveries > CUTS);
});

// RC-7
test('what threads wait for is asked for again after the recovery, in the order in which they began to wait', async () => {
  const asked: string[] = [];
  const {
    guest,
    arriving,
    source,
    destination,
    run,
    link: current,
  } = setUp({
    cuts: [{}],
    postcopy: { prefetchPages: 0, isLazy: true, onDemand: ({ blockName, page }) => asked.push(`${blockName}:${page}`) },
  });
  fill(guest);
  const running = run();
  source.startPostcopy();
  await until(() => arriving.isRunning);
  current().break();
  const [one, two, three] = arriving.threads;
  one!.touch(arriving.block('block1'), 30);
  two!.touch(arriving.block('block0'), 5);
  three!.touch(arriving.block('block1'), 2);
  for (let turn = 0; asked.length < 3; turn += 1) {
    assert.ok(turn < 1000, `asked for ${asked.join()}`);
    await nextTurn();
  }
  assert.deepEqual(asked, ['block1:30', 'block0:5', 'block1:2']);
  assert.equal(destination.report().ramferry.postcopy!.recoveries, 1);
  source.finishPostcopy();
  completed(await running);
  assertArrived(guest, arriving);
});

// RC-4
test('a page that comes a second time does not undo what the guest stored to it', async () => {
  const {
    guest,
    arriving,
    source,
    destination,
    run,
    link: current,
  } = setUp({
    cuts: [{}],
    postcopy: { prefetchPages: 0, isLazy: true },
  });
  fill(guest);
  const running = run();
  source.startPostcopy();
  await until(() => arriving.isRunning);
  const [block] = arriving.blocks.blocks;
  arriving.threads[0]!.touch(block!, 9);
  await until(() => arriving.isReceived(block!, 9));
  block!.write(9 * PAGE, Uint8Array.of(200));
  // A source that is told less than is true sends it again.
  const { receivedBitmap } = arriving.target;
  arriving.target.receivedBitmap = (announced) =>
    new Uint8Array(receivedBitmap.call(arriving.target, announced).length);
  current().break();
  source.finishPostcopy();
  await running;
  assert.equal(destination.report().status, 'completed');
  assert.equal(block!.read(9 * PAGE, 1)[0], 200);
  assert.equal(destination.report().ramferry.postcopy!.duplicates, 1);
});

// RD-6, RD-16, RD-25
test('discarded ranges are never sent or waited for, also after a recovery', async () => {
  const GRANULE = 64 * PAGE;
  class PluggedGuest extends ScriptedGuest {
    constructor() {
      super([40], SEGMENT_BYTES);
      this.blocks.add({ name: 'vmem', usedLength: 4 * GRANULE, discardGranularity: GRANULE });
      this.blocks.find('vmem')!.discardManager!.populate(GRANULE, GRANULE);
    }
  }
  const guest = new PluggedGuest();
  fill(guest, 2);
  const arriving = new ArrivingGuest((blocks) => {
    blocks.add({ name: 'block0', usedLength: 40 * PAGE });
    blocks.add({ name: 'vmem', usedLength: 4 * GRANULE, discardGranularity: GRANULE });
    blocks.find('vmem')!.discardManager!.populate(GRANULE, GRANULE);
  });
  const { source, run, link: current } = setUp({ guest, arriving, cuts: [{}], postcopy: { isLazy: true } });
  const running = run();
  source.startPostcopy();
  await until(() => arriving.isRunning);
  const vmem = arriving.block('vmem');
  assert.equal(arriving.threads[0]!.touch(vmem, 3), true);
  assert.equal(arriving.threads[0]!.touch(vmem, 64), false);
  current().break();
  source.finishPostcopy();
  const reports = await running;
  completed(reports);
  assert.equal(reports[1].ramferry.postcopy!.requests, 1);
  const placed = Array.from(arriving.placed.get('vmem')!);
  assert.deepEqual(
    placed,
    placed.map((_, page) => (page >= 64 && page < 128 ? 1 : 0)),
  );
  assert.equal(vmem.read(64 * PAGE, 1)[0], guest.load(guest.blocks.find('vmem')!, 64));
});

test('a block that only the destination has stays what it is', async () => {
  const guest = new ScriptedGuest([40], SEGMENT_BYTES);
  fill(guest);
  const arriving = new ArrivingGuest((blocks) => {
    blocks.add({ name: 'block0', usedLength: 40 * PAGE });
    blocks.add({ name: 'local', usedLength: 4 * PAGE });
  });
  const local = arriving.block('local');
  local.write(2 * PAGE, Uint8Array.of(5));
  const { source, run } = setUp({ guest, arriving });
  arriving.onSwitch = () => assert.equal(arriving.isReceived(local, 2), true);
  const running = run();
  source.startPostcopy();
  completed(await running);
  assertArrived(guest, arriving);
  assert.equal(local.read(2 * PAGE, 1)[0], 5);
});

test('given up: who waits for a page ends, and nothing runs on with memory that it does not have', async () => {
  const {
    guest,
    arriving,
    source,
    destination,
    run,
    link: current,
  } = setUp({
    givesUp: true,
    postcopy: { isLazy: true },
  });
  fill(guest);
  const running = run();
  source.startPostcopy();
  await until(() => arriving.isRunning);
  current().break();
  await until(() => destination.report().status === 'failed');
  const isLost = { code: 'GUEST_MEMORY_LOST' };
  assert.throws(() => arriving.threads[0]!.beforeAccess(arriving.block('block0'), 3), isLost);
  source.fail(new Error('the test is over'));
  const [outgoing, incoming] = await running;
  assert.deepEqual([outgoing.status, incoming.status], ['failed', 'failed']);
});

test('garbage on the line is a broken link: the guest runs on, and the next connection brings the rest', async () => {
  const {
    guest,
    arriving,
    source,
    destination,
    run,
    link: current,
  } = setUp({ cuts: [{}], postcopy: { isLazy: true } });
  fill(guest);
  const running = run();
  source.startPostcopy();
  await until(() => arriving.isRunning);
  arriving.threads[0]!.touch(arriving.block('block0'), 100);
  await until(() => arriving.isReceived(arriving.block('block0'), 100));
  current().inject(new Uint8Array(64).fill(0xee));
  await until(() => destination.report().ramferry.postcopy!.recoveries > 0);
  source.finishPostcopy();
  completed(await running);
  assertArrived(guest, arriving);
});

// RC-3: who sends the rest need not be who sent the first part
test('a source that is gone is replaced by another one that has the memory', async () => {
  const {
    guest,
    arriving,
    source,
    destination,
    run,
    link: current,
  } = setUp({
    cuts: [{}],
    postcopy: { isLazy: true },
    replaces: true,
  });
  fill(guest);
  const running = run();
  source.startPostcopy();
  await until(() => arriving.isRunning);
  arriving.threads[0]!.touch(arriving.block('block0'), 3);
  await until(() => arriving.isReceived(arriving.block('block0'), 3));
  arriving.threads[1]!.touch(arriving.block('block1'), 5);
  current().break();
  assert.equal((await running)[0].status, 'failed');
  assert.equal(destination.report().status, 'completed');
  assert.equal(destination.report().ramferry.postcopy!.duplicates, 0);
  assertArrived(guest, arriving);
});

test('a guest whose pages are still to come is neither migrated nor snapshotted; afterwards it is', async () => {
  const { guest, arriving, source, run } = setUp();
  fill(guest);
  const attempts: string[] = [];
  arriving.onSwitch = () => {
    for (const purpose of ['migration', 'backgroundSnapshot', 'save'] as const) {
      assert.throws(() => arriving.blocks.claim(purpose), {
        code: 'GUEST_BUSY',
        message: /while an incoming migration of the guest is under way/,
      });
      attempts.push(purpose);
    }
  };
  const running = run();
  source.startPostcopy();
  const [sent, received] = await running;
  assert.deepEqual([sent.status, received.status, attempts.length], ['completed', 'completed', 3]);
  arriving.blocks.claim('migration').release();
});
