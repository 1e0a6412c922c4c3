// virtio-mem, the device's side (virtio 1.2, 5.15; spec/algorithms.md section 6): a large RAM block of which the guest plugs
// blocks in and out, until as much is plugged as the device requests. What is plugged is what the block's
// RamDiscardManager calls populated; there is no second copy of it.
//
//   region      |--------- usable: the driver may plug here ---------|------- later, when more is requested -------|
//   blocks      ▓▓▓▓▓▓▓░░▓▓▓▓▓░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░
//   plugged      7    +  5  blocks, at most `requested` by plugging
//
//   request     ERROR  range outside of the usable region, not of whole blocks, or not in the state to be changed
//               NACK   more than requested would be plugged
//               BUSY   a migration or snapshot runs, or what listens to the block refuses; nothing changed (RD-11, RD-12)
//               ACK    done

import {
  decodeVirtioMemSizes,
  decodeVirtioState,
  encodeVirtioMemEarly,
  encodeVirtioMemSizes,
  encodeVirtioState,
  pluggedBitmapBytes,
  VIRTIO_MEM_FIELD_BYTES,
  type VirtioMemEarlyState,
  type VirtioMemGeometry,
} from '../format/virtio/index.js';
import { type RamBlock, RamferryError, type VisitSection } from '../memory/index.js';
import type { QueueElement } from './device-queue.js';
import type { GuestMemory } from './guest-memory.js';
import { allocateVirtio, type VirtioShared } from './registers.js';
import { VirtioDevice } from './virtio-device.js';
import { loadVirtio, saveVirtio } from './virtio-state.js';
import { VirtioFeature } from './virtqueue.js';

export const VIRTIO_MEM_DEVICE_ID = 24;

export const VirtioMemFeature = {
  /** The node number in the configuration space means something. */
  acpiProximity: 1n << 0n,
  /** The driver must not read unplugged memory either, which it must not anyway but could. */
  unpluggedInaccessible: 1n << 1n,
} as const;

/** Offers what QEMU's offers with `unplugged-inaccessible=on`. */
const FEATURES =
  VirtioMemFeature.unpluggedInaccessible |
  VirtioFeature.version1 |
  VirtioFeature.eventIndex |
  VirtioFeature.indirectDescriptors;

/** As in QEMU. */
const QUEUE_SIZE = 128;

/** Word indexes in the configuration space; 64-bit fields have two, low one first. */
export const VirtioMemConfig = {
  blockSize: 0,
  /** 16 bits, then 6 bytes of padding. */
  node: 2,
  address: 4,
  regionSize: 6,
  usableRegionSize: 8,
  pluggedSize: 10,
  requestedSize: 12,
  bytes: 56,
} as const;

/** Request types. */
export const VirtioMemRequest = { plug: 0, unplug: 1, unplugAll: 2, state: 3 } as const;
/** type u16, padding, address u64, blocks u16, padding. */
export const VIRTIO_MEM_REQUEST_BYTES = 24;

/** Response types. */
export const VirtioMemResponse = { ack: 0, nack: 1, busy: 2, error: 3 } as const;
export type VirtioMemResponse = (typeof VirtioMemResponse)[keyof typeof VirtioMemResponse];
/** type u16, padding, state u16. */
export const VIRTIO_MEM_RESPONSE_BYTES = 10;

/** What a state request is answered with. */
export const VirtioMemBlockState = { plugged: 0, unplugged: 1, mixed: 2 } as const;
export type VirtioMemBlockState = (typeof VirtioMemBlockState)[keyof typeof VirtioMemBlockState];

/** How much further than what is requested a driver may plug: room for what it cannot unplug elsewhere. As in QEMU on x86. */
const USABLE_EXTENT = 256 * 2 ** 20;

/** QEMU's smallest block. */
const SMALLEST_BLOCK = 2 ** 20;

export interface VirtioMemOptions {
  /** With a RamDiscardManager, whose granularity is the size of a device block. */
  readonly block: RamBlock;
  /** Gives the memory of a range of the block, no longer plugged, back to the system, so that it reads as zero. */
  readonly release: VisitSection;
}

/** What the guest did, and heard. */
export type VirtioMemResponses = Record<keyof typeof VirtioMemResponse, number>;

export const allocateVirtioMem = (): VirtioShared =>
  allocateVirtio({
    deviceId: VIRTIO_MEM_DEVICE_ID,
    features: FEATURES,
    queueSizes: [QUEUE_SIZE],
    configBytes: VirtioMemConfig.bytes,
  });

/** A 64-bit field of the configuration space. */
export const loadConfig64 = (config: Int32Array, word: number): number =>
  (Atomics.load(config, word) >>> 0) + (Atomics.load(config, word + 1) >>> 0) * 2 ** 32;

const storeConfig64 = (config: Int32Array, word: number, value: number): void => {
  Atomics.store(config, word, (value % 2 ** 32) | 0);
  Atomics.store(config, word + 1, Math.floor(value / 2 ** 32));
};

export class VirtioMemDevice {
  readonly geometry: VirtioMemGeometry;
  readonly responses: VirtioMemResponses = { ack: 0, nack: 0, busy: 0, error: 0 };
  readonly #device: VirtioDevice;
  readonly #options: VirtioMemOptions;
  readonly #manager;

  /**
   * The device in the calling thread, which does its work; others may make their own to save and load it while the guest is
   * stopped. Throws VIRTIO_MEM_OPTIONS.
   */
  constructor(shared: VirtioShared, memory: GuestMemory, options: VirtioMemOptions) {
    const { block } = options;
    if (block.discardManager === undefined || block.discardManager.granularity < SMALLEST_BLOCK) {
      throw new RamferryError(
        'usage',
        'VIRTIO_MEM_OPTIONS',
        `The memory of a virtio-mem device needs blocks of at least ${SMALLEST_BLOCK} bytes, and RAM block ${block.name} has ` +
          `${block.discardManager?.granularity ?? 'none'}`,
        { value: block.name },
      );
    }
    this.#manager = block.discardManager;
    this.#options = options;
    this.#device = new VirtioDevice(shared, memory);
    this.geometry = {
      address: block.guestAddress,
      regionSize: block.usedLength,
      blockSize: this.#manager.granularity,
      node: 0,
    };
  }

  /** Fills the configuration space of a new device: nothing plugged, nothing requested. */
  initialize(): void {
    const { address, regionSize, blockSize, node } = this.geometry;
    this.#device.updateConfig((config) => {
      storeConfig64(config, VirtioMemConfig.blockSize, blockSize);
      Atomics.store(config, VirtioMemConfig.node, node);
      storeConfig64(config, VirtioMemConfig.address, address);
      storeConfig64(config, VirtioMemConfig.regionSize, regionSize);
    });
  }

  get requestedSize(): number {
    return loadConfig64(this.#device.config, VirtioMemConfig.requestedSize);
  }

  get usableRegionSize(): number {
    return loadConfig64(this.#device.config, VirtioMemConfig.usableRegionSize);
  }

  get pluggedSize(): number {
    return loadConfig64(this.#device.config, VirtioMemConfig.pluggedSize);
  }

  /** Asks the guest to plug or unplug until so many bytes are plugged: a multiple of the block size within the region. */
  requestSize(bytes: number): void {
    const { regionSize, blockSize } = this.geometry;
    if (!(bytes >= 0 && bytes <= regionSize && bytes % blockSize === 0)) {
      throw new RamferryError(
        'usage',
        'VIRTIO_MEM_SIZE',
        `A requested size of ${bytes} bytes is not a multiple of the block size ${blockSize} up to ${regionSize}`,
        { value: bytes },
      );
    }
    this.#device.updateConfig((config) => {
      storeConfig64(config, VirtioMemConfig.requestedSize, bytes);
      this.#resizeUsable(config, false);
    });
  }

  /**
   * Answers what the driver asks, but no more than a queue full of requests, and only one that plugs or unplugs: so the thread
   * gets to its safepoints, however many requests the driver adds meanwhile. Returns whether there was something: call again then.
   */
  service(): boolean {
    const device = this.#device;
    if (device.resetRequested) {
      // What is plugged stays so: it is memory, not a connection.
      device.reset();
      return true;
    }
    const queue = device.queue(0);
    let served = false;
    device.guard(() => {
      const { pluggedSize } = this;
      for (let count = 0; queue !== undefined && count < queue.layout.size; count += 1) {
        const element = queue.pop();
        if (element === undefined) {
          return;
        }
        queue.push(element, this.#answer(element));
        served = true;
        // Memory that goes back to the system can take long.
        if (this.pluggedSize !== pluggedSize) {
          return;
        }
      }
    });
    if (queue !== undefined && served) {
      device.interruptForUsed(queue);
    }
    return served;
  }

  /** To be sent before RAM. */
  saveEarly(): Uint8Array {
    const plugged = new Uint8Array(pluggedBitmapBytes(this.geometry));
    const { blockSize } = this.geometry;
    this.#manager.replayPopulated(0, this.geometry.regionSize, (offset, length) => {
      for (let block = offset / blockSize; block < (offset + length) / blockSize; block += 1) {
        plugged[block >>> 3]! |= 1 << (block & 7);
      }
    });
    return encodeVirtioMemEarly({ ...this.geometry, pluggedSize: this.#manager.populatedBytes, plugged });
  }

  /**
   * Makes plugged what was plugged there, and nothing else (RD-15). Throws VIRTIO_MEM_MISMATCH if the devices are not alike
   * (RD-26); nothing has changed then.
   */
  loadEarly(state: VirtioMemEarlyState): void {
    for (const [name, property] of Object.entries(propertyNames)) {
      const here = this.geometry[name as keyof VirtioMemGeometry];
      const there = state[name as keyof VirtioMemGeometry];
      if (here !== there) {
        throw new RamferryError(
          'invalid',
          'VIRTIO_MEM_MISMATCH',
          `Property ${property} of the memory device of RAM block ${this.#options.block.name} is ${there} at the source and ${here} here.`,
          { value: there, hint: 'Source and destination must be configured alike.' },
        );
      }
    }
    const { regionSize, blockSize } = this.geometry;
    this.#manager.discard(0, regionSize);
    this.#options.release(0, regionSize);
    const isPlugged = (block: number): boolean => (state.plugged[block >>> 3]! & (1 << (block & 7))) !== 0;
    const count = regionSize / blockSize;
    for (let first = 0; first < count; ) {
      let end = first + 1;
      while (end < count && isPlugged(end) === isPlugged(first)) {
        end += 1;
      }
      if (isPlugged(first)) {
        this.#manager.populate(first * blockSize, (end - first) * blockSize);
      }
      first = end;
    }
    this.#storePlugged(state.pluggedSize);
  }

  /** Everything else. The guest must be stopped. */
  save(): Uint8Array {
    const { config, shared, memory } = this.#device;
    return encodeVirtioState({
      state: saveVirtio(shared, memory),
      queueSizes: shared.queueSizes,
      config: new Uint8Array(Int32Array.from(config).buffer),
      fields: encodeVirtioMemSizes(this),
    });
  }

  /** After `loadEarly`, before the device's thread looks at it. Throws VIRTIO_STATE, and what `loadVirtio` does. */
  load(body: Uint8Array): void {
    const { state, fields } = decodeVirtioState(body, { transport: 'none', fieldBytes: VIRTIO_MEM_FIELD_BYTES });
    const { usableRegionSize, requestedSize } = decodeVirtioMemSizes(fields);
    const { regionSize } = this.geometry;
    if (!(usableRegionSize <= regionSize && requestedSize <= regionSize)) {
      throw new RamferryError(
        'invalid',
        'VIRTIO_STATE',
        `The state of a memory device of ${regionSize} bytes has ${usableRegionSize} usable and ${requestedSize} requested`,
        { value: requestedSize },
      );
    }
    this.#device.updateConfig((config) => {
      storeConfig64(config, VirtioMemConfig.usableRegionSize, usableRegionSize);
      storeConfig64(config, VirtioMemConfig.requestedSize, requestedSize);
    });
    loadVirtio(this.#device.shared, state);
  }

  #answer({ readable, writable }: QueueElement): number {
    const { memory } = this.#device;
    const [request] = readable;
    const [response] = writable;
    if (
      request === undefined ||
      request.length < VIRTIO_MEM_REQUEST_BYTES ||
      response === undefined ||
      response.length < VIRTIO_MEM_RESPONSE_BYTES
    ) {
      const length = request?.length ?? 0;
      throw new RamferryError('invalid', 'VIRTIO_MEM_REQUEST', `A memory request has ${length} bytes`, {
        value: length,
      });
    }
    const view = new DataView(memory.read(request.address, VIRTIO_MEM_REQUEST_BYTES).buffer);
    const type = view.getUint16(0, true);
    const address = view.getUint32(8, true) + view.getUint32(12, true) * 2 ** 32;
    const length = view.getUint16(16, true) * this.geometry.blockSize;
    let state: VirtioMemBlockState = VirtioMemBlockState.plugged;
    let answer: VirtioMemResponse = VirtioMemResponse.error;
    switch (type) {
      case VirtioMemRequest.plug:
        answer = this.#plug(address, length);
        break;
      case VirtioMemRequest.unplug:
        answer = this.#unplug(address, length);
        break;
      case VirtioMemRequest.unplugAll:
        answer = this.#unplugAll();
        break;
      case VirtioMemRequest.state:
        if (this.#isUsable(address, length)) {
          answer = VirtioMemResponse.ack;
          state = this.#stateOf(this.#offset(address), length);
        }
        break;
      default:
        throw new RamferryError('invalid', 'VIRTIO_MEM_REQUEST', `There is no memory request of type ${type}`, {
          value: type,
        });
    }
    for (const [name, value] of Object.entries(VirtioMemResponse)) {
      this.responses[name as keyof VirtioMemResponses] += value === answer ? 1 : 0;
    }
    const bytes = new DataView(new ArrayBuffer(VIRTIO_MEM_RESPONSE_BYTES));
    bytes.setUint16(0, answer, true);
    bytes.setUint16(8, state, true);
    memory.write(response.address, new Uint8Array(bytes.buffer));
    return VIRTIO_MEM_RESPONSE_BYTES;
  }

  #plug(address: number, length: number): VirtioMemResponse {
    if (!this.#isUsable(address, length)) {
      return VirtioMemResponse.error;
    }
    if (this.pluggedSize + length > this.requestedSize) {
      return VirtioMemResponse.nack;
    }
    const offset = this.#offset(address);
    if (!this.#manager.isDiscarded(offset, length)) {
      return VirtioMemResponse.error;
    }
    return this.#change(() => {
      this.#manager.populate(offset, length);
      this.#storePlugged(this.pluggedSize + length);
    });
  }

  #unplug(address: number, length: number): VirtioMemResponse {
    const offset = this.#offset(address);
    if (!this.#isUsable(address, length) || !this.#manager.isPopulated(offset, length)) {
      return VirtioMemResponse.error;
    }
    return this.#change(() => {
      this.#manager.discard(offset, length);
      this.#options.release(offset, length);
      this.#storePlugged(this.pluggedSize - length);
    });
  }

  #unplugAll(): VirtioMemResponse {
    const { regionSize } = this.geometry;
    return this.#change(() => {
      const runs: (readonly [number, number])[] = [];
      this.#manager.replayPopulated(0, regionSize, (offset, length) => runs.push([offset, length]));
      this.#manager.discard(0, regionSize);
      for (const [offset, length] of runs) {
        this.#options.release(offset, length);
      }
      this.#storePlugged(0);
      this.#device.updateConfig((config) => this.#resizeUsable(config, true));
    });
  }

  /** Whatever keeps the state from changing is busy: what froze it, what listens to the block. */
  #change(change: () => void): VirtioMemResponse {
    try {
      change();
      return VirtioMemResponse.ack;
    } catch {
      return VirtioMemResponse.busy;
    }
  }

  #stateOf(offset: number, length: number): VirtioMemBlockState {
    if (this.#manager.isPopulated(offset, length)) {
      return VirtioMemBlockState.plugged;
    }
    return this.#manager.isDiscarded(offset, length) ? VirtioMemBlockState.unplugged : VirtioMemBlockState.mixed;
  }

  #isUsable(address: number, length: number): boolean {
    const offset = this.#offset(address);
    return (
      length > 0 && offset >= 0 && offset % this.geometry.blockSize === 0 && offset + length <= this.usableRegionSize
    );
  }

  #offset(address: number): number {
    return address - this.geometry.address;
  }

  /** Not announced: the driver knows, it asked for it. */
  #storePlugged(bytes: number): void {
    storeConfig64(this.#device.config, VirtioMemConfig.pluggedSize, bytes);
  }

  /** The region only shrinks when nothing is plugged, so that what is plugged is always in it. */
  #resizeUsable(config: Int32Array, canShrink: boolean): void {
    const { regionSize, blockSize } = this.geometry;
    const requested = loadConfig64(config, VirtioMemConfig.requestedSize);
    const wanted = requested === 0 ? 0 : Math.ceil((requested + USABLE_EXTENT) / blockSize) * blockSize;
    const size = Math.min(regionSize, wanted);
    if (canShrink || size > this.usableRegionSize) {
      storeConfig64(config, VirtioMemConfig.usableRegionSize, size);
    }
  }
}

/** As in QEMU's messages. */
const propertyNames: Record<keyof VirtioMemGeometry, string> = {
  address: 'memaddr',
  regionSize: 'region size',
  blockSize: 'block-size',
  node: 'node',
};
