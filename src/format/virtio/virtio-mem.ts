// Device state of a memory device as QEMU lays it out (hw/virtio/virtio-mem.c; checked against real streams). Since 8.0 in
// two sections, because a destination has to know what is memory before the first page of it comes:
//
//   NAME/virtio-mem-device-early   address u64  region u64  block u64  node u32  plugged u64  bitmap       (RD-25)
//   NAME/virtio-mem                virtio state (virtio-state.ts) with the fields: usable region u64  requested u64
//
//   bitmap: one bit for each device block, 1 = plugged, as big-endian 64-bit words whose bit 0 comes first

import { ByteWriter } from '../byte-writer.js';
import { be32, be64 } from '../bytes.js';
import { invalid } from '../invalid.js';

export const VIRTIO_MEM_EARLY_SECTION = 'virtio-mem-device-early';
export const VIRTIO_MEM_SECTION = 'virtio-mem';

/** Version of the early section. */
export const VIRTIO_MEM_EARLY_VERSION = 1;

/** Bytes of the device's own fields in its section. */
export const VIRTIO_MEM_FIELD_BYTES = 16;

const FIXED_BYTES = 36;

/** What does not change, and must be the same on both sides (RD-26). Sizes and addresses are bytes. */
export interface VirtioMemGeometry {
  /** Guest-physical address of the region. */
  readonly address: number;
  readonly regionSize: number;
  /** A power of two. */
  readonly blockSize: number;
  /** NUMA node. */
  readonly node: number;
}

export interface VirtioMemEarlyState extends VirtioMemGeometry {
  readonly pluggedSize: number;
  /** Whether each device block is plugged: bit n of byte n / 8. */
  readonly plugged: Uint8Array;
}

export interface VirtioMemSizes {
  /** The part of the region, from its start, where the guest may plug. */
  readonly usableRegionSize: number;
  readonly requestedSize: number;
}

/** Bytes of the bitmap. */
export const pluggedBitmapBytes = ({ regionSize, blockSize }: VirtioMemGeometry): number =>
  Math.ceil(regionSize / blockSize / 64) * 8;

export const encodeVirtioMemEarly = (state: VirtioMemEarlyState): Uint8Array => {
  const { address, regionSize, blockSize, node, pluggedSize, plugged } = state;
  return new ByteWriter(FIXED_BYTES + plugged.length)
    .be64(address)
    .be64(regionSize)
    .be64(blockSize)
    .be32(node)
    .be64(pluggedSize)
    .bytes(swapped(plugged))
    .copy();
};

/** @throws RamferryError `invalid`, VIRTIO_MEM_STATE: sizes that cannot be, or a bitmap that does not add up */
export const decodeVirtioMemEarly = (body: Uint8Array): VirtioMemEarlyState => {
  const refuse = (what: string, at: number, value: number): never => {
    throw invalid('VIRTIO_MEM_STATE', `The early state of a memory device has ${what}`, at, { value });
  };
  if (body.length < FIXED_BYTES) {
    refuse(`${body.length} bytes`, 0, body.length);
  }
  const geometry = {
    address: be64(body, 0),
    regionSize: be64(body, 8),
    blockSize: be64(body, 16),
    node: be32(body, 24),
  };
  const pluggedSize = be64(body, 28);
  const { address, regionSize, blockSize } = geometry;
  if (!(address >= 0)) {
    refuse('an impossible address', 0, address);
  }
  // Not the other way round: sizes beyond 2^53 are NaN.
  if (!(blockSize > 0 && Number.isInteger(Math.log2(blockSize)))) {
    refuse(`blocks of ${blockSize} bytes`, 16, blockSize);
  }
  if (!(regionSize > 0 && regionSize % blockSize === 0)) {
    refuse(`a region of ${regionSize} bytes`, 8, regionSize);
  }
  if (body.length !== FIXED_BYTES + pluggedBitmapBytes(geometry)) {
    refuse(`${body.length} bytes for ${regionSize / blockSize} blocks`, 8, body.length);
  }
  const plugged = swapped(body.subarray(FIXED_BYTES));
  let blocks = 0;
  for (const [index, byte] of plugged.entries()) {
    for (let bit = 0; bit < 8; bit += 1) {
      blocks += (byte >> bit) & 1;
      if (((byte >> bit) & 1) === 1 && index * 8 + bit >= regionSize / blockSize) {
        refuse(`block ${index * 8 + bit} plugged, beyond its region`, FIXED_BYTES + index, index * 8 + bit);
      }
    }
  }
  if (blocks * blockSize !== pluggedSize) {
    refuse(`${blocks} blocks plugged, but says ${pluggedSize} bytes are`, 28, pluggedSize);
  }
  return { ...geometry, pluggedSize, plugged };
};

export const encodeVirtioMemSizes = ({ usableRegionSize, requestedSize }: VirtioMemSizes): Uint8Array =>
  new ByteWriter(VIRTIO_MEM_FIELD_BYTES).be64(usableRegionSize).be64(requestedSize).copy();

/** `fields`: VIRTIO_MEM_FIELD_BYTES bytes. */
export const decodeVirtioMemSizes = (fields: Uint8Array): VirtioMemSizes => ({
  usableRegionSize: be64(fields, 0),
  requestedSize: be64(fields, 8),
});

/** Each 8 bytes in the opposite order. */
const swapped = (bytes: Uint8Array): Uint8Array =>
  Uint8Array.from(bytes, (_, index) => bytes[index - (index % 8) + 7 - (index % 8)]!);
