// Guest memory: segments, RAM blocks, bitmaps and the dirty memory that grows while it is in use.

export { type BindBitmapKernels, BitmapMemory } from './bitmap-memory.js';
export { DIRTY_BLOCK_PAGES, DirtyClient, DirtyClientMask, DirtyMemory } from './dirty-memory.js';
export { DirtySnapshot } from './dirty-snapshot.js';
export { type ErrorDetails, type ErrorKind, RamferryError } from './errors.js';
export { type ClaimPurpose, ClaimRecord, type GuestClaim } from './guest-claim.js';
export { type BlockBitmaps, type Extent, RamBlock, type RamBlockSpec } from './ram-block.js';
export {
  RamBlockList,
  type RamBlockListOptions,
  type RamBlockObserver,
  type SharedRamBlock,
  type SharedRamBlockList,
} from './ram-block-list.js';
export {
  type RamDiscardListener,
  RamDiscardManager,
  type RamSection,
  type VisitSection,
} from './ram-discard-manager.js';
export {
  LIST_SLOT_PAGES,
  SEGMENT_RAM_BYTES,
  Segment,
  SLOT_COUNT,
  STAGING_SLOT_BYTES,
  STAGING_SLOT_PAGES,
} from './segment.js';
export * from './units.js';
