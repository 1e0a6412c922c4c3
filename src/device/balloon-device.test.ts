// The balloon without hints: pages given away and taken back, statistics, reset, drivers that lie, and the move to another host.

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import fc from 'fast-check';
import { GUEST_PAGE_SIZE } from '../../kernels/kernels.js';
import { ALL_FEATURES, balloonSetup, DATA_PAGE, TestBalloonDriver } from '../../test/balloon-kit.js';
import { DIMM_START, LOW_BYTES } from '../../test/device-kit.js';
import { guestAddress } from '../memory/index.js';
import { allocateBalloon, BalloonConfig, BalloonFeature, BalloonQueue } from './balloon.js';
import { BalloonControl } from './balloon-control.js';
import { BalloonDevice } from './balloon-device.js';
import { BalloonHints } from './balloon-hints.js';
import { decodeBalloon, encodeBalloon, HintStatusNumber, loadBalloon, saveBalloon } from './balloon-state.js';
import { HINT_ID_MIN } from './hint-exchange.js';
import { configWords, Interrupt, Register } from './registers.js';

const NUMBERS = guestAddress(0x50000);

describe('inflate and deflate', () => {
  test('make the pages that were given away read as zero, and no others; numbers of no page are ignored', () => {
    const { driver, memory, machine, serve } = balloonSetup();
    driver.start();
    const inflate = driver.setUp(BalloonQueue.inflate, 4);
    const deflate = driver.setUp(BalloonQueue.deflate, 4);
    for (const page of [128, 129, 130]) {
      memory.write(guestAddress(page * GUEST_PAGE_SIZE), new Uint8Array(GUEST_PAGE_SIZE).fill(page));
    }
    const dimm = DIMM_START / GUEST_PAGE_SIZE;
    memory.write(guestAddress(DIMM_START), Uint8Array.of(1));
    const numbers = [129, LOW_BYTES / GUEST_PAGE_SIZE, 0xffffffff, dimm];
    for (const [index, number] of numbers.entries()) {
      memory.writeUint32(guestAddress(NUMBERS + 4 * index), number);
    }
    inflate.add([{ address: NUMBERS, length: 4 * numbers.length + 3 }], []);
    driver.virtio.notify(inflate);
    serve();
    assert.equal(inflate.takeUsed()?.written, 0);
    const firstBytes = [128, 129, 130].map((page) => machine.ram.read(page * GUEST_PAGE_SIZE, 1)[0]);
    assert.deepEqual([...firstBytes, machine.dimm.read(0, 1)[0]], [128, 0, 130, 0]);
    deflate.add([{ address: NUMBERS, length: 4 }], []);
    serve();
    assert.ok(deflate.takeUsed() !== undefined);
    assert.ok((driver.virtio.takeInterrupts() & Interrupt.usedBuffer) !== 0);
  });

  test('target, actual pages and poison are configuration', () => {
    const { driver, shared } = balloonSetup();
    const control = new BalloonControl(shared);
    driver.start();
    driver.virtio.takeInterrupts();
    control.targetPages = 0xfffffff0;
    assert.equal(driver.virtio.takeInterrupts(), Interrupt.configuration);
    assert.equal(driver.virtio.config[BalloonConfig.targetPages]! >>> 0, 0xfffffff0);
    Atomics.store(driver.virtio.config, BalloonConfig.actualPages, 77);
    Atomics.store(driver.virtio.config, BalloonConfig.poisonValue, 0xaaaaaaaa);
    assert.deepEqual([control.targetPages, control.actualPages, control.poisonValue], [0xfffffff0, 77, 0xaaaaaaaa]);
  });

  test('the configuration space is as long as the features need', () => {
    const bytes = (freePageHint: boolean, pagePoison: boolean): number =>
      allocateBalloon({ freePageHint, pagePoison }).virtio.configBytes;
    assert.deepEqual([bytes(false, false), bytes(true, false), bytes(false, true), bytes(true, true)], [8, 12, 16, 16]);
  });
});

describe('statistics', () => {
  test('come when somebody wants them, in one buffer that the device keeps', () => {
    const { driver, memory, shared, serve } = balloonSetup();
    const control = new BalloonControl(shared);
    driver.start();
    const queue = driver.setUp(BalloonQueue.statistics, 2);
    const report = (...figures: [tag: number, value: bigint][]): void => {
      const bytes = new DataView(new ArrayBuffer(10 * figures.length + 4));
      for (const [index, [tag, value]] of figures.entries()) {
        bytes.setUint16(10 * index, tag, true);
        bytes.setBigUint64(10 * index + 2, value, true);
      }
      memory.write(NUMBERS, new Uint8Array(bytes.buffer));
      queue.add([{ address: NUMBERS, length: bytes.byteLength }], []);
      driver.virtio.notify(queue);
      serve();
    };
    assert.deepEqual(control.statistics(), {});
    report([4, 2n ** 40n], [5, 123n], [0xfff0, 1n]);
    assert.deepEqual([control.reports, control.statistics()], [1, { freeMemory: 2 ** 40, totalMemory: 123 }]);
    assert.equal(queue.takeUsed(), undefined);
    control.requestStatistics();
    serve();
    assert.ok(queue.takeUsed() !== undefined);
    report([6, 9n]);
    assert.deepEqual([control.reports, control.statistics()], [2, { availableMemory: 9 }]);
    report([6, 10n]); // more than one: only the last one stays
    assert.ok(queue.takeUsed() !== undefined);
    assert.equal(queue.takeUsed(), undefined);
  });
});

describe('a hostile driver', () => {
  const attacks: Record<string, [code: string, attack: (setup: ReturnType<typeof balloonSetup>) => void]> = {
    'a command id of 3 bytes': [
      'BALLOON_HINT_ID',
      ({ driver }) => driver.hints.add([{ address: NUMBERS, length: 3 }], []),
    ],
    'a command id of 4 GiB': [
      'BALLOON_HINT_ID',
      ({ driver }) => driver.hints.add([{ address: NUMBERS, length: 2 ** 32 - 1 }], []),
    ],
    'a command id outside of memory': [
      'GUEST_ADDRESS_INVALID',
      ({ driver }) => driver.hints.add([{ address: guestAddress(LOW_BYTES), length: 4 }], []),
    ],
    'page numbers outside of memory': [
      'GUEST_ADDRESS_INVALID',
      ({ driver }) =>
        driver.setUp(BalloonQueue.inflate, 4).add([{ address: guestAddress(LOW_BYTES - 4), length: 8 }], []),
    ],
    'more page numbers than any driver sends': [
      'BALLOON_ELEMENT',
      ({ driver }) => driver.setUp(BalloonQueue.inflate, 4).add([{ address: guestAddress(0), length: LOW_BYTES }], []),
    ],
    'a queue outside of memory': [
      'GUEST_ADDRESS_INVALID',
      ({ driver, shared }) => {
        driver.setUp(BalloonQueue.deflate, 4);
        const words = new Int32Array(shared.virtio.registers);
        words[Register.queues + 8 + 7] = 0x7fffffff; // high half of the used ring's address
      },
    ],
  };
  for (const [name, [code, attack]] of Object.entries(attacks)) {
    test(`${name} breaks the device until it is reset, and the engine goes on`, () => {
      const reasons: string[] = [];
      const setup = balloonSetup({ onBreak: (reason) => reasons.push(reason.code) });
      const { driver, engine, machine, serve, taken } = setup;
      driver.start();
      engine.request();
      driver.send(driver.commandId, [DATA_PAGE, 1]);
      serve();
      const before = machine.ram.read(0x80000, LOW_BYTES - 0x80000);
      attack(setup);
      serve();
      assert.deepEqual(reasons, [code]);
      assert.ok(driver.virtio.isBroken);
      assert.equal(taken().length, 1); // what came before holds
      const inFlight = driver.hints.inFlight;
      driver.send(undefined, [DATA_PAGE, 1]);
      serve();
      driver.returned();
      assert.equal(driver.hints.inFlight, inFlight + 1);
      assert.deepEqual(machine.ram.read(0x80000, LOW_BYTES - 0x80000), before);
      engine.stop();
      engine.request();
      assert.equal(engine.status, 'stop');
      driver.virtio.requestReset();
      serve();
      assert.ok(driver.virtio.isReset);
      driver.start();
      engine.request();
      driver.send(driver.commandId, [DATA_PAGE, 1]);
      serve();
      assert.equal(taken().length, 1);
    });
  }

  // FH-21, FH-22
  test('garbage in all queues, whatever the engine does: no error but a broken device, nothing outside of RAM blocks', () => {
    fc.assert(
      fc.property(
        fc.uint8Array({ minLength: 0x2000, maxLength: 0x2000 }),
        fc.array(fc.constantFrom('request', 'stop', 'take', 'serve', 'done'), { minLength: 4, maxLength: 12 }),
        (garbage, steps) => {
          const { driver, engine, memory, machine, device } = balloonSetup();
          driver.start(ALL_FEATURES, 64);
          for (const queue of [BalloonQueue.inflate, BalloonQueue.deflate, BalloonQueue.statistics]) {
            driver.setUp(queue, 64);
          }
          const range = { blockId: 0, firstPage: 0, pageCount: 0 };
          for (const [index, step] of steps.entries()) {
            const layout = [0, 1, 2, 3].map((queue) => 0x10000 + queue * 0x8000);
            memory.write(guestAddress(layout[index % 4]!), garbage.subarray(0, 64 * 16 + 6));
            // As many elements as are believable, so that the descriptors are looked at.
            memory.storeUint16(guestAddress(layout[index % 4]! + 1024 + 2), garbage[index]! % 64);
            switch (step) {
              case 'request':
                engine.request();
                break;
              case 'stop':
                engine.stop();
                break;
              case 'done':
                engine.done();
                break;
              case 'serve':
                for (let calls = 0; device.service(); calls += 1) {
                  assert.ok(calls < 10);
                }
                break;
              case 'take':
                while (engine.next(range)) {
                  const block = machine.blocks.blocks.find(({ id }) => id === range.blockId)!;
                  assert.ok(range.firstPage >= 0 && range.firstPage + range.pageCount <= block.usedPages);
                }
                engine.acknowledge();
            }
          }
        },
      ),
      { numRuns: 60 },
    );
  });
});

describe('the move to another host', () => {
  test('keeps configuration, queues, ids and what was under way; a guest that was being asked learns that it is over', () => {
    const here = balloonSetup();
    here.driver.start();
    Atomics.store(here.driver.virtio.config, BalloonConfig.poisonValue, 0xaa);
    new BalloonControl(here.shared).targetPages = 5;
    here.engine.request();
    const marker = here.driver.send(here.driver.commandId);
    here.serve();
    assert.deepEqual(here.driver.returned(), [marker]);
    // Two elements that the device has and the engine never answers.
    const heads = [here.driver.send(undefined, [DATA_PAGE, 1]), here.driver.send(undefined, [DATA_PAGE + 1, 1])];
    here.serve();
    const saved = saveBalloon(here.shared, here.memory);
    const state = decodeBalloon(encodeBalloon(saved));
    // A queue that is set up says its own size.
    assert.deepEqual({ ...state, queueSizes: saved.queueSizes }, saved);
    assert.deepEqual(state.freePageHint, { commandId: HINT_ID_MIN + 1, status: HintStatusNumber.start });
    assert.equal(state.poisonValue, 0xaa);
    assert.equal(state.virtio.queues[BalloonQueue.freePageHint]?.next, 1);

    const shared = allocateBalloon({ acknowledgeHints: true });
    loadBalloon(shared, state);
    const device = new BalloonDevice(shared, here.memory);
    const engine = new BalloonHints(shared);
    const driver = new TestBalloonDriver(shared, here.memory);
    driver.hints = driver.virtio.setUpQueue(
      BalloonQueue.freePageHint,
      here.driver.hints.layout,
      structuredClone(here.driver.hints.save()),
    );
    assert.equal(driver.commandId, 1); // FH-12
    while (device.service()) {}
    assert.deepEqual(driver.returned(), heads);
    assert.equal(new BalloonControl(shared).targetPages, 5);
    engine.request();
    assert.equal(driver.commandId, HINT_ID_MIN + 2);
    // FH-12: after `done`, that is what is saved.
    engine.done();
    assert.equal(saveBalloon(shared, here.memory).freePageHint?.status, HintStatusNumber.done);
  });

  test('of a device that was about to be reset is that of one that was', () => {
    const { driver, shared, memory } = balloonSetup();
    driver.start();
    driver.virtio.requestReset();
    const { virtio } = saveBalloon(shared, memory);
    assert.deepEqual(
      [virtio.status, virtio.features, virtio.queues.every((queue) => queue === undefined)],
      [0, 0n, true],
    );
  });

  test('is refused by a device that can less', () => {
    const { driver, shared, memory } = balloonSetup();
    driver.start();
    const state = saveBalloon(shared, memory);
    assert.throws(() => loadBalloon(allocateBalloon({ freePageHint: false }), state), { code: 'VIRTIO_FEATURES' });
    const without = {
      ...state.virtio,
      features: state.virtio.features & ~(BalloonFeature.freePageHint | BalloonFeature.acknowledgeHints),
    };
    const target = allocateBalloon({ freePageHint: false });
    assert.throws(() => loadBalloon(target, { ...state, virtio: without }), { code: 'VIRTIO_QUEUES' });
    assert.ok(configWords(target.virtio).every((word) => word === 0));
  });
});
