// Dirty logs: who sees guest writes, and the clear bitmap that puts off clearing what they saw.

export {
  CLEAR_BITMAP_SHIFT_DEFAULT,
  CLEAR_BITMAP_SHIFT_MAX,
  CLEAR_BITMAP_SHIFT_MIN,
  type ClampedShift,
  ClearBitmap,
  clampClearBitmapShift,
  type PageRange,
} from './clear-bitmap.js';
export type { DirtyLog } from './dirty-log.js';
export { releaseWriter, type WaitWhile } from './handshake.js';
export { abandonMissingPages, allocateLoadBarrier, areMissingPages, type LoadBarrierShared } from './load-barrier.js';
export { type ArrivedPages, type MissingPage, type MissingPages, ZERO_PAGE } from './missing-pages.js';
export { type AskingLoadBarrier, LoadBarrier } from './missing-pages-load-barrier.js';
export { allocateStoreBarrier, type StoreBarrierShared, type StoreBarrierVariant } from './store-barrier.js';
export { StoreBarrierLog, type StoreBarrierLogOptions } from './store-barrier-log.js';
export { attachStoreBarrier, type StoreBarrierWriter } from './store-barrier-writer.js';
export { allocateWriteProtect, type WriteProtectShared } from './write-protect.js';
export { type AskingStoreBarrier, liftProtection, StoreBarrierProtector } from './write-protect-store-barrier.js';
export type { PagesToSave, UrgentPages, WriteProtector } from './write-protector.js';
