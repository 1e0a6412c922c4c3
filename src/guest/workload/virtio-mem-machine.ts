// The part of the workload machine that a virtio-mem device makes: two RAM blocks and what their threads share. Every thread
// that has to do with it makes its own view of it.
//
//   vmem0          the device's region, most of it never plugged
//   vmem0.driver   queue | request and response | a word for each device block: what the driver knows of it
//                  memory that is always there, since a driver must not keep its notes in what it may lose
//
// A device block that the driver uses is a `Region` of its own: a generation table, then data pages.

import { GUEST_PAGE_SIZE } from '../../../kernels/kernels.js';
import {
  allocateVirtioMem,
  GuestMemory,
  layOutQueue,
  type StoreTracker,
  VirtioMemDevice,
  type VirtioShared,
} from '../../device/index.js';
import type { StoreBarrierWriter } from '../../dirty-log/index.js';
import type { DeviceState } from '../../format/stream/index.js';
import {
  decodeVirtioMemEarly,
  VIRTIO_MEM_EARLY_SECTION,
  VIRTIO_MEM_EARLY_VERSION,
  VIRTIO_MEM_SECTION,
  VIRTIO_SECTION_VERSION,
} from '../../format/virtio/index.js';
import {
  guestAddress,
  type RamBlock,
  type RamBlockList,
  RamferryError,
  type VisitSection,
} from '../../memory/index.js';
import { Region } from './region.js';
import {
  allocateVirtioMemRegisters,
  decodeVirtioMemRegisters,
  encodeVirtioMemRegisters,
  VIRTIO_MEM_DRIVER_VERSION,
  VirtioMemRegister,
} from './virtio-mem-registers.js';

export const VIRTIO_MEM_BLOCK = 'vmem0';
export const VIRTIO_MEM_DRIVER_BLOCK = 'vmem0.driver';
const DRIVER_SECTION = `${VIRTIO_MEM_BLOCK}/driver`;

/** Beyond every other memory. */
export const VIRTIO_MEM_ADDRESS = guestAddress(2 ** 40);
export const VIRTIO_MEM_DRIVER_ADDRESS = guestAddress(2 ** 39);

const DEFAULT_BLOCK_BYTES = 2 * 2 ** 20;

/** Where things are in the driver's block. */
const BUFFERS_OFFSET = GUEST_PAGE_SIZE;
const STATES_OFFSET = 2 * GUEST_PAGE_SIZE;

/** What the driver knows of a device block. */
export const BlockUse = {
  unplugged: 0,
  /** Plugged, content undefined. */
  plugged: 1,
  /** It has a generation table. */
  used: 2,
  /** Given up; the device is asked to unplug it. */
  leaving: 3,
} as const;
export type BlockUse = (typeof BlockUse)[keyof typeof BlockUse];

export interface VirtioMemMachineOptions {
  /** Address space that the device may fill. */
  readonly regionBytes: number;
  /** Bytes that are plugged and unplugged at a time: a power of two from a MiB up. Default 2 MiB. */
  readonly blockBytes?: number;
  /** Bytes that the guest is to have plugged in. Default 0; `requestVirtioMem` changes it. */
  readonly requestedBytes?: number;
  /** Bytes per second that the guest writes there, after it has filled what is new; 0 (default) for as fast as possible. */
  readonly rate?: number;
}

/** Structured-cloneable. */
export interface VirtioMemShared {
  readonly virtio: VirtioShared;
  readonly registers: SharedArrayBuffer;
  /** One word: device blocks that are to be plugged. */
  readonly requested: SharedArrayBuffer;
}

/** Adds the blocks of a new machine. */
export const addVirtioMemBlocks = (
  blocks: RamBlockList,
  { regionBytes, blockBytes = DEFAULT_BLOCK_BYTES }: VirtioMemMachineOptions,
): void => {
  blocks.add({
    name: VIRTIO_MEM_BLOCK,
    usedLength: regionBytes,
    discardGranularity: blockBytes,
    guestAddress: VIRTIO_MEM_ADDRESS,
  });
  const stateBytes = (regionBytes / blockBytes) * 4;
  blocks.add({
    name: VIRTIO_MEM_DRIVER_BLOCK,
    usedLength: STATES_OFFSET + Math.ceil(stateBytes / GUEST_PAGE_SIZE) * GUEST_PAGE_SIZE,
    guestAddress: VIRTIO_MEM_DRIVER_ADDRESS,
  });
};

/** What a new machine's threads share, if it has the device. */
export const allocateVirtioMemMachine = (blocks: RamBlockList): VirtioMemShared | undefined =>
  blocks.find(VIRTIO_MEM_BLOCK)?.discardManager === undefined
    ? undefined
    : {
        virtio: allocateVirtioMem(),
        registers: allocateVirtioMemRegisters(),
        requested: new SharedArrayBuffer(4),
      };

/** Whether it is of a device that a destination without one cannot do without. */
export const isVirtioMemState = ({ name }: DeviceState): boolean => name === DRIVER_SECTION;

/** Of a thread that only looks. */
const untracked: StoreTracker = { markRange: () => {} };

export class VirtioMemMachine {
  readonly region: RamBlock;
  readonly device: VirtioMemDevice;
  readonly virtio: VirtioShared;
  readonly memory: GuestMemory;
  readonly registers: Float64Array;
  readonly blockBytes: number;
  readonly blockCount: number;
  readonly queue = layOutQueue(VIRTIO_MEM_DRIVER_ADDRESS, 128);
  readonly request = guestAddress(VIRTIO_MEM_DRIVER_ADDRESS + BUFFERS_OFFSET);
  readonly response = guestAddress(VIRTIO_MEM_DRIVER_ADDRESS + BUFFERS_OFFSET + 64);
  readonly #requested: Int32Array;
  readonly #barrier: StoreBarrierWriter | undefined;
  readonly #regions = new Map<number, Region>();

  /** `barrier`: the calling thread's, if it is one of the guest's. `release`: gives the memory of a range back to the system. */
  constructor(
    shared: VirtioMemShared,
    blocks: RamBlockList,
    { barrier, release = () => {} }: { readonly barrier?: StoreBarrierWriter; readonly release?: VisitSection } = {},
  ) {
    this.#barrier = barrier;
    const region = blocks.find(VIRTIO_MEM_BLOCK)!;
    const driver = blocks.find(VIRTIO_MEM_DRIVER_BLOCK)!;
    this.region = region;
    this.virtio = shared.virtio;
    this.memory = new GuestMemory(
      [{ guestAddress: VIRTIO_MEM_DRIVER_ADDRESS, block: driver, offset: 0, bytes: driver.usedLength }],
      barrier ?? untracked,
    );
    this.device = new VirtioMemDevice(shared.virtio, this.memory, { block: region, release });
    this.registers = new Float64Array(shared.registers);
    this.blockBytes = this.device.geometry.blockSize;
    this.blockCount = region.usedLength / this.blockBytes;
    this.#requested = new Int32Array(shared.requested);
  }

  /** Bytes that the guest is asked to have plugged; the vCPU's thread tells the device. */
  get wantedBytes(): number {
    return Atomics.load(this.#requested, 0) * this.blockBytes;
  }
  set wantedBytes(bytes: number) {
    Atomics.store(this.#requested, 0, bytes / this.blockBytes);
  }

  /** A device block as a piece of the workload. */
  blockRegion(block: number): Region {
    let region = this.#regions.get(block);
    if (region === undefined) {
      region = new Region(this.region, block, this.blockCount, this.#barrier);
      this.#regions.set(block, region);
    }
    return region;
  }

  useOf(block: number): BlockUse {
    return this.memory.readUint32(guestAddress(VIRTIO_MEM_DRIVER_ADDRESS + STATES_OFFSET + 4 * block)) as BlockUse;
  }

  setUse(block: number, use: BlockUse): void {
    this.memory.writeUint32(guestAddress(VIRTIO_MEM_DRIVER_ADDRESS + STATES_OFFSET + 4 * block), use);
    if (use !== BlockUse.used) {
      this.#regions.delete(block);
    }
  }

  /** What goes before RAM. The state of the device must not change meanwhile. */
  saveEarly(): DeviceState {
    return {
      name: `${VIRTIO_MEM_BLOCK}/${VIRTIO_MEM_EARLY_SECTION}`,
      instance: 0,
      version: VIRTIO_MEM_EARLY_VERSION,
      body: this.device.saveEarly(),
    };
  }

  /** The rest, with the guest stopped. */
  save(): DeviceState[] {
    return [
      {
        name: `${VIRTIO_MEM_BLOCK}/${VIRTIO_MEM_SECTION}`,
        instance: 0,
        version: VIRTIO_SECTION_VERSION,
        body: this.device.save(),
      },
      {
        name: DRIVER_SECTION,
        instance: 0,
        version: VIRTIO_MEM_DRIVER_VERSION,
        body: encodeVirtioMemRegisters(this.registers),
      },
    ];
  }

  /** Before the first page is loaded. Throws WORKLOAD_STATE_INVALID, and what `VirtioMemDevice.loadEarly` does. */
  loadEarly({ name, version }: Pick<DeviceState, 'name' | 'version'>, body: Uint8Array): void {
    if (name !== `${VIRTIO_MEM_BLOCK}/${VIRTIO_MEM_EARLY_SECTION}` || version !== VIRTIO_MEM_EARLY_VERSION) {
      throw stateInvalid(`There is no device for section ${name}, version ${version}`, name);
    }
    this.device.loadEarly(decodeVirtioMemEarly(body));
  }

  /** After it. Throws WORKLOAD_STATE_INVALID, and what `VirtioMemDevice.load` does. */
  load(devices: readonly DeviceState[]): void {
    const find = (wanted: string): Uint8Array => {
      const state = devices.find(({ name }) => name === wanted);
      if (state === undefined) {
        throw stateInvalid(`The source has no device ${wanted}`, wanted);
      }
      return state.body;
    };
    this.device.load(find(`${VIRTIO_MEM_BLOCK}/${VIRTIO_MEM_SECTION}`));
    decodeVirtioMemRegisters(find(DRIVER_SECTION), this.registers);
    this.wantedBytes = this.device.requestedSize;
  }

  /** Whether as much is plugged as is wanted, and all of it is in use and filled. */
  get isSettled(): boolean {
    if (this.device.pluggedSize !== this.wantedBytes || this.registers[VirtioMemRegister.filling] !== 0) {
      return false;
    }
    let used = 0;
    for (let block = 0; block < this.blockCount; block += 1) {
      used += this.useOf(block) === BlockUse.used ? 1 : 0;
    }
    return used * this.blockBytes === this.wantedBytes;
  }

  /** Checks every page that the driver keeps, with the guest stopped. Returns whether the tables are those it remembers. */
  verify(count: (good: boolean, block: RamBlock, page: number, generation: number) => void): boolean {
    let sum = 0;
    for (let block = 0; block < this.blockCount; block += 1) {
      if (this.useOf(block) !== BlockUse.used) {
        continue;
      }
      const region = this.blockRegion(block);
      for (let index = 0; index < region.dataPages; index += 1) {
        const generation = region.generation(index);
        sum += generation;
        if (generation !== 0) {
          count(region.check(index, generation), this.region, region.dataPage(index), generation);
        }
      }
    }
    return sum === this.registers[VirtioMemRegister.generationSum];
  }
}

const stateInvalid = (message: string, value: string): RamferryError =>
  new RamferryError('invalid', 'WORKLOAD_STATE_INVALID', message, { value });
