import assert from 'node:assert/strict';
import { afterEach, describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { isMainThread, Worker, workerData } from 'node:worker_threads';
import { DirtyClient, RamBlockList } from '../../memory/index.js';
import { digestBlocks } from '../digest-node.js';
import { type BarrierChoice, registersOf, type WorkloadShared } from './control.js';
import { encodeRegisters, REGISTERS_VERSION, Register } from './registers.js';
import { WorkloadGuest, type WorkloadOptions } from './workload-guest-node.js';
import { attachWorkloadGuest, WRITER_SECTION } from './workload-source.js';

const MIB = 2 ** 20;
const PAGE = 4096;

/** The engine's thread of one of the tests. */
const engineThread = async ({ shared, done }: { shared: WorkloadShared; done: Int32Array }): Promise<void> => {
  const guest = attachWorkloadGuest(shared);
  await guest.stop();
  done[1] = guest.saveDevices().sections.length;
  await guest.resume();
  done[2] = guest.isRunning() ? 1 : 0;
  Atomics.store(done, 0, 1);
  Atomics.notify(done, 0);
};

const runTests = (): void => {
  const guests: WorkloadGuest[] = [];
  const started = async (options: Partial<WorkloadOptions> = {}): Promise<WorkloadGuest> => {
    const guest = WorkloadGuest.create({ memoryBytes: 8 * MIB, segmentBytes: 4 * MIB, ...options });
    guests.push(guest);
    await guest.start();
    return guest;
  };
  afterEach(() => Promise.all(guests.splice(0).map((guest) => guest.shutdown())));

  /** What a migration does: all RAM into other memory, and the device state. */
  const moved = async (source: WorkloadGuest): Promise<WorkloadGuest> => {
    const blocks = RamBlockList.create({ segmentBytes: 2 * MIB });
    for (const block of source.blocks.blocks) {
      blocks.add({ name: block.name, usedLength: block.usedLength }).write(0, block.read(0, block.usedLength));
    }
    const { registers, writerCount } = source.share();
    const devices = Array.from({ length: writerCount }, (_, instance) => ({
      name: WRITER_SECTION,
      instance,
      version: REGISTERS_VERSION,
      body: encodeRegisters(registersOf(registers, instance)),
    }));
    const guest = WorkloadGuest.incoming(blocks, { writers: writerCount });
    guests.push(guest);
    await guest.boot();
    // A migration takes longer than a thread to get from its report to its first wait.
    await sleep(20);
    guest.load([{ ...devices[0]!, name: 'timer' }, ...devices]);
    return guest;
  };

  describe('WorkloadGuest', () => {
    for (const barrier of ['unconditional', 'filtered'] as const satisfies BarrierChoice[]) {
      // TS-3, G-1: every page that differs from a copy taken after the clear is marked when the guest has stopped
      test(`${barrier}: stores of running threads are all marked when the guest stops`, async () => {
        const guest = await started({ barrier, writers: 3, rate: 100 * MIB });
        const { blocks } = guest;
        const log = guest.source.log!;
        blocks.dirty.migrationTracking = true;
        log.start();
        for (let round = 0; round < 5; round += 1) {
          const copies = blocks.blocks.map((block) => {
            log.sync(block, false);
            log.clear(block, 0, block.usedPages);
            blocks.dirty.testAndClear(block.ramPage, block.usedPages, DirtyClient.migration);
            return block.read(0, block.usedLength);
          });
          await sleep(10);
          await guest.stop();
          for (const [index, block] of blocks.blocks.entries()) {
            log.sync(block, true);
            for (let page = 0; page < block.usedPages; page += 1) {
              const before = Buffer.from(copies[index]!.buffer, page * PAGE, PAGE);
              if (!before.equals(block.read(page * PAGE, PAGE))) {
                const marked = blocks.bitmaps.kernels.countRange(block.bitmaps.remote, page, 1);
                assert.equal(marked, 1, `${block.name} ${page} in round ${round}`);
              }
            }
          }
          await guest.resume();
        }
        log.stop();
        await guest.stop();
        assert.equal(guest.verify().bad, 0);
        assert.equal(guest.counters().bad, 0);
      });

      // TS-5
      test(`${barrier}: memory plugged while it runs is taken into use, by every writer`, async () => {
        const guest = await started({ barrier, writers: 2, workload: 'churn' });
        guest.source.log!.start();
        for (let i = 0; i < 5; i += 1) {
          await guest.plug(MIB);
        }
        // Plugged while stopped as well, before the writers have seen it.
        await guest.stop();
        const last = await guest.plug(MIB);
        assert.equal(last.name, 'dimm5');
        await guest.resume();
        const written = (): boolean =>
          [0, 0.5].every((part) => last.read(last.usedLength * part, 4).some((byte) => byte !== 0));
        while (!written()) {
          await sleep(1);
        }
        await guest.stop();
        const { bad, checked } = guest.verify();
        assert.equal(bad, 0);
        assert.ok(checked > (8 * MIB) / PAGE);
        assert.ok(guest.source.log!.sync(last, true) > 0);
      });
    }

    // TS-3. A paced writer is mostly asleep when it is stopped, and must find that out when it wakes.
    for (const rate of [0, MIB]) {
      test(`a stopped guest stands still, ${rate === 0 ? 'busy' : 'paced'}`, async () => {
        const guest = await started({ writers: 4, rate });
        await guest.stop();
        const [digest, devices] = [digestBlocks(guest.blocks), guest.source.saveDevices()];
        await sleep(30);
        assert.deepEqual(digestBlocks(guest.blocks), digest);
        assert.deepEqual(guest.source.saveDevices(), devices);
        assert.ok(!guest.source.isRunning());
        const { pagesWritten } = guest.counters();
        await guest.resume();
        while (guest.counters().pagesWritten === pagesWritten) {
          await sleep(1);
        }
        assert.throws(() => guest.verify(), { code: 'GUEST_RUNNING' });
      });
    }

    test('stops within a millisecond, if the machine lets its threads run', async (t) => {
      const guest = await started();
      const latencies: number[] = [];
      for (let i = 0; i < 30; i += 1) {
        await sleep(2);
        const before = performance.now();
        await guest.stop();
        latencies.push(performance.now() - before);
        await guest.resume();
      }
      latencies.sort((a, b) => a - b);
      t.diagnostic(`fastest ${latencies[0]!.toFixed(3)} ms, median ${latencies[15]!.toFixed(3)} ms`);
      assert.ok(latencies[0]! < 1);
    });

    test('is stopped and saved by another thread while its owner is blocked', async () => {
      const guest = await started();
      const done = new Int32Array(new SharedArrayBuffer(12));
      const engine = new Worker(new URL(import.meta.url), { workerData: { shared: guest.share(), done } });
      assert.equal(Atomics.wait(done, 0, 0, 10_000), 'ok');
      assert.deepEqual([...done], [1, guest.source.saveDevices().sections.length, 1]);
      await engine.terminate();
    });

    for (const workload of ['churn', 'build'] as const) {
      test(`${workload}: goes on where its source stopped`, async () => {
        const source = await started({ workload, writers: 3, workingSetBytes: 6 * MIB });
        await source.plug(MIB);
        await sleep(20);
        await source.stop();
        const guest = await moved(source);
        assert.deepEqual(guest.counters(), source.counters());
        assert.deepEqual(digestBlocks(guest.blocks), digestBlocks(source.blocks));
        assert.equal(guest.verify().bad, 0);
        await guest.resume();
        while (guest.counters().pagesWritten < source.counters().pagesWritten + 2000) {
          await sleep(1);
        }
        await guest.plug(MIB);
        await guest.stop();
        assert.deepEqual([guest.verify().bad, guest.verify().staleTables, guest.counters().bad], [0, [], 0]);
      });
    }

    test('keeps to its rate after a move: what its source wrote is no debt', async () => {
      const source = await started({ rate: 8 * MIB, memoryBytes: 32 * MIB });
      await source.stop();
      const guest = await moved(source);
      await guest.resume();
      await sleep(200);
      assert.ok(guest.counters().pagesWritten > source.counters().pagesWritten + 100);
    });

    test('notices after a move that a page was lost', async () => {
      const source = await started({ workload: 'idle' });
      await source.stop();
      const guest = await moved(source);
      guest.blocks.find('pc.ram')!.write(500 * PAGE, new Uint8Array(PAGE));
      assert.deepEqual(
        guest.verify().badPages.map(({ page, found }) => [page, found]),
        [[500, 'zeros']],
      );
      await guest.resume();
      while (guest.counters().bad === 0) {
        await sleep(1);
      }
    });

    test('the same seed and number of steps give the same memory, whatever the threads do', async () => {
      const run = async (pause: boolean) => {
        const guest = await started({ writers: 2, steps: 5000, seed: 9 });
        if (pause) {
          await guest.stop();
          await guest.resume();
        }
        await guest.finished();
        await guest.stop();
        return digestBlocks(guest.blocks);
      };
      assert.deepEqual(await run(true), await run(false));
    });

    test('idle writes nothing', async () => {
      const guest = await started({ workload: 'idle' });
      guest.source.log!.start();
      const before = guest.counters();
      await sleep(50);
      await guest.stop();
      assert.equal(guest.counters().pagesWritten, before.pagesWritten);
      assert.ok(guest.counters().pagesChecked > before.pagesChecked, 'but goes on checking');
      assert.deepEqual(
        guest.blocks.blocks.map((block) => guest.source.log!.sync(block, true)),
        [0, 0, 0],
      );
    });

    test('keeps to its rate, and a throttle slows it down', async (t) => {
      const guest = await started({ rate: 40 * MIB });
      const measure = async (): Promise<number> => {
        const [before, start] = [guest.counters().pagesWritten, performance.now()];
        await sleep(400);
        return ((guest.counters().pagesWritten - before) * PAGE * 1000) / (performance.now() - start) / MIB;
      };
      const free = await measure();
      guest.source.throttle(99);
      const throttled = await measure();
      t.diagnostic(`${free.toFixed(1)} MiB/s, throttled ${throttled.toFixed(1)} MiB/s`);
      assert.ok(free > 20 && free < 60);
      // One slice of 10 ms in a second: at most two fall into the measurement, and what was owed before them.
      assert.ok(throttled < free / 2);
      await guest.stop();
    });

    // TS-34
    test('a thread that dies is reported, and nobody waits for it', async () => {
      const source = await started({ workload: 'build', memoryBytes: 16 * MIB });
      await source.stop();
      const { registers } = source.share();
      Object.assign(registersOf(registers, 0), {
        [Register.listFrame]: 2 ** 40,
        [Register.listCapacity]: 1,
      });
      const guest = await moved(source);
      await assert.rejects(
        async () => {
          await guest.resume();
          await guest.finished();
        },
        { code: 'GUEST_THREAD_DIED', value: 0, message: /^The thread of workload writer 0 died: \w/ },
      );
      await assert.rejects(guest.stop(), { code: 'GUEST_THREAD_DIED' });
      assert.throws(() => guest.source.saveDevices(), { code: 'GUEST_THREAD_DIED' });
    });

    test('without a barrier has no log', async () => {
      const guest = await started({ barrier: 'none' });
      assert.equal(guest.source.log, undefined);
      await guest.stop();
      assert.equal(guest.verify().bad, 0);
    });

    test('refuses nonsense', async () => {
      for (const wrong of [
        { writers: 0 },
        { writers: 65 },
        { rate: -1 },
        { workingSetBytes: 0 },
        { steps: Number.NaN },
      ]) {
        assert.throws(() => WorkloadGuest.create({ memoryBytes: MIB, ...wrong }), { code: 'WORKLOAD_OPTIONS' });
      }
      const source = await started({ workload: 'idle', writers: 1 });
      await source.stop();
      await assert.rejects(source.start(), { code: 'GUEST_STARTED' });
      const body = encodeRegisters(registersOf(source.share().registers, 0));
      const state = { name: WRITER_SECTION, instance: 0, version: REGISTERS_VERSION, body };
      const tooMany = body.slice();
      new DataView(tooMany.buffer).setFloat64(Register.blockCount * 8, 4);
      for (const devices of [
        [],
        [{ ...state, name: 'timer' }],
        [{ ...state, instance: 1 }],
        [{ ...state, version: REGISTERS_VERSION + 1 }],
        [state, state],
        [{ ...state, body: tooMany }],
      ]) {
        assert.throws(() => WorkloadGuest.restore(source.blocks, devices), {
          code: 'WORKLOAD_STATE_INVALID',
        });
      }
    });
  });
};

if (isMainThread) {
  runTests();
} else {
  await engineThread(workerData);
}
