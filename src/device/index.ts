// Virtio devices over guest memory: split virtqueues, the balloon, the memory device.

export { DeviceQueue, type QueueElement } from './device-queue.js';
export { DriverQueue, type DriverQueueState, type UsedElement } from './driver-queue.js';
export { GuestMemory, type MemoryRegion, type StoreTracker, wholePages } from './guest-memory.js';
export { allocateVirtio, DeviceStatus, Interrupt, type VirtioDescription, type VirtioShared } from './registers.js';
export { VirtioDevice } from './virtio-device.js';
export { VirtioDriver } from './virtio-driver.js';
export { loadVirtio, type QueueState, saveVirtio, type VirtioState } from './virtio-state.js';
export {
  layOutQueue,
  type QueueBuffer,
  type QueueLayout,
  queueBytes,
  VIRTQUEUE_SIZE_MAX,
  VirtioFeature,
} from './virtqueue.js';
