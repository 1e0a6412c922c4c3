// Both sides of a virtqueue against each other and a model, and the device's side against drivers that lie.

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import fc from 'fast-check';
import { GUEST_PAGE_SIZE } from '../../kernels/kernels.js';
import { HIGH_START, LOW_BYTES, markedMemory, testMachine } from '../../test/device-kit.js';
import { explore } from '../../test/schedules.js';
import { guestAddress } from '../memory/index.js';
import { DeviceQueue, type QueueElement } from './device-queue.js';
import { DriverQueue } from './driver-queue.js';
import { GuestMemory } from './guest-memory.js';
import {
  DescriptorFlag,
  layOutQueue,
  nextIndex,
  QueueAddresses,
  type QueueBuffer,
  type QueueLayout,
  queueBytes,
  VirtioFeature,
} from './virtqueue.js';

const { indirectDescriptors, eventIndex } = VirtioFeature;

/** The last queue page is in another extent and block part than the first: nothing assumes that a queue is contiguous. */
const layoutOf = (size: number): QueueLayout => ({
  size,
  descriptorTable: guestAddress(64 * GUEST_PAGE_SIZE - 32),
  availableRing: guestAddress(HIGH_START + 2),
  usedRing: guestAddress(LOW_BYTES - 4096 - 12),
});

/** A queue whose indexes start at `start`, as one that has been used for long. */
const startAt = (memory: GuestMemory, layout: QueueLayout, features: bigint, start: number) => {
  const at = new QueueAddresses(layout);
  for (const address of [at.availableIndex, at.usedIndex, at.usedEvent, at.availableEvent]) {
    memory.storeUint16(address, start);
  }
  return {
    driver: new DriverQueue(memory, layout, features, { nextUsed: start, notified: start, inFlight: [] }),
    device: new DeviceQueue(memory, layout, features),
  };
};

const buffers = fc.array(
  fc
    .tuple(fc.nat(2 ** 40), fc.nat(2 ** 32 - 1))
    .map(([address, length]) => ({ address: guestAddress(address), length })),
  { maxLength: 3 },
);

type Step =
  | { kind: 'add'; readable: QueueBuffer[]; writable: QueueBuffer[]; indirect: boolean }
  | { kind: 'pop' | 'take' }
  | { kind: 'push'; which: number; written: number };

const steps: fc.Arbitrary<Step[]> = fc.array(
  fc.oneof(
    fc
      .record({ kind: fc.constant('add' as const), readable: buffers, writable: buffers, indirect: fc.boolean() })
      .filter(({ readable, writable }) => readable.length + writable.length > 0),
    fc.record({ kind: fc.constantFrom('pop' as const, 'take' as const) }),
    fc.record({ kind: fc.constant('push' as const), which: fc.nat(), written: fc.nat(2 ** 32 - 1) }),
  ),
  { maxLength: 60 },
);

describe('virtqueue', () => {
  test('every chain arrives once, in order and unchanged, and returns once; indexes wrap', () => {
    const machine = testMachine();
    fc.assert(
      fc.property(
        steps,
        fc.constantFrom(1, 2, 8),
        fc.constantFrom(0, 2 ** 16 - 3),
        fc.boolean(),
        (script, size, start, withEvents) => {
          const { memory } = markedMemory(machine);
          const features = indirectDescriptors | (withEvents ? eventIndex : 0n);
          const { driver, device } = startAt(memory, layoutOf(size), features, start);
          const sent: (Omit<QueueElement, 'head'> & { head: number })[] = [];
          const popped: QueueElement[] = [];
          const returned: { head: number; written: number }[] = [];
          let tables = 0;
          for (const step of script) {
            if (step.kind === 'add') {
              const { readable, writable, indirect } = step;
              const free = driver.freeDescriptors;
              tables += 1;
              const table = guestAddress(8192 + 128 * tables);
              const head = indirect ? driver.addIndirect(table, readable, writable) : driver.add(readable, writable);
              assert.equal(head === undefined, free < (indirect ? 1 : readable.length + writable.length));
              if (head !== undefined) {
                sent.push({ head, readable, writable });
              }
            } else if (step.kind === 'pop') {
              const element = device.pop();
              assert.deepEqual(element, sent.shift());
              if (element !== undefined) {
                popped.push(element);
              }
            } else if (step.kind === 'push' && popped.length > 0) {
              const [element] = popped.splice(step.which % popped.length, 1);
              device.push(element!, step.written);
              returned.push({ head: element!.head, written: step.written });
            } else if (step.kind === 'take') {
              assert.deepEqual(driver.takeUsed(), returned.shift());
            }
            assert.equal(driver.inFlight, sent.length + popped.length + returned.length);
          }
        },
      ),
    );
  });

  test('both sides go on after a migration: what was popped but not pushed is popped again', () => {
    const { memory } = markedMemory(testMachine());
    const layout = layoutOf(8);
    const { driver, device } = startAt(memory, layout, eventIndex, 65534);
    const buffer = { address: guestAddress(4096), length: 1 };
    const heads = [0, 1, 2].map(() => driver.add([buffer], [buffer])!);
    device.push(device.pop()!, 0);
    assert.equal(device.pop()!.head, heads[1]);

    const driverThere = new DriverQueue(memory, layout, eventIndex, structuredClone(driver.save()));
    const deviceThere = new DeviceQueue(memory, layout, eventIndex);
    assert.equal(driverThere.freeDescriptors, 2);
    assert.ok(driverThere.needsNotification()); // nobody had told the device
    assert.equal(driverThere.takeUsed()!.head, heads[0]);
    for (const head of heads.slice(1)) {
      const element = deviceThere.pop()!;
      assert.equal(element.head, head);
      deviceThere.push(element, 0);
      assert.equal(driverThere.takeUsed()!.head, head);
    }
    assert.equal(driverThere.freeDescriptors, 8);
  });

  test('every page that a side stores to is marked', () => {
    const machine = testMachine();
    const snapshot = (): Uint8Array[] =>
      Array.from({ length: 512 }, (_, page) => machine.ram.read(page * GUEST_PAGE_SIZE, GUEST_PAGE_SIZE));
    const changed = (before: Uint8Array[]): string[] =>
      snapshot().flatMap((bytes, page) => (Buffer.compare(bytes, before[page]!) === 0 ? [] : [`pc.ram:${page}`]));
    const driverMemory = markedMemory(machine);
    const deviceMemory = markedMemory(machine);
    const layout = layoutOf(256);
    const driver = new DriverQueue(driverMemory.memory, layout, indirectDescriptors);
    const device = new DeviceQueue(deviceMemory.memory, layout, indirectDescriptors);
    for (const round of [1, 2, 128, 256, 300]) {
      driverMemory.marks.clear();
      deviceMemory.marks.clear();
      let before = snapshot();
      const table = guestAddress(HIGH_START + 16 * GUEST_PAGE_SIZE - 16);
      const buffer = { address: guestAddress(0), length: round };
      driver.addIndirect(table, [buffer], [buffer]);
      assert.deepEqual(
        changed(before).filter((page) => !driverMemory.marks.has(page)),
        [],
      );
      before = snapshot();
      device.enableNotifications();
      device.push(device.pop()!, round);
      const stored = changed(before);
      assert.ok(stored.length > 0);
      assert.deepEqual(
        stored.filter((page) => !deviceMemory.marks.has(page)),
        [],
      );
      driver.takeUsed();
    }
  });
});

/** Memory at whose index and event accesses another agent may come between. */
class SteppedMemory extends GuestMemory {
  step: () => void = () => {};

  override loadUint16(...parameters: Parameters<GuestMemory['loadUint16']>): number {
    this.step();
    const value = super.loadUint16(...parameters);
    this.step();
    return value;
  }

  override storeUint16(...parameters: Parameters<GuestMemory['storeUint16']>): void {
    this.step();
    super.storeUint16(...parameters);
    this.step();
  }
}

describe('notification suppression', () => {
  const buffer = { address: guestAddress(4096), length: 1 };

  for (const features of [0n, eventIndex]) {
    for (const start of [0, 65535]) {
      const name = `${features === 0n ? 'flags' : 'event index'}, from index ${start}`;

      test(`${name}: a device never sleeps over an element, wherever the driver comes between`, async () => {
        let notified = 0;
        const runs = await explore(async (schedule) => {
          const machine = testMachine();
          const memory = new SteppedMemory(machine.regions, { markRange: () => {} });
          const { driver, device } = startAt(memory, layoutOf(4), features, start);
          let toAdd = 2;
          let bell = false;
          memory.step = () => {
            if (toAdd > 0 && schedule.choose(2) === 1) {
              const step = memory.step;
              memory.step = () => {};
              toAdd -= 1;
              driver.add([buffer], []);
              bell ||= driver.needsNotification();
              memory.step = step;
            }
          };
          let handled = 0;
          for (let turn = 0; turn < 2 || bell; turn += 1) {
            bell = false;
            device.disableNotifications();
            do {
              for (let element = device.pop(); element !== undefined; element = device.pop()) {
                device.push(element, 0);
                handled += 1;
              }
            } while (device.enableNotifications());
          }
          // Asleep now. What was added is done; what is added now rings.
          assert.equal(handled, 2 - toAdd);
          memory.step = () => {};
          driver.add([buffer], []);
          assert.ok(driver.needsNotification());
          notified += 1;
        });
        assert.equal(notified, runs);
        assert.ok(runs > 20);
      });

      test(`${name}: a driver never sleeps over a used element, wherever the device comes between`, async () => {
        const runs = await explore(async (schedule) => {
          const machine = testMachine();
          const memory = new SteppedMemory(machine.regions, { markRange: () => {} });
          const { driver, device } = startAt(memory, layoutOf(4), features, start);
          device.needsInterrupt();
          driver.add([buffer], []);
          driver.add([buffer], []);
          let toPush = 2;
          let bell = false;
          memory.step = () => {
            if (toPush > 0 && schedule.choose(2) === 1) {
              const step = memory.step;
              memory.step = () => {};
              toPush -= 1;
              device.push(device.pop()!, 0);
              bell ||= device.needsInterrupt();
              memory.step = step;
            }
          };
          let taken = 0;
          for (let turn = 0; turn < 2 || bell; turn += 1) {
            bell = false;
            driver.disableInterrupts();
            do {
              while (driver.takeUsed() !== undefined) {
                taken += 1;
              }
            } while (driver.enableInterrupts());
          }
          assert.equal(taken, 2 - toPush);
        });
        assert.ok(runs > 20);
      });
    }
  }

  test('with an event index, one notification and one interrupt serve many elements', () => {
    const { memory } = markedMemory(testMachine());
    const { driver, device } = startAt(memory, layoutOf(8), eventIndex, 65533);
    device.enableNotifications();
    driver.enableInterrupts();
    device.needsInterrupt();
    let notifications = 0;
    let interrupts = 0;
    for (let count = 0; count < 8; count += 1) {
      driver.add([buffer], []);
      notifications += driver.needsNotification() ? 1 : 0;
    }
    for (let element = device.pop(); element !== undefined; element = device.pop()) {
      device.push(element, 0);
      interrupts += device.needsInterrupt() ? 1 : 0;
    }
    assert.deepEqual([notifications, interrupts], [1, 1]);
  });
});

describe('hostile driver', () => {
  /** A queue of 4 whose tables the test fills by hand. */
  const prepare = (features: bigint) => {
    const machine = testMachine();
    const { memory } = markedMemory(machine);
    const layout = layoutOf(4);
    const at = new QueueAddresses(layout);
    const descriptor = (
      table: number,
      index: number,
      address: number,
      length: number,
      flags: number,
      next = 0,
    ): void => {
      const entry = table + 16 * index;
      memory.writeUint64(guestAddress(entry), address);
      memory.writeUint32(guestAddress(entry + 8), length);
      memory.storeUint16(guestAddress(entry + 12), flags);
      memory.storeUint16(guestAddress(entry + 14), next);
    };
    const offer = (head: number, count = 1): void => {
      memory.storeUint16(at.availableEntry(0), head);
      memory.storeUint16(at.availableIndex, count);
    };
    return { machine, memory, layout, descriptor, offer, device: new DeviceQueue(memory, layout, features) };
  };
  const { next, write, indirect } = DescriptorFlag;
  const TABLE = 0x8000;

  const attacks: Record<string, [code: string, attack: (queue: ReturnType<typeof prepare>) => void]> = {
    'a head beyond the table': ['VIRTQUEUE_DESCRIPTOR', ({ offer }) => offer(4)],
    'more elements than fit': ['VIRTQUEUE_INDEX', ({ offer }) => offer(0, 5)],
    'an index that went back': ['VIRTQUEUE_INDEX', ({ offer }) => offer(0, 65535)],
    'a chain that is a loop': [
      'VIRTQUEUE_DESCRIPTOR',
      ({ layout, descriptor, offer }) => {
        descriptor(layout.descriptorTable, 0, 0, 1, next, 1);
        descriptor(layout.descriptorTable, 1, 0, 1, next, 0);
        offer(0);
      },
    ],
    'a chain that leaves the table': [
      'VIRTQUEUE_DESCRIPTOR',
      ({ layout, descriptor, offer }) => {
        descriptor(layout.descriptorTable, 0, 0, 1, next, 4);
        offer(0);
      },
    ],
    'readable after writable': [
      'VIRTQUEUE_DESCRIPTOR',
      ({ layout, descriptor, offer }) => {
        descriptor(layout.descriptorTable, 0, 0, 1, next | write, 1);
        descriptor(layout.descriptorTable, 1, 0, 1, 0);
        offer(0);
      },
    ],
    'an indirect table in an indirect table': [
      'VIRTQUEUE_DESCRIPTOR',
      ({ layout, descriptor, offer }) => {
        descriptor(layout.descriptorTable, 0, TABLE, 32, indirect);
        descriptor(TABLE, 0, TABLE, 32, indirect);
        offer(0);
      },
    ],
    'an indirect table that goes on': [
      'VIRTQUEUE_DESCRIPTOR',
      ({ layout, descriptor, offer }) => {
        descriptor(layout.descriptorTable, 0, TABLE, 32, indirect | next, 1);
        offer(0);
      },
    ],
    'a loop in an indirect table': [
      'VIRTQUEUE_DESCRIPTOR',
      ({ layout, descriptor, offer }) => {
        descriptor(layout.descriptorTable, 0, TABLE, 32, indirect);
        descriptor(TABLE, 0, 0, 1, next, 1);
        descriptor(TABLE, 1, 0, 1, next, 0);
        offer(0);
      },
    ],
    'an indirect table outside of memory': [
      'GUEST_ADDRESS_INVALID',
      ({ layout, descriptor, offer }) => {
        descriptor(layout.descriptorTable, 0, LOW_BYTES, 32, indirect);
        offer(0);
      },
    ],
    'an indirect table that is not aligned': [
      'GUEST_ADDRESS_INVALID',
      ({ layout, descriptor, offer }) => {
        descriptor(layout.descriptorTable, 0, TABLE + 1, 32, indirect);
        offer(0);
      },
    ],
    ...Object.fromEntries(
      [0, 8, 17, 16 * 1025, 0xfffffff0].map((length) => [
        `an indirect table of ${length} bytes`,
        [
          'VIRTQUEUE_DESCRIPTOR',
          ({ layout, descriptor, offer }: ReturnType<typeof prepare>) => {
            descriptor(layout.descriptorTable, 0, TABLE, length, indirect);
            offer(0);
          },
        ],
      ]),
    ),
  };
  for (const [name, [code, attack]] of Object.entries(attacks)) {
    test(`${name} is refused`, () => {
      const queue = prepare(indirectDescriptors);
      attack(queue);
      assert.throws(() => queue.device.pop(), { code, kind: 'invalid' });
    });
  }

  test('an indirect descriptor that was not negotiated is refused', () => {
    const { layout, descriptor, offer, device } = prepare(0n);
    descriptor(layout.descriptorTable, 0, TABLE, 32, indirect);
    offer(0);
    assert.throws(() => device.pop(), { code: 'VIRTQUEUE_DESCRIPTOR' });
  });

  test('direct descriptors may end in an indirect table', () => {
    const { layout, descriptor, offer, device } = prepare(indirectDescriptors);
    descriptor(layout.descriptorTable, 3, 1, 1, next, 2);
    descriptor(layout.descriptorTable, 2, TABLE, 32, indirect | write);
    descriptor(TABLE, 0, 2, 2, next, 1);
    descriptor(TABLE, 1, 3, 3, write);
    offer(3);
    assert.deepEqual(device.pop(), {
      head: 3,
      readable: [
        { address: 1, length: 1 },
        { address: 2, length: 2 },
      ],
      writable: [{ address: 3, length: 3 }],
    });
  });

  test('queues that are none are refused', () => {
    const { memory } = markedMemory(testMachine());
    const good = layOutQueue(guestAddress(0x1000), 4);
    const bad: [string, QueueLayout][] = [
      ['VIRTQUEUE_LAYOUT', { ...good, size: 0 }],
      ['VIRTQUEUE_LAYOUT', { ...good, size: 3 }],
      ['VIRTQUEUE_LAYOUT', { ...good, size: 2048 }],
      ['VIRTQUEUE_LAYOUT', { ...good, size: -4 }],
      ['VIRTQUEUE_LAYOUT', { ...good, descriptorTable: guestAddress(8) }],
      ['VIRTQUEUE_LAYOUT', { ...good, availableRing: guestAddress(9) }],
      ['VIRTQUEUE_LAYOUT', { ...good, usedRing: guestAddress(10) }],
      ['GUEST_ADDRESS_INVALID', { ...good, usedRing: guestAddress(LOW_BYTES) }],
      ['GUEST_ADDRESS_INVALID', { ...good, usedRing: guestAddress(2 ** 63) }],
    ];
    for (const [code, layout] of bad) {
      assert.throws(() => new DeviceQueue(memory, layout, 0n), { code, kind: 'invalid' });
    }
  });

  test('garbage in all three areas: bounded work, one kind of error, no store but to the used ring', () => {
    const size = 16;
    const layout = layOutQueue(guestAddress(0x1000), size);
    const area = queueBytes(size);
    fc.assert(
      fc.property(fc.uint8Array({ minLength: area, maxLength: area }), fc.boolean(), (garbage, plausible) => {
        const machine = testMachine();
        let loads = 0;
        const { memory, marks } = markedMemory(machine);
        memory.write(layout.descriptorTable, garbage);
        const at = new QueueAddresses(layout);
        memory.storeUint16(at.usedIndex, 0);
        if (plausible) {
          memory.storeUint16(at.availableIndex, size);
          for (let index = 0; index < size; index += 1) {
            memory.storeUint16(at.availableEntry(index), garbage[index]! % size);
          }
        }
        marks.clear();
        const before = machine.ram.read(0, machine.ram.usedLength);
        const device = new DeviceQueue(memory, layout, indirectDescriptors);
        try {
          for (let element = device.pop(); element !== undefined; element = device.pop()) {
            loads += 1;
            device.push(element, 1);
          }
        } catch (error) {
          assert.equal((error as { kind?: string }).kind, 'invalid');
        }
        assert.ok(loads <= size);
        const after = machine.ram.read(0, machine.ram.usedLength);
        after.set(before.subarray(layout.usedRing, layout.usedRing + 6 + 8 * size), layout.usedRing);
        assert.ok(Buffer.compare(before, after) === 0);
      }),
    );
  });
});

test('the driver refuses a used entry for a chain that the device does not have', () => {
  const { memory } = markedMemory(testMachine());
  const layout = layoutOf(4);
  const driver = new DriverQueue(memory, layout, 0n);
  const device = new DeviceQueue(memory, layout, 0n);
  device.push({ head: 2, readable: [], writable: [] }, 0);
  assert.throws(() => driver.takeUsed(), { code: 'VIRTQUEUE_USED' });
  assert.equal(nextIndex(65535), 0);
});
