// A balloon device with a driver that does what a test says, step by step, in one thread.

import assert from 'node:assert/strict';
import {
  allocateBalloon,
  BalloonConfig,
  BalloonDevice,
  type BalloonDeviceOptions,
  BalloonFeature,
  BalloonHints,
  type BalloonOptions,
  BalloonQueue,
  type BalloonShared,
  type DriverQueue,
  GuestMemory,
  layOutQueue,
  VirtioDriver,
  VirtioFeature,
} from '../src/device/index.js';
import { guestAddress } from '../src/memory/index.js';
import { type TestMachine, testMachine } from './device-kit.js';

/** Where the driver keeps its queues and ids; pages from DATA_PAGE on are free for hints. */
const QUEUE_BASE = 0x10000;
const QUEUE_STRIDE = 0x8000;
const ID_BASE = 0x40000;
export const DATA_PAGE = 0x80;

export const ALL_FEATURES = Object.values({ ...BalloonFeature, ...VirtioFeature }).reduce((all, bit) => all | bit);

export class TestBalloonDriver {
  readonly virtio: VirtioDriver;
  hints!: DriverQueue;
  readonly #memory: GuestMemory;
  #ids = 0;

  constructor(shared: BalloonShared, memory: GuestMemory) {
    this.#memory = memory;
    this.virtio = new VirtioDriver(shared.virtio, memory);
  }

  start(features = ALL_FEATURES, hintQueueSize = 64): void {
    this.virtio.negotiate(features);
    this.hints = this.setUp(BalloonQueue.freePageHint, hintQueueSize);
    this.virtio.start();
  }

  setUp(queue: number, size: number): DriverQueue {
    return this.virtio.setUpQueue(queue, layOutQueue(guestAddress(QUEUE_BASE + queue * QUEUE_STRIDE), size));
  }

  /** What the configuration space asks for, unsigned. */
  get commandId(): number {
    return Atomics.load(this.virtio.config, BalloonConfig.commandId) >>> 0;
  }

  /** Adds an element with an id, pages, or both. */
  send(id: number | undefined, ...pages: readonly (readonly [first: number, count: number])[]): number {
    const at = guestAddress(ID_BASE + 4 * (this.#ids++ % 1024));
    if (id !== undefined) {
      this.#memory.writeUint32(at, id);
    }
    const writable = pages.map(([first, count]) => ({ address: guestAddress(first * 4096), length: count * 4096 }));
    const head = this.hints.add(id === undefined ? [] : [{ address: at, length: 4 }], writable);
    if (head === undefined) {
      throw new Error('the hint queue is full');
    }
    this.virtio.notify(this.hints);
    return head;
  }

  /** Heads of the elements that came back. */
  returned(): number[] {
    const heads: number[] = [];
    for (let used = this.hints.takeUsed(); used !== undefined; used = this.hints.takeUsed()) {
      heads.push(used.head);
    }
    return heads;
  }
}

export interface BalloonSetup {
  readonly machine: TestMachine;
  readonly shared: BalloonShared;
  readonly memory: GuestMemory;
  readonly device: BalloonDevice;
  readonly driver: TestBalloonDriver;
  readonly engine: BalloonHints;
  /** Calls the device until it would sleep. */
  serve(): void;
  /** Takes everything, as `block:first+count`, and acknowledges. */
  taken(): string[];
}

/** `machine`: one that other setups have left, since a new one takes a while. */
export const balloonSetup = (
  options: BalloonOptions & BalloonDeviceOptions = {},
  machine: TestMachine = testMachine(),
): BalloonSetup => {
  const shared = allocateBalloon({ acknowledgeHints: true, ...options });
  const memory = new GuestMemory(machine.regions, { markRange: () => {} });
  const device = new BalloonDevice(shared, memory, options);
  const engine = new BalloonHints(shared);
  const range = { blockId: 0, firstPage: 0, pageCount: 0 };
  return {
    machine,
    shared,
    memory,
    device,
    driver: new TestBalloonDriver(shared, memory),
    engine,
    serve: () => {
      for (let calls = 0; device.service(); calls += 1) {
        assert.ok(calls < 1000, 'the device comes to an end');
      }
    },
    taken: () => {
      const ranges: string[] = [];
      while (engine.next(range)) {
        const block = machine.blocks.blocks.find(({ id }) => id === range.blockId);
        ranges.push(`${block?.name}:${range.firstPage}+${range.pageCount}`);
      }
      engine.acknowledge();
      return ranges;
    },
  };
};
