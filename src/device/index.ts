// Virtio devices over guest memory: split virtqueues, the balloon, the memory device.

export { DeviceQueue, type QueueElement } from './device-queue.js';
export { DriverQueue, type DriverQueueState, type UsedElement } from './driver-queue.js';
export { GuestMemory, type MarkDirty, type MemoryRegion, wholePages } from './guest-memory.js';
export { allocateVirtio, DeviceStatus, Interrupt, type VirtioDescription, type VirtioShared } from './registers.js';
export { type QueueState, VirtioDevice, type VirtioState } from './virtio-device.js';
export { VirtioDriver } from './virtio-driver.js';
export {
  layOutQueue,
  type QueueBuffer,
  type QueueLayout,
  queueBytes,
  VIRTQUEUE_SIZE_MAX,
  VirtioFeature,
} from './virtqueue.js';
