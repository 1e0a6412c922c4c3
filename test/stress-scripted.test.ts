// The same as stress.test.ts in one thread and without waiting: at every moment at which the engine lets go of the thread, or calls
// somebody, anything may happen to the guest, to the migration and to its peer. Hundreds of schedules, with RAMFERRY_SLOW=1
// thousands, each of which is the same every time.
//
//   RAMFERRY_STRESS_SEED=SEED   plays that schedule alone

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { RamferryError } from '../src/memory/errors.js';
import type { RamBlock } from '../src/memory/ram-block.js';
import type { Clock } from '../src/source/clock.js';
import { MigrationSource } from '../src/source/migration-source.js';
import type { PageBatch } from '../src/source/page-sink.js';
import { defaultParameters, type MigrationParameters } from '../src/source/parameters.js';
import { randomChoices } from './random.js';
import { PAGE, RecordingSink, ScriptedGuest, ScriptedHints } from './source-kit.js';
import { nextTurn } from './until.js';

const { RAMFERRY_SLOW, RAMFERRY_STRESS_SEED } = process.env;
const SCHEDULES = RAMFERRY_SLOW === '1' ? 20_000 : 400;
const GRANULE_PAGES = 16;

/** A guest that runs while neither its owner nor the engine holds it, and never again once it has left. */
class OwnedGuest extends ScriptedGuest {
  isPausedByOwner = false;
  isHeldByEngine = false;
  throttled = 0;
  override throttle = (percentage: number): void => {
    this.throttled = percentage;
  };

  override isRunning(): boolean {
    return !this.isPausedByOwner && !this.isHeldByEngine && this.left === undefined;
  }

  override async stop(): Promise<void> {
    this.beforeStop();
    this.isHeldByEngine = true;
  }

  override async resume(): Promise<void> {
    this.isHeldByEngine = false;
  }

  override leave(hasMoved: boolean): void {
    super.leave(hasMoved);
    this.isHeldByEngine = false;
  }
}

/** A destination that may break, hang for a while, confirm and break then, or refuse at the very end. */
class Peer extends RecordingSink {
  hasConfirmed = false;
  isUndecided = false;
  readonly #act: () => void;
  readonly #choose: (limit: number) => number;

  constructor(act: () => void, choose: (limit: number) => number) {
    super();
    this.#act = act;
    this.#choose = choose;
    this.limit = 1 + choose(40);
    this.beforeRead = act;
    this.afterRead = act;
  }

  async #turns(): Promise<void> {
    for (let turns = this.#choose(4); turns > 0; turns -= 1) {
      await nextTurn();
      this.#act();
    }
  }

  override async whenReady(): Promise<void> {
    await this.#turns();
    await this.flush();
    this.ready = true;
  }

  override writePages(batch: PageBatch): number {
    const zeroPages = super.writePages(batch);
    this.ready = this.#choose(3) > 0;
    return zeroPages;
  }

  override async flush(): Promise<void> {
    await this.#turns();
    await super.flush();
  }

  override writeDevices(): void {
    super.writeDevices();
    this.#act();
  }

  override async finish(): Promise<void> {
    this.isUndecided = true;
    try {
      await this.#turns();
      await super.finish();
    } finally {
      this.isUndecided = false;
    }
    this.hasConfirmed = true;
    this.onConfirmed?.();
    this.#act();
    await this.#turns();
    if (this.#choose(3) === 0) {
      throw new Error('the connection is closed the hard way');
    }
  }

  onConfirmed?: () => void;
}

interface Outcome {
  readonly status: string;
  readonly done: readonly string[];
}

const play = async (seed: number): Promise<Outcome> => {
  const choose = randomChoices(seed);
  const guest = new OwnedGuest([40 + choose(60), 20]);
  const vmem = guest.blocks.add({
    name: 'vmem',
    usedLength: 6 * GRANULE_PAGES * PAGE,
    discardGranularity: GRANULE_PAGES * PAGE,
  });
  const tables = guest.blocks.add({ name: 'tables', usedLength: 4 * PAGE, maxLength: 16 * PAGE });
  vmem.discardManager!.populate(GRANULE_PAGES * PAGE, 2 * GRANULE_PAGES * PAGE);
  const hints = choose(2) === 0 ? new ScriptedHints() : undefined;
  if (hints !== undefined) {
    guest.hints = hints;
  }
  guest.isPausedByOwner = choose(5) === 0;
  const blocks = guest.blocks.blocks;
  const done: string[] = [];
  const others: Promise<void>[] = [];
  let isResized = false;
  let isOver = false;
  /** Twice as likely to leave it alone in some schedules as in others. */
  const calm = 20 + choose(120);

  const attempt = (what: string, run: () => void): void => {
    try {
      run();
      done.push(what);
    } catch (error) {
      assert.ok(error instanceof RamferryError, `${what}: ${error}`);
      done.push(`${what}: ${error.code}`);
    }
  };
  const refused = (what: string, code: string, run: () => void): void => {
    assert.throws(run, { code }, what);
    done.push(what);
  };
  const store = (): void => {
    const block: RamBlock = blocks[choose(blocks.length)]!;
    const page = block === vmem ? GRANULE_PAGES + choose(2 * GRANULE_PAGES) : choose(block.usedPages);
    if (guest.isRunning()) {
      guest.store(block, page, 1 + choose(255));
    }
  };
  const another = async (): Promise<void> => {
    const sink = new RecordingSink();
    const report = await new MigrationSource({ guest, sink, parameters: defaultParameters }).run();
    if (!isOver) {
      assert.equal(report.status, 'failed', 'two migrations of one guest');
      assert.equal(sink.calls.length, 0);
    }
  };
  const acts: readonly (() => void)[] = [
    () => attempt('cancels', () => source.cancel()),
    () => attempt('fails', () => source.fail(new Error('somebody gave up'))),
    () => {
      guest.isPausedByOwner = true;
      done.push('pauses');
    },
    () => {
      guest.isPausedByOwner = false;
      done.push('resumes');
    },
    () => {
      peer.failIn = (['start', 'write', 'flush', 'devices', 'finish'] as const)[choose(5)];
      done.push(`will break in ${peer.failIn}`);
    },
    () => attempt('sets a bandwidth', () => source.setParameters({ maxBandwidth: choose(3) * 400 * PAGE })),
    () => attempt('sets a limit', () => source.setParameters({ downtimeLimit: choose(300) })),
    () => refused('sets nonsense', 'PARAMETER_RANGE', () => source.setParameters({ downtimeLimit: -1 })),
    () => attempt('throttles', () => source.setParameters({ autoConverge: true, cpuThrottleInitial: 60 })),
    () => attempt('sets a maximum', () => source.setParameters({ maxCpuThrottle: 20 + choose(80) })),
    () => refused('plugs', 'GUEST_BUSY', () => guest.blocks.add({ name: 'more', usedLength: PAGE })),
    () => refused('unplugs', 'GUEST_BUSY', () => guest.blocks.remove(blocks[choose(blocks.length)]!)),
    () => refused('populates', 'RAM_DISCARD_BUSY', () => vmem.discardManager!.populate(0, GRANULE_PAGES * PAGE)),
    () =>
      attempt('resizes', () => {
        const before = tables.usedLength;
        guest.blocks.resize(tables, (1 + choose(16)) * PAGE);
        isResized ||= tables.usedLength !== before;
      }),
    () => {
      done.push('starts another');
      others.push(another());
    },
    () => {
      if (hints !== undefined && (hints.status === 'requested' || hints.status === 'start')) {
        hints.end();
        done.push('ends its hints');
      }
    },
  ];
  const act = (): void => {
    for (let stores = choose(3); stores > 0; stores -= 1) {
      store();
    }
    // Before the guest is claimed and after it was let go nothing is refused.
    if (guest.blocks.claimedFor === 'migration' && guest.blocks.dirty.migrationTracking && choose(calm) === 0) {
      acts[choose(acts.length)]!();
    }
  };
  let now = 0;
  const clock: Clock = {
    now: () => (now += 0.3),
    sleep: async (milliseconds, signal) => {
      // Others get on while it sleeps, the more the longer; ten seconds are longer than any answer takes.
      for (let turns = Math.min(64, 1 + milliseconds / 8); turns > 0 && signal?.aborted !== true; turns -= 1) {
        await nextTurn();
      }
      now += milliseconds;
      act();
    },
    yield: async () => {
      await nextTurn();
      act();
    },
  };
  const peer = new Peer(act, choose);
  const parameters: MigrationParameters = {
    ...defaultParameters,
    downtimeLimit: choose(2) * 300,
    maxBandwidth: choose(3) * 300 * PAGE,
    hintWaitMs: 5,
    eagerClear: choose(4) === 0,
    autoConverge: choose(3) === 0,
  };
  const source = new MigrationSource({ guest, sink: peer, parameters, clock });
  guest.beforeStop = act;

  const { status } = await source.run();
  isOver = true;
  await Promise.all(others);
  const story = (): string => `${status}, ${source.error?.message}: ${done.join(', ')}`;
  assert.equal(status === 'completed', peer.hasConfirmed, `the destination decides (${story()})`);
  assert.equal(guest.left, status === 'completed' ? 'moved' : undefined, story());
  assert.equal(guest.isHeldByEngine, false, `the engine holds the guest (${story()})`);
  assert.equal(guest.isRunning(), status !== 'completed' && !guest.isPausedByOwner, story());
  const leftovers = [
    guest.throttled !== 0,
    guest.blocks.dirty.migrationTracking,
    guest.blocks.claimedFor !== undefined,
    vmem.discardManager!.isFrozen,
    hints !== undefined && (hints.status === 'requested' || hints.status === 'start'),
  ];
  assert.deepEqual(leftovers, [false, false, false, false, false], story());
  const { kernels } = guest.blocks.bitmaps;
  const marks = (): number => kernels.countRange(blocks[0]!.bitmaps.remote, 0, blocks[0]!.usedPages);
  const before = marks();
  for (let page = 0; page < blocks[0]!.usedPages; page += 1) {
    guest.mark(blocks[0]!, page, 1);
  }
  assert.equal(marks(), before, `the log records (${story()})`);
  if (status === 'completed') {
    assert.equal(isResized, false, `resized, and yet ${story()}`);
    for (const block of blocks) {
      for (let page = 0; page < block.usedPages; page += 1) {
        if (block !== vmem || vmem.discardManager!.isPopulated(page * PAGE, PAGE)) {
          const key = `${block.name}:${page}`;
          assert.equal(peer.delivered.get(key), guest.load(block, page), `${key} (${story()})`);
        }
      }
    }
  }
  vmem.discardManager!.populate(0, GRANULE_PAGES * PAGE);
  return { status, done };
};

test('random schedules in one thread: the destination decides, its owner’s wish holds, nothing is left behind', {
  timeout: 3_000_000,
}, async (t) => {
  const seeds =
    RAMFERRY_STRESS_SEED === undefined
      ? Array.from({ length: SCHEDULES }, (_, index) => 1 + index)
      : RAMFERRY_STRESS_SEED.split(',').map(Number);
  const counts = new Map<string, number>();
  const count = (what: string): void => void counts.set(what, (counts.get(what) ?? 0) + 1);
  for (const seed of seeds) {
    try {
      const { status, done } = await play(seed);
      count(status);
      for (const what of done) {
        count(what);
      }
    } catch (error) {
      throw new Error(`RAMFERRY_STRESS_SEED=${seed}: ${(error as Error).message}`, { cause: error });
    }
  }
  t.diagnostic(JSON.stringify(Object.fromEntries([...counts].toSorted())));
  if (seeds.length >= 400) {
    for (const status of ['completed', 'cancelled', 'failed']) {
      assert.ok(counts.get(status)! > seeds.length / 20, `${counts.get(status)} ${status}`);
    }
  }
});
