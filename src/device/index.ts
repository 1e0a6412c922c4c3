// Virtio devices over guest memory: split virtqueues, the balloon, the memory device.

export {
  allocateBalloon,
  BALLOON_DEVICE_ID,
  BalloonConfig,
  BalloonFeature,
  type BalloonOptions,
  BalloonQueue,
  type BalloonShared,
  BalloonStatistic,
} from './balloon.js';
export { BalloonControl } from './balloon-control.js';
export { BalloonDevice, type BalloonDeviceOptions } from './balloon-device.js';
export { BalloonHints } from './balloon-hints.js';
export {
  type BalloonState,
  decodeBalloon,
  encodeBalloon,
  HintStatusNumber,
  loadBalloon,
  saveBalloon,
} from './balloon-state.js';
export { type DeviceThread, GuestRunState, runDevice } from './device-loop.js';
export { DeviceQueue, type QueueElement } from './device-queue.js';
export { DriverQueue, type DriverQueueState, type UsedElement } from './driver-queue.js';
export { GuestMemory, type MemoryRegion, type StoreTracker, wholePages } from './guest-memory.js';
export { HINT_DONE, HINT_ID_MIN, HINT_STOP, isHintId } from './hint-exchange.js';
export { FULL_RING_MS } from './hint-receiver.js';
export { allocateVirtio, DeviceStatus, Interrupt, type VirtioDescription, type VirtioShared } from './registers.js';
export { VirtioDevice } from './virtio-device.js';
export { VirtioDriver } from './virtio-driver.js';
export {
  allocateVirtioMem,
  loadConfig64,
  VIRTIO_MEM_DEVICE_ID,
  VIRTIO_MEM_REQUEST_BYTES,
  VIRTIO_MEM_RESPONSE_BYTES,
  VirtioMemBlockState,
  VirtioMemConfig,
  VirtioMemDevice,
  VirtioMemFeature,
  type VirtioMemOptions,
  VirtioMemRequest,
  VirtioMemResponse,
} from './virtio-mem.js';
export { loadVirtio, type QueueState, saveVirtio, type VirtioState } from './virtio-state.js';
export {
  layOutQueue,
  type QueueBuffer,
  type QueueLayout,
  queueBytes,
  VIRTQUEUE_SIZE_MAX,
  VirtioFeature,
} from './virtqueue.js';
