// One guest, one migration, and its blocks stay as they are: the engine in the calling thread. Over threads:
// src/migration/migration.test.ts, src/memory/guest-claim.test.ts.

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { PostcopyDestination } from '../../test/postcopy-destination.js';
import { RecordingSink, ScriptedGuest, ScriptedHints } from '../../test/source-kit.js';
import type { DirtyLog } from '../dirty-log/dirty-log.js';
import type { WriteProtector } from '../dirty-log/write-protector.js';
import type { RamferryError } from '../memory/errors.js';
import { RamBlockList } from '../memory/ram-block-list.js';
import { type Clock, systemClock } from './clock.js';
import { MigrationSource, type MigrationSourceOptions } from './migration-source.js';
import { defaultParameters } from './parameters.js';
import { PostcopySink } from './postcopy-sink.js';

const PAGE = 4096;

const source = (
  guest: ScriptedGuest,
  sink: RecordingSink,
  options: Partial<MigrationSourceOptions> = {},
): MigrationSource => new MigrationSource({ guest, sink, parameters: defaultParameters, ...options });

const codeOf = (engine: MigrationSource): string | undefined => (engine.error as RamferryError | undefined)?.code;

/** Holds nobody up. */
const protector = (): WriteProtector => ({
  arm: () => {},
  protect: () => {},
  nextUrgent: () => undefined,
  claim: ({ count }) => count,
  release: () => {},
  stop: () => {},
});

const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

describe('a second migration', () => {
  for (const [name, first, second, holder] of [
    ['of a migrated guest', {}, {}, 'a migration'],
    ['of a guest that is snapshotted', { snapshotWith: protector() }, {}, 'a background snapshot'],
    ['that is a snapshot of a migrated guest', {}, { snapshotWith: protector() }, 'a migration'],
  ] as const) {
    for (const through of ['the same list', 'a copy']) {
      test(`${name}, through ${through}, is refused by name and touches nothing`, { timeout: 60_000 }, async () => {
        const guest = new ScriptedGuest([300]);
        guest.blocks.add({ name: 'vmem', usedLength: 64 * PAGE, discardGranularity: 16 * PAGE });
        const sink = new RecordingSink();
        sink.limit = 50;
        sink.hangIn = 'flush';
        const engine = source(guest, sink, first);
        const running = engine.run();
        await turn();

        const other = new ScriptedGuest([]);
        const blocks = through === 'a copy' ? RamBlockList.attach(guest.blocks.share()) : guest.blocks;
        const touched: string[] = [];
        const log = new Proxy(guest.log, { get: (_log, method) => () => touched.push(String(method)) });
        const hints = new ScriptedHints();
        Object.assign(other, {
          blocks,
          log,
          hints,
          resume: () => touched.push('resume'),
          throttle: () => touched.push('throttle'),
        });
        const before = guest.blocks.bitmaps.words.slice();
        const refused = source(other, new RecordingSink(), second);
        const report = await refused.run();
        assert.deepEqual([report.status, codeOf(refused)], ['failed', 'GUEST_BUSY']);
        assert.match(refused.error!.message, new RegExp(`while ${holder} of the guest is under way`));
        assert.deepEqual([touched, hints.calls], [[], []]);
        // But for the count of those who asked.
        const changed = before.reduce(
          (count, word, at) => count + (word === guest.blocks.bitmaps.words[at] ? 0 : 1),
          0,
        );
        assert.ok(changed <= 1, `${changed} words of the bitmaps' memory changed`);

        sink.hangIn = undefined;
        engine.cancel();
        assert.equal((await running).status, 'cancelled');
        assert.equal(guest.blocks.claimedFor, undefined);
        const last = new RecordingSink();
        assert.equal((await source(guest, last).run()).status, 'completed');
      });
    }
  }

  test('is free to start after one whose clean-up failed', async () => {
    const guest = new ScriptedGuest([30]);
    const { stop } = guest.log;
    guest.log.stop = () => {
      throw new Error('no');
    };
    await source(guest, new RecordingSink())
      .run()
      .catch(() => {});
    assert.equal(guest.blocks.claimedFor, undefined);
    guest.log.stop = stop;
    guest.running = true;
    assert.equal((await source(guest, new RecordingSink()).run()).status, 'completed');
  });

  test('an engine whose claim was taken from outside ends by name, and leaves the guest to whoever took it', async () => {
    const guest = new ScriptedGuest([600]);
    const { token } = guest.blocks.claim('migration');
    const sink = new RecordingSink();
    sink.limit = 50;
    const engine = source(guest, sink, { claim: token });
    const stops: string[] = [];
    guest.log.stop = () => stops.push('log');
    sink.afterRead = () => {
      if (guest.blocks.claimedFor === 'migration') {
        guest.blocks.adoptClaim(token).release();
        guest.blocks.claim('save');
      }
    };
    assert.equal((await engine.run()).status, 'failed');
    assert.deepEqual([codeOf(engine), stops, guest.resumes], ['CLAIM_LOST', [], 0]);
    assert.equal(guest.blocks.claimedFor, 'save');
  });
});

describe("the guest's blocks", () => {
  /** A guest with a block that can be resized, and an engine that calls `change` after a few batches. */
  const changing = (change: (guest: ScriptedGuest) => void, options: Partial<MigrationSourceOptions> = {}) => {
    const guest = new ScriptedGuest([300, 300, 200]);
    guest.blocks.add({ name: 'dimm', usedLength: 100 * PAGE, maxLength: 200 * PAGE });
    const sink = new RecordingSink();
    sink.limit = 50;
    let batches = 0;
    sink.afterRead = () => {
      batches += 1;
      if (batches === 3) {
        change(guest);
      }
    };
    let turns = 0;
    // Ends what would go on for ever.
    const clock: Clock = {
      ...systemClock,
      yield: async () => {
        turns += 1;
        if (turns === 500) {
          engine.fail(new Error('endless'));
        }
        await turn();
      },
    };
    const engine = source(guest, sink, { clock, ...options });
    return { guest, sink, engine };
  };

  for (const [name, options] of [
    ['a migration', (): Partial<MigrationSourceOptions> => ({})],
    ['a background snapshot', (): Partial<MigrationSourceOptions> => ({ snapshotWith: protector() })],
  ] as const) {
    // DM-23: ram_mig_ram_block_resized
    for (const pages of [50, 150]) {
      test(`a resize to ${pages} pages fails ${name} by name, in its own thread too`, { timeout: 60_000 }, async () => {
        const { guest, engine } = changing(
          ({ blocks }) => blocks.resize(blocks.find('dimm')!, pages * PAGE),
          options(),
        );
        const report = await engine.run();
        assert.equal(report.status, 'failed');
        assert.match(engine.error!.message, /^RAM block dimm was resized during the migration\./);
        assert.deepEqual(
          [codeOf(engine), guest.running, guest.stops],
          ['GEOMETRY_CHANGED', true, options().snapshotWith ? 1 : 0],
        );
        assert.equal(guest.blocks.claimedFor, undefined);
        assert.equal(guest.blocks.find('dimm')!.usedPages, pages);
      });
    }

    test(`a plug and an unplug are refused, and ${name} completes with the blocks that it began with`, async () => {
      const { guest, sink, engine } = changing(({ blocks }) => {
        const refused = {
          code: 'GUEST_BUSY',
          message: new RegExp(`cannot be (un)?plugged while ${name} of the guest`),
        };
        const { version, blocks: before } = blocks;
        assert.throws(() => blocks.add({ name: 'dimm0', usedLength: 64 * PAGE }), refused);
        assert.throws(() => blocks.remove(blocks.blocks[1]!), refused);
        assert.deepEqual([blocks.version, blocks.blocks], [version, before]);
      }, options());
      const report = await engine.run();
      assert.equal(report['error-desc'], undefined);
      assert.equal(sink.delivered.size, 900);
      guest.blocks.add({ name: 'dimm0', usedLength: 64 * PAGE });
    });
  }

  test('an own guest whose list becomes another one fails the migration by name', async () => {
    const { guest, engine } = changing((changed) => {
      const blocks = RamBlockList.attach(changed.blocks.share());
      Object.assign(changed, { blocks });
    });
    const { log } = guest;
    assert.equal((await engine.run()).status, 'failed');
    assert.equal(codeOf(engine), 'GEOMETRY_CHANGED');
    assert.equal(guest.log, log);
  });

  test('an own guest that keeps a list of its own making, with a block more, fails the migration by name', async () => {
    const { engine } = changing(({ blocks }) => {
      const more = new ScriptedGuest([10]).blocks.blocks[0]!;
      const grown = [...blocks.blocks, Object.assign(Object.create(more), { name: 'hotplugged' })];
      Object.defineProperty(blocks, 'blocks', { get: () => grown });
    });
    assert.equal((await engine.run()).status, 'failed');
    assert.deepEqual([codeOf(engine), (engine.error as RamferryError).value], ['GEOMETRY_CHANGED', 'hotplugged']);
  });

  // G-7: after the last sync nothing may change any more
  test('a resize just before the stop fails the migration, one after it is refused', async () => {
    const guest = new ScriptedGuest([300]);
    const dimm = guest.blocks.add({ name: 'dimm', usedLength: 100 * PAGE, maxLength: 200 * PAGE });
    guest.beforeStop = () => guest.blocks.resize(dimm, 150 * PAGE);
    const failing = source(guest, new RecordingSink());
    assert.equal((await failing.run()).status, 'failed');
    assert.deepEqual([codeOf(failing), guest.running], ['GEOMETRY_CHANGED', true]);

    guest.beforeStop = () => {};
    const sink = new RecordingSink();
    const { saveDevices } = guest;
    guest.saveDevices = () => {
      assert.throws(() => guest.blocks.resize(dimm, 100 * PAGE), { code: 'GUEST_BUSY' });
      return saveDevices.call(guest);
    };
    assert.equal((await source(guest, sink).run())['error-desc'], undefined);
    assert.deepEqual([dimm.usedPages, sink.delivered.size], [150, 450]);
  });

  test('a resize wakes an engine that waits for a destination', { timeout: 60_000 }, async () => {
    const guest = new ScriptedGuest([300]);
    const dimm = guest.blocks.add({ name: 'dimm', usedLength: 100 * PAGE, maxLength: 200 * PAGE });
    const sink = new RecordingSink();
    sink.hangIn = 'ready';
    const engine = source(guest, sink);
    const running = engine.run();
    await turn();
    guest.blocks.resize(dimm, 150 * PAGE);
    assert.equal((await running).status, 'failed');
    assert.equal(codeOf(engine), 'GEOMETRY_CHANGED');
  });
});

// G-2
describe('a send bitmap whose counter says something else fails the migration at once', () => {
  const PAGES = 600;

  /** Somebody else's hands in a bitmap that is the engine's own. */
  const tamper = (guest: ScriptedGuest, kind: 'pages lost' | 'pages left'): void => {
    const [block] = guest.blocks.blocks;
    const { kernels } = guest.blocks.bitmaps;
    if (kind === 'pages lost') {
      kernels.testAndClearRange(block.bitmaps.send, PAGES - 10, 10);
    } else {
      kernels.setRange(block.bitmaps.send, 0, 1);
    }
  };

  for (const kind of ['pages lost', 'pages left'] as const) {
    for (const loop of ['active', 'last', 'snapshot'] as const) {
      test(`${kind}, in the loop ${loop}`, { timeout: 60_000 }, async () => {
        const guest = new ScriptedGuest([PAGES]);
        const sink = new RecordingSink();
        sink.limit = loop === 'last' ? 5 : 50;
        let isDone = false;
        const once = (): void => {
          if (!isDone && (loop !== 'last' || !guest.running)) {
            isDone = true;
            tamper(guest, kind);
          }
        };
        sink.afterRead = once;
        let [turns, now] = [0, 0];
        const engine = source(guest, sink, {
          clock: {
            ...systemClock,
            // A batch at a time: nothing is looked for when the counter has come to 0.
            ...(loop === 'snapshot' && { now: () => (now += 60) }),
            yield: async () => {
              turns += 1;
              if (turns === 500) {
                engine.fail(new Error('endless'));
              }
              await turn();
            },
          },
          ...(loop === 'snapshot' && { snapshotWith: protector() }),
        });
        if (loop === 'last') {
          // Something is left for the switchover, beside what is tampered with.
          guest.beforeStop = () => {
            for (let page = PAGES - 10; page < PAGES; page += 1) {
              guest.store(guest.blocks.blocks[0]!, page, 5);
            }
            guest.store(guest.blocks.blocks[0]!, 77, 5);
          };
        }
        const report = await engine.run();
        assert.equal(isDone, true);
        assert.equal(report.status, 'failed');
        assert.deepEqual(
          [codeOf(engine), guest.running, sink.calls.includes('devices')],
          ['COUNTER_MISMATCH', true, false],
        );
      });
    }
  }

  test('in postcopy the link is given up, and a recovery counts anew', { timeout: 60_000 }, async () => {
    const guest = new ScriptedGuest([PAGES]);
    const [block] = guest.blocks.blocks;
    for (let page = 0; page < PAGES; page += 1) {
      guest.store(block, page, 9);
    }
    const destination = new PostcopyDestination(guest.blocks.blocks);
    let isDone = false;
    destination.onPage = (_name, page) => {
      if (!isDone && page < PAGES - 10) {
        isDone = true;
        tamper(guest, 'pages lost');
      }
    };
    const pauses: string[] = [];
    const engine = new MigrationSource({
      guest,
      sink: new PostcopySink(destination.connect()),
      parameters: { ...defaultParameters, maxPostcopyBandwidth: 4 * 2 ** 20 },
      postcopy: { prefetchPages: 4 },
      onStatus: (status) => {
        if (status === 'postcopy-paused') {
          pauses.push(engine.report()['error-desc'] ?? '');
          setImmediate(() =>
            pauses.length > 1
              ? engine.fail(new Error('again'))
              : engine.recoverPostcopy(async () => destination.connect()),
          );
        }
      },
    });
    const running = engine.run();
    engine.startPostcopy();
    const report = await running;
    assert.equal(pauses.length, 1);
    assert.match(pauses[0]!, /^The send bitmap is empty but its counter says 10 pages/);
    assert.equal(report.status, 'completed');
    assert.equal(
      destination.placed('block0').placed.every((placed) => placed > 0),
      true,
    );
  });
});

describe('a dirty log that does not honour its contract fails the migration', () => {
  const run = async (change: (log: DirtyLog) => Partial<DirtyLog>) => {
    const guest = new ScriptedGuest([300]);
    const changed = change(guest.log);
    const log = new Proxy(guest.log, {
      get: (target, method) => {
        const own = method in changed ? changed[method as keyof DirtyLog] : target[method as keyof DirtyLog];
        return typeof own === 'function' ? own.bind(target) : own;
      },
    });
    Object.assign(guest, { log });
    const sink = new RecordingSink();
    sink.afterRead = ({ block, pages }) => guest.running && guest.store(block, pages[0], 200);
    const engine = source(guest, sink);
    const report = await engine.run();
    return { engine, guest, report };
  };

  test('one that counts marks and hands none on', async () => {
    const { engine, guest, report } = await run(() => ({ sync: () => 1 }));
    assert.deepEqual([report.status, codeOf(engine), guest.running], ['failed', 'DIRTY_LOG_CONTRACT', true]);
    assert.match(engine.error!.message, /counted 1 marks of RAM block block0 and put none into dirty memory/);
  });

  for (const [method, value] of [
    ['sync', undefined],
    ['sync', -1],
    ['clear', Number.NaN],
  ] as const) {
    test(`one whose ${method} returns ${value}`, async () => {
      const { engine, guest, report } = await run(() => ({ [method]: () => value }));
      assert.deepEqual([report.status, codeOf(engine), guest.running], ['failed', 'DIRTY_LOG_CONTRACT', true]);
      assert.match(engine.error!.message, new RegExp(`^${method}\\(\\) of the guest's dirty log returned ${value} `));
    });
  }

  test('one that clears in pieces of no size', async () => {
    const { engine } = await run(() => ({ clearAlignPages: 48 }));
    assert.deepEqual([codeOf(engine), (engine.error as RamferryError).value], ['DIRTY_LOG_CONTRACT', '48']);
  });

  // CB-9
  test('one that clears in large pieces gets ranges of whole pieces, however small the chunks shall be', async () => {
    const guest = new ScriptedGuest([1000]);
    const ranges: [number, number][] = [];
    const { log } = guest;
    const { clear } = log;
    Object.assign(log, {
      clearAlignPages: 256,
      clear: (...[block, firstPage, pageCount]: Parameters<DirtyLog['clear']>) => {
        ranges.push([firstPage, pageCount]);
        return clear.call(log, block, firstPage, pageCount);
      },
    });
    const engine = source(guest, new RecordingSink(), { parameters: { ...defaultParameters, clearBitmapShift: 6 } });
    assert.equal((await engine.run())['error-desc'], undefined);
    assert.deepEqual(ranges.slice(0, 4), [
      [0, 256],
      [256, 256],
      [512, 256],
      [768, 232],
    ]);
  });

  test('one without a method, before anything is sent', async () => {
    const { engine, guest, report } = await run(() => ({ forget: undefined }) as unknown as Partial<DirtyLog>);
    assert.deepEqual([report.status, codeOf(engine), report.ram.total], ['failed', 'DIRTY_LOG_CONTRACT', 0]);
    assert.match(engine.error!.message, /has no method forget\(\)/);
    assert.ok(guest.running);
  });
});
