// The memory device through its queue, against the rules of virtio 1.2, 5.15 and spec/algorithms.md section 6.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import {
  decodeVirtioMemEarly,
  decodeVirtioState,
  encodeVirtioMemEarly,
  encodeVirtioState,
} from '../format/virtio/index.js';
import { BitmapMemory, guestAddress, type RamBlock, RamBlockList } from '../memory/index.js';
import type { DriverQueue } from './driver-queue.js';
import { GuestMemory } from './guest-memory.js';
import { VirtioDriver } from './virtio-driver.js';
import {
  allocateVirtioMem,
  loadConfig64,
  VirtioMemConfig,
  VirtioMemDevice,
  VirtioMemRequest,
  VirtioMemResponse,
} from './virtio-mem.js';
import { layOutQueue } from './virtqueue.js';

const MIB = 2 ** 20;
const BLOCK = MIB;
const BLOCKS = 16;
/** More than the extent that may be plugged beyond the request, so that the usable region has an end. */
const BIG_BLOCKS = 600;
const ADDRESS = 2 ** 40;
/** Not at address 0, which in saved state means that there is no queue. */
const RINGS = guestAddress(4096);
const REQUEST = guestAddress(8192);
const RESPONSE = guestAddress(8192 + 64);

interface Machine {
  readonly vmem: RamBlock;
  readonly memory: GuestMemory;
  readonly device: VirtioMemDevice;
  readonly driver: VirtioDriver;
  readonly queue: DriverQueue;
  readonly released: [number, number][];
  ask(type: number, block?: number, count?: number): readonly [response: number, state: number];
}

/** One memory for all machines: they are made one after the other. */
const bitmaps = BitmapMemory.create(2 ** 24);
const list = RamBlockList.create({ bitmaps, segmentBytes: 2 ** 25 });

const machine = (blocks = BLOCKS, blockSize = BLOCK): Machine => {
  for (const block of list.blocks) {
    list.remove(block);
  }
  const ram = list.add({ name: 'ram', usedLength: MIB });
  const vmem = list.add({
    name: 'vmem',
    usedLength: blocks * blockSize,
    discardGranularity: blockSize,
    guestAddress: guestAddress(ADDRESS),
  });
  const memory = new GuestMemory([{ guestAddress: guestAddress(0), block: ram, offset: 0, bytes: MIB }], {
    markRange: () => {},
  });
  const shared = allocateVirtioMem();
  const released: [number, number][] = [];
  const device = new VirtioMemDevice(shared, memory, {
    block: vmem,
    release: (offset, length) => released.push([offset / blockSize, length / blockSize]),
  });
  device.initialize();
  const driver = new VirtioDriver(shared, memory);
  driver.negotiate(~0n);
  const queue = driver.setUpQueue(0, layOutQueue(RINGS, 128));
  driver.start();
  const ask = (type: number, block = 0, count = 0): readonly [number, number] => {
    memory.writeUint32(REQUEST, type);
    memory.writeUint64(guestAddress(REQUEST + 8), ADDRESS + block * blockSize);
    memory.writeUint32(guestAddress(REQUEST + 16), count);
    queue.add([{ address: REQUEST, length: 24 }], [{ address: RESPONSE, length: 10 }]);
    device.service();
    assert.equal(queue.takeUsed()?.written, 10);
    return [memory.loadUint16(RESPONSE), memory.loadUint16(guestAddress(RESPONSE + 8))];
  };
  return { vmem, memory, device, driver, queue, released, ask };
};

const { plug, unplug, unplugAll, state } = VirtioMemRequest;
const { ack, nack, busy, error } = VirtioMemResponse;

test('the configuration space says what a driver has to know', () => {
  const { driver, device } = machine();
  device.requestSize(5 * BLOCK);
  const at = (word: number): number => loadConfig64(driver.config, word);
  assert.deepEqual(
    [at(VirtioMemConfig.blockSize), at(VirtioMemConfig.address), at(VirtioMemConfig.regionSize)],
    [BLOCK, ADDRESS, BLOCKS * BLOCK],
  );
  assert.deepEqual([at(VirtioMemConfig.pluggedSize), at(VirtioMemConfig.requestedSize)], [0, 5 * BLOCK]);
  // Larger than what is requested, within the region.
  assert.equal(at(VirtioMemConfig.usableRegionSize), BLOCKS * BLOCK);
  assert.equal(driver.takeInterrupts(), 2);
  assert.throws(() => device.requestSize(BLOCK / 2), { code: 'VIRTIO_MEM_SIZE' });
  assert.throws(() => device.requestSize((BLOCKS + 1) * BLOCK), { code: 'VIRTIO_MEM_SIZE' });
});

// RD-12
test('any sequence of requests does to the bitmap what the rules say, and nothing when it is refused', () => {
  const request = fc.record({
    type: fc.constantFrom(plug, plug, unplug, unplugAll, state),
    block: fc.integer({ min: -1, max: BLOCKS }),
    count: fc.integer({ min: 0, max: 6 }),
  });
  const step = fc.oneof(
    { weight: 6, arbitrary: request },
    { weight: 1, arbitrary: fc.record({ requested: fc.nat(BLOCKS) }) },
    { weight: 1, arbitrary: fc.record({ frozen: fc.boolean() }) },
  );
  fc.assert(
    fc.property(fc.array(step, { maxLength: 30 }), (steps) => {
      const { vmem, device, released, ask } = machine();
      const manager = vmem.discardManager!;
      const model = new Array<boolean>(BLOCKS).fill(false);
      let requested = 0;
      let frozen = false;
      // The usable region only grows, until all is unplugged.
      let usable = 0;
      const resize = (canShrink: boolean): void => {
        const wanted = requested === 0 ? 0 : BLOCKS;
        usable = canShrink || wanted > usable ? wanted : usable;
      };
      for (const next of steps) {
        if ('requested' in next) {
          requested = next.requested;
          device.requestSize(requested * BLOCK);
          resize(false);
          continue;
        }
        if ('frozen' in next) {
          if (next.frozen !== frozen) {
            manager[next.frozen ? 'freeze' : 'thaw']();
            frozen = next.frozen;
          }
          continue;
        }
        const { type, block, count } = next;
        const valid = block >= 0 && count > 0 && block + count <= usable;
        const range = valid ? model.slice(block, block + count) : [];
        const plugged = model.filter(Boolean).length;
        const before = released.length;
        const [response, answer] = ask(type, block, count);
        if (type === plug) {
          const expected: number = !valid
            ? error
            : plugged + count > requested
              ? nack
              : range.some(Boolean)
                ? error
                : frozen
                  ? busy
                  : ack;
          assert.equal(response, expected);
          if (response === ack) {
            model.fill(true, block, block + count);
          }
        } else if (type === unplug) {
          assert.equal(response, !valid || !range.every(Boolean) ? error : frozen ? busy : ack);
          if (response === ack) {
            model.fill(false, block, block + count);
            assert.deepEqual(released.at(-1), [block, count]);
          }
        } else if (type === unplugAll) {
          assert.equal(response, frozen ? busy : ack);
          if (response === ack) {
            model.fill(false);
            resize(true);
          }
        } else {
          assert.equal(response, valid ? ack : error);
          assert.equal(answer, !valid || range.every(Boolean) ? 0 : range.some(Boolean) ? 2 : 1);
        }
        if (response !== ack) {
          assert.equal(released.length, before);
        }
        assert.equal(device.pluggedSize, model.filter(Boolean).length * BLOCK);
        assert.equal(device.usableRegionSize, usable * BLOCK);
        for (const [index, on] of model.entries()) {
          assert.equal(manager.isPopulated(index * BLOCK, BLOCK), on);
        }
      }
      if (frozen) {
        manager.thaw();
      }
    }),
    { numRuns: 60 },
  );
});

test('the usable region ends 256 MiB beyond the request, and shrinks when all is unplugged', () => {
  const { device, ask } = machine(BIG_BLOCKS);
  device.requestSize(2 * BLOCK);
  assert.equal(device.usableRegionSize, 258 * MIB);
  assert.deepEqual([ask(plug, 257, 1)[0], ask(plug, 258, 1)[0], ask(state, 258, 1)[0]], [ack, error, error]);
  device.requestSize(MIB);
  assert.equal(device.usableRegionSize, 258 * MIB);
  assert.equal(ask(unplugAll)[0], ack);
  assert.equal(device.usableRegionSize, 257 * MIB);
});

// RD-22
test('a listener that refuses makes the device busy, and nothing is plugged', () => {
  const { vmem, device, ask } = machine();
  device.requestSize(4 * BLOCK);
  const listener = {
    populate: () => {
      throw new Error('no room');
    },
    discard: () => {},
  };
  vmem.discardManager!.register(listener);
  assert.deepEqual(ask(plug, 0, 2), [busy, 0]);
  assert.deepEqual([device.pluggedSize, vmem.discardManager!.populatedBytes], [0, 0]);
  vmem.discardManager!.unregister(listener);
  assert.deepEqual(ask(plug, 0, 2), [ack, 0]);
});

test('a request that is none breaks the device until the driver resets it; what is plugged stays', () => {
  for (const breakIt of [
    ({ ask }: Machine) => ask(7),
    ({ queue, device }: Machine) => {
      queue.add([{ address: REQUEST, length: 20 }], [{ address: RESPONSE, length: 10 }]);
      device.service();
    },
    ({ queue, device }: Machine) => {
      queue.add([{ address: REQUEST, length: 24 }], []);
      device.service();
    },
    ({ queue, device }: Machine) => {
      queue.add([{ address: guestAddress(2 ** 41), length: 24 }], [{ address: RESPONSE, length: 10 }]);
      device.service();
    },
  ]) {
    const world = machine();
    world.device.requestSize(2 * BLOCK);
    assert.deepEqual(world.ask(plug, 3, 2), [ack, 0]);
    try {
      breakIt(world);
    } catch {
      // `ask` misses the answer.
    }
    assert.ok(world.driver.isBroken);
    world.driver.requestReset();
    world.device.service();
    assert.ok(world.driver.isReset);
    assert.equal(world.device.pluggedSize, 2 * BLOCK);
  }
});

test('a driver that asks without end gets a queue full of answers a call, so that its device can always be stopped', () => {
  const { memory, device, queue } = machine();
  memory.writeUint64(REQUEST, state);
  memory.writeUint64(guestAddress(REQUEST + 8), ADDRESS);
  memory.writeUint32(guestAddress(REQUEST + 16), 1);
  const head = queue.add([{ address: REQUEST, length: 24 }], [{ address: RESPONSE, length: 10 }])!;
  const { availableRing, usedRing, size } = queue.layout;
  for (let entry = 0; entry < size; entry += 1) {
    memory.storeUint16(guestAddress(availableRing + 4 + 2 * entry), head);
  }
  const store = memory.storeUint16.bind(memory);
  const answers = (): number => device.responses.error;
  // A vCPU that makes the next request available as soon as one is answered; it tires in the end, so that the test ends.
  memory.storeUint16 = (address, value) => {
    store(address, value);
    if (address === usedRing + 2 && answers() < 10 * size) {
      store(guestAddress(availableRing + 2), value + 1);
    }
  };
  for (let calls = 1; calls <= 3; calls += 1) {
    assert.ok(device.service());
    assert.equal(answers(), calls * size);
  }
});

test('one call plugs or unplugs once: giving memory back takes long', () => {
  const { memory, device, queue, released } = machine();
  device.requestSize(2 * BLOCK);
  const requests = [plug, unplug, plug, unplug].map((type, index) => {
    const address = guestAddress(REQUEST + 256 * (index + 1));
    memory.writeUint64(address, type);
    memory.writeUint64(guestAddress(address + 8), ADDRESS);
    memory.writeUint32(guestAddress(address + 16), 2);
    return queue.add([{ address, length: 24 }], [{ address: guestAddress(address + 128), length: 10 }]);
  });
  const releases = [0, 1, 1, 2].map((count) => {
    assert.ok(device.service());
    assert.notEqual(queue.takeUsed(), undefined);
    assert.equal(queue.takeUsed(), undefined);
    assert.equal(released.length, count);
    return count;
  });
  assert.equal(releases.length, requests.length);
  assert.equal(device.service(), false);
});

test('a block without granules of a MiB is no memory for a device', () => {
  const { memory, vmem } = machine();
  const [ram] = list.blocks.filter((block) => block !== vmem);
  const create = (block: RamBlock) => () =>
    new VirtioMemDevice(allocateVirtioMem(), memory, { block, release: () => {} });
  assert.throws(create(ram!), { code: 'VIRTIO_MEM_OPTIONS' });
  const fine = list.add({ name: 'fine', usedLength: MIB, discardGranularity: 4096 });
  assert.throws(create(fine), { code: 'VIRTIO_MEM_OPTIONS' });
});

// RD-15, RD-25: the state at the other side, in the middle of a conversation
test('saved and loaded, the device has the same plugged, and answers what was asked before', () => {
  fc.assert(
    fc.property(fc.uniqueArray(fc.nat(BLOCKS - 1)), fc.uniqueArray(fc.nat(BLOCKS - 1)), (plugged, stale) => {
      const source = machine();
      source.device.requestSize(BLOCKS * BLOCK);
      for (const block of plugged) {
        assert.equal(source.ask(plug, block, 1)[0], ack);
      }
      source.memory.writeUint32(REQUEST, unplugAll);
      const rings = source.memory.read(guestAddress(0), 3 * 4096);
      const early = source.device.saveEarly();
      source.queue.add([{ address: REQUEST, length: 24 }], [{ address: RESPONSE, length: 10 }]);
      const ringsAfter = source.memory.read(guestAddress(0), 3 * 4096);
      const body = source.device.save();
      assert.notDeepEqual(rings, ringsAfter);

      const { memory, vmem, device, driver, released } = machine();
      for (const block of stale) {
        vmem.discardManager!.populate(block * BLOCK, BLOCK);
      }
      memory.write(guestAddress(0), ringsAfter);
      device.loadEarly(decodeVirtioMemEarly(early));
      assert.deepEqual(released, [[0, BLOCKS]]);
      assert.deepEqual(device.saveEarly(), early);
      device.load(body);
      assert.deepEqual(device.save(), body);
      assert.deepEqual([device.requestedSize, device.pluggedSize], [BLOCKS * BLOCK, plugged.length * BLOCK]);
      const inFlight = source.queue.save();
      const queue = driver.setUpQueue(0, layOutQueue(RINGS, 128), inFlight);
      assert.ok(device.service());
      assert.deepEqual(queue.takeUsed(), { head: inFlight.inFlight[0], written: 10 });
      assert.equal(memory.loadUint16(RESPONSE), ack);
      assert.equal(vmem.discardManager!.populatedBytes, 0);
    }),
    { numRuns: 20 },
  );
});

// RD-26
test('a device that is not alike is refused by the property, and nothing has changed', () => {
  const source = machine(BLOCKS / 2);
  source.device.requestSize(BLOCK);
  source.ask(plug, 3, 1);
  const early = decodeVirtioMemEarly(source.device.saveEarly());
  const { device, vmem, released } = machine();
  for (const [change, property] of [
    [{}, /region size .* 8388608 at the source and 16777216 here/],
    [{ regionSize: BLOCKS * BLOCK, blockSize: 2 * BLOCK }, /block-size/],
    [{ regionSize: BLOCKS * BLOCK, address: 4096 }, /memaddr/],
    [{ regionSize: BLOCKS * BLOCK, node: 1 }, /node/],
  ] as const) {
    assert.throws(() => device.loadEarly({ ...early, ...change }), { code: 'VIRTIO_MEM_MISMATCH', message: property });
  }
  assert.deepEqual([released, vmem.discardManager!.populatedBytes], [[], 0]);
});

/** Written by QEMU 10.0.13 for a device of 256 MiB at 4 GiB, of which 0 is plugged; then 6 MiB of it, by hand. */
const CAPTURED = `${'0000000100000000'}${'0000000010000000'}${'0000000000200000'}00000000`;

test('the early section is QEMU’s, byte for byte', () => {
  const body = Buffer.from(`${CAPTURED}${'0'.repeat(16 + 32)}`, 'hex');
  const state = decodeVirtioMemEarly(body);
  assert.deepEqual(
    { ...state, plugged: state.plugged.length },
    { address: 2 ** 32, regionSize: 2 ** 28, blockSize: 2 ** 21, node: 0, pluggedSize: 0, plugged: 16 },
  );
  assert.deepEqual(encodeVirtioMemEarly(state), new Uint8Array(body));
  // Block 0 is the last bit of the first word.
  const some = Buffer.from(`${CAPTURED}0000000000600000${'8000000000000001'}${'0000000000000001'}`, 'hex');
  const { plugged } = decodeVirtioMemEarly(some);
  assert.deepEqual([...plugged], [1, 0, 0, 0, 0, 0, 0, 0x80, 1, 0, 0, 0, 0, 0, 0, 0]);
});

test('an early section that cannot be is refused', () => {
  const valid = `${CAPTURED}0000000000200000${'0000000000000001'}${'0000000000000000'}`;
  const cases: readonly (readonly [string, RegExp])[] = [
    [valid.slice(0, 60), /30 bytes/],
    [valid.slice(0, -16), /44 bytes for 128 blocks/],
    [valid.replace('0000000000200000', '0000000000300000'), /blocks of 3145728/],
    [valid.replace('0000000000200000', '0000000000000000'), /blocks of 0/],
    [valid.replace('0000000000200000', 'ffffffffffffffff'), /blocks of NaN/],
    [valid.replace('0000000010000000', '0000000010000001'), /region of/],
    [valid.replace('0000000010000000', '7fffffff00000000'), /region of NaN/],
    [valid.replace('0000000100000000', 'ffffffff00000000'), /impossible address/],
    [valid.replace(/0000000000000001(?=0{16}$)/, '0000000000000003'), /2 blocks plugged, but says 2097152/],
  ];
  for (const [hex, message] of cases) {
    assert.throws(() => decodeVirtioMemEarly(Buffer.from(hex, 'hex')), { code: 'VIRTIO_MEM_STATE', message });
  }
  // A region of 127 blocks has a bit too much.
  const stray = Buffer.from(
    `${valid.replace('0000000010000000', '000000000fe00000').slice(0, -16)}8000000000000000`,
    'hex',
  );
  assert.throws(() => decodeVirtioMemEarly(stray), /block 127 plugged, beyond its region/);
});

test('the state of a virtio device survives, and what is cut is refused', () => {
  const { device, ask } = machine();
  device.requestSize(3 * BLOCK);
  ask(plug, 0, 1);
  const body = device.save();
  const saved = decodeVirtioState(body, { transport: 'none', fieldBytes: 16 });
  assert.deepEqual(encodeVirtioState(saved), body);
  assert.deepEqual(saved.queueSizes, [128]);
  assert.equal(saved.state.queues[0]?.next, 1);
  for (let length = 0; length < body.length; length = Math.ceil(length * 1.1) + 1) {
    assert.throws(() => decodeVirtioState(body.subarray(0, length), { transport: 'none', fieldBytes: 16 }), {
      code: 'VIRTIO_STATE',
    });
  }
});
