// Device state of virtio devices, as QEMU lays it out.

export {
  BALLOON_SECTION,
  type BalloonFields,
  balloonFieldBytes,
  decodeBalloonFields,
  encodeBalloonFields,
} from './balloon.js';
export {
  forEachUnplugged,
  type MemoryDevice,
  memoryDevices,
  type PluggedBlocks,
  pluggedOfBlocks,
} from './unplugged.js';
export {
  decodeVirtioMemEarly,
  decodeVirtioMemSizes,
  encodeVirtioMemEarly,
  encodeVirtioMemSizes,
  pluggedBitmapBytes,
  VIRTIO_MEM_EARLY_SECTION,
  VIRTIO_MEM_EARLY_VERSION,
  VIRTIO_MEM_FIELD_BYTES,
  VIRTIO_MEM_SECTION,
  type VirtioMemEarlyState,
  type VirtioMemGeometry,
  type VirtioMemSizes,
} from './virtio-mem.js';
export {
  decodeVirtioState,
  encodeVirtioState,
  type SavedVirtioDevice,
  type Transport,
  VIRTIO_SECTION_VERSION,
  type VirtioQueueState,
  type VirtioState,
} from './virtio-state.js';
