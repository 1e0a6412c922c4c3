// The list of RAM blocks with all that grows and shrinks with it: the flat ram address space, guest RAM, the blocks' bitmaps
// and dirty memory (spec/algorithms.md section 4). One thread owns it and changes it; the others hold copies of it:
//
//   owner: add / remove / resize ──▶ share() ── postMessage ──▶ other thread: attach(shared), later update(shared)
//
// A block reaches another thread only with its description, which is made after dirty memory covers the block: so nobody can
// mark a page that has no map (DM-5, TS-5). The message takes the place of the RCU list and its barriers (DM-6).

import { GUEST_PAGE_SIZE } from '../../kernels/kernels.js';
import { BitmapMemory } from './bitmap-memory.js';
import { DirtyClient, DirtyClientMask, DirtyMemory } from './dirty-memory.js';
import { RamferryError } from './errors.js';
import { CLAIM_RECORD_BITS, type ClaimPurpose, ClaimRecord, type GuestClaim } from './guest-claim.js';
import { GuestRamAllocator } from './guest-ram-allocator.js';
import { type BlockBitmaps, RamBlock, type RamBlockSpec } from './ram-block.js';
import { RamDiscardGate } from './ram-discard-gate.js';
import { checkDiscardGranularity, discardStateBits, RamDiscardManager } from './ram-discard-manager.js';
import { RunAllocator } from './run-allocator.js';
import { SEGMENT_RAM_BYTES, Segment } from './segment.js';
import { guestAddress, pageIndex, ramPage } from './units.js';

/** 8 TiB: page numbers stay below 2^31, and the bitmap memory's 2 GiB suffice for all bitmaps of all of it. */
const FLAT_SPACE_PAGES = 2 ** 31;

/** Two blocks never share a 64-bit word of any map (DM-8). */
const FLAT_ALIGN_PAGES = 64;

/** The length of a name is one byte in the stream. */
const MAX_NAME_BYTES = 255;

const flatPages = (block: { readonly maxLength: number }): number =>
  Math.ceil(block.maxLength / GUEST_PAGE_SIZE / FLAT_ALIGN_PAGES) * FLAT_ALIGN_PAGES;

/** Called in the thread whose list changes: the owner's by add, remove and resize, another's by `update`. */
export interface RamBlockObserver {
  /** After the block is in the list and dirty. */
  added?(block: RamBlock): void;
  /** Before the block leaves the list. */
  removing?(block: RamBlock): void;
  /**
   * Before anything of the block is touched (DM-23). In the owner's thread it may throw to refuse. No migration survives a
   * resize: one that is under way fails if nobody refuses.
   */
  resizing?(block: RamBlock, newLength: number): void;
}

/** Everything another thread needs; structured-cloneable. */
export interface SharedRamBlockList {
  readonly version: number;
  readonly segmentBytes: number;
  readonly bitmaps: WebAssembly.Memory;
  readonly dirty: number;
  /** Address of the claim record in `bitmaps`. */
  readonly claims: number;
  readonly segments: readonly { readonly id: number; readonly memory: WebAssembly.Memory }[];
  readonly blocks: readonly SharedRamBlock[];
}

export interface SharedRamBlock {
  readonly id: number;
  readonly spec: Required<RamBlockSpec>;
  readonly ramPage: number;
  readonly bitmaps: BlockBitmaps;
  /** Address of the state of its RamDiscardManager; 0 if it has none. */
  readonly discardState: number;
  readonly extents: readonly {
    /** Id of the segment. */
    readonly segment: number;
    readonly address: number;
    readonly firstPage: number;
    readonly pageCount: number;
  }[];
}

export interface RamBlockListOptions {
  /** Default: a bitmap memory of its own. The calling thread must be its owner. */
  readonly bitmaps?: BitmapMemory;
  /** Guest RAM of one segment; tests make it small. Default 1 GiB. */
  readonly segmentBytes?: number;
  /** Called with every segment before it is used: to ask the system for huge pages (huge-pages-node.ts), say. */
  readonly onSegment?: (segment: Segment) => void;
}

/** What only the owner has. */
interface Ownership {
  readonly flat: RunAllocator;
  readonly ram: GuestRamAllocator;
  nextId: number;
  /** Whether another thread may know the blocks. */
  isShared: boolean;
  /** Removed, but another thread may still be using them. */
  readonly retired: RamBlock[];
  /** Ends a block's hold on the gate. */
  readonly discards: Map<RamBlock, () => void>;
}

export class RamBlockList {
  readonly bitmaps: BitmapMemory;
  readonly dirty: DirtyMemory;
  readonly segmentBytes: number;
  /** Held by every block that has a RamDiscardManager; the owner's is the one that counts. */
  readonly discardGate = new RamDiscardGate();
  /** By id. */
  readonly #segments = new Map<number, Segment>();
  #blocks: readonly RamBlock[] = [];
  #version = 0;
  readonly #observers = new Set<RamBlockObserver>();
  readonly #claimsAddress: number;
  readonly #claims: ClaimRecord;
  /** In the midst of a change by the claim's holder. */
  #permitted = false;
  /** In the midst of any other change by this thread. */
  #isChanging = false;
  #ownership: Ownership | undefined;

  private constructor(bitmaps: BitmapMemory, dirty: DirtyMemory, segmentBytes: number, claims: number) {
    this.bitmaps = bitmaps;
    this.dirty = dirty;
    this.segmentBytes = segmentBytes;
    this.#claimsAddress = claims;
    this.#claims = new ClaimRecord(bitmaps.words, claims);
  }

  /** An empty list; the calling thread owns it. */
  static create({
    bitmaps = BitmapMemory.create(),
    segmentBytes = SEGMENT_RAM_BYTES,
    onSegment = () => {},
  }: RamBlockListOptions = {}): RamBlockList {
    const claims = bitmaps.allocate(CLAIM_RECORD_BITS);
    const list = new RamBlockList(bitmaps, DirtyMemory.create(bitmaps), segmentBytes, claims);
    const flat = new RunAllocator();
    flat.free(0, FLAT_SPACE_PAGES);
    const ram = new GuestRamAllocator(list.#segments, segmentBytes, onSegment);
    list.#ownership = { flat, ram, nextId: 1, isShared: false, retired: [], discards: new Map() };
    return list;
  }

  /** Ordered by maximum length, descending, older blocks first among equals (DM-29). A new array after every change. */
  get blocks(): readonly RamBlock[] {
    return this.#blocks;
  }

  /** Changes with every add, remove and resize, after the list has changed (DM-6). */
  get version(): number {
    return this.#version;
  }

  /** The block of that name, if there is one. */
  find(name: string): RamBlock | undefined {
    return this.#blocks.find((block) => block.name === name);
  }

  /** What the guest is claimed for at this moment; undefined if it is not. */
  get claimedFor(): ClaimPurpose | undefined {
    return this.#claims.purpose;
  }

  /**
   * Claims the guest whose blocks these are: until the claim is released nobody else gets it, through whichever copy of the list
   * in whichever thread, and no block is plugged or unplugged. Every engine that moves, saves or loads a guest does so first.
   * @throws RamferryError `GUEST_BUSY` if somebody else has it; `BLOCK_LIST_STALE` if the list is an old copy
   */
  claim(purpose: ClaimPurpose): GuestClaim {
    if (this.#isChanging) {
      // An observer of the change would wait for itself.
      this.#claims.beginChange('The guest cannot be claimed');
    }
    return this.#claims.claim(purpose, this.#version);
  }

  /**
   * The claim that another thread made, by its token: to hold it here, or to release it after that thread died. Default: the
   * claim that there is, for an owner who knows that its holder is dead, and has undone what that did to the guest.
   * @throws RamferryError `CLAIM_LOST` if it was released
   */
  adoptClaim(token = this.#claims.token): GuestClaim {
    return this.#claims.adopt(token);
  }

  /** Lets the holder of a claim add and resize blocks: the engine that loads a guest makes its memory. */
  changeAs<T>({ token }: GuestClaim, change: () => T): T {
    this.#claims.adopt(token);
    this.#permitted = true;
    try {
      return change();
    } finally {
      this.#permitted = false;
    }
  }

  /** Returns the function that ends the subscription. */
  subscribe(observer: RamBlockObserver): () => void {
    this.#observers.add(observer);
    return () => this.#observers.delete(observer);
  }

  /**
   * Hot-plugs a block; its memory is zero, and dirty for all clients. Nothing has changed when it throws: RAM_BLOCK_NAME_INVALID,
   * RAM_BLOCK_NAME_TAKEN, RAM_BLOCK_LENGTH_INVALID, DISCARD_GRANULARITY_INVALID, RAM_DISCARD_DISABLED, FLAT_SPACE_EXHAUSTED,
   * BITMAP_MEMORY_EXHAUSTED, GUEST_MEMORY_EXHAUSTED, or GUEST_BUSY while the guest is migrated, saved or loaded.
   */
  add(spec: RamBlockSpec): RamBlock {
    const owned = this.#owned();
    const complete = completeSpec(spec);
    if (this.find(spec.name) !== undefined) {
      throw new RamferryError('usage', 'RAM_BLOCK_NAME_TAKEN', `There is already a RAM block named ${spec.name}`, {
        value: spec.name,
      });
    }
    const block = this.#change(`RAM block ${spec.name} cannot be plugged`, () => {
      const placed = this.#place(complete, owned);
      // The map before the block, the list before the version, the bits before anybody hears of it.
      const position = this.#blocks.findIndex((other) => other.maxLength < placed.maxLength);
      this.#blocks = this.#blocks.toSpliced(position < 0 ? this.#blocks.length : position, 0, placed);
      this.#nextVersion();
      this.dirty.setRange(placed.ramPage, placed.usedPages, DirtyClientMask.all);
      return placed;
    });
    this.#notify((observer) => observer.added?.(block));
    return block;
  }

  /**
   * Hot-unplugs a block. Its memory, bitmaps and flat range are reused at once if the list was never shared, otherwise
   * after `reclaim`. Nothing has changed when it throws: RAM_BLOCK_UNKNOWN, GUEST_BUSY while the guest is migrated, saved or
   * loaded, or RAM_DISCARD_BUSY while somebody relies on what the block's RamDiscardManager says.
   */
  remove(block: RamBlock): void {
    const owned = this.#owned();
    this.#checkListed(block);
    this.#change(`RAM block ${block.name} cannot be unplugged`, () => {
      // Before anybody hears of it. The claims keep who would freeze it away meanwhile.
      block.discardManager?.checkIdle();
      this.#notify((observer) => observer.removing?.(block));
      block.discardManager?.retire();
      this.#blocks = this.#blocks.filter((other) => other !== block);
      this.#nextVersion();
      owned.discards.get(block)?.();
      owned.discards.delete(block);
      owned.retired.push(block);
      if (!owned.isShared) {
        this.reclaim();
      }
    });
  }

  /**
   * Makes what removed blocks occupied available again. Other threads have no read section that could be waited for: the
   * caller says with it that every one of them has taken over a description made after the removal, or has ended.
   */
  reclaim(): void {
    const owned = this.#owned();
    for (const block of owned.retired.splice(0)) {
      for (const client of Object.values(DirtyClient)) {
        this.dirty.testAndClear(block.ramPage, flatPages(block), client);
      }
      this.#freeBitmaps(block.bitmaps, block);
      if (block.discardManager !== undefined) {
        const { address, granularity } = block.discardManager;
        this.bitmaps.free(address, discardStateBits(block, granularity));
      }
      owned.ram.free(block.extents);
      owned.flat.free(block.ramPage, flatPages(block));
    }
  }

  /**
   * Changes the used length of a resizable block; afterwards all of it is dirty for all clients and nothing beyond (DM-22).
   * Its memory keeps its content. A migration or snapshot under way fails (DM-23). Throws RAM_BLOCK_NOT_RESIZABLE,
   * RAM_BLOCK_LENGTH_ABOVE_MAXIMUM, RAM_BLOCK_LENGTH_INVALID, GUEST_BUSY where the guest is stopped for its switchover or being
   * loaded, or what an observer throws; nothing has changed then.
   */
  resize(block: RamBlock, usedLength: number): void {
    this.#owned();
    this.#checkListed(block);
    if (usedLength === block.usedLength) {
      return;
    }
    checkResize(block, usedLength);
    const what = `RAM block ${block.name} cannot be resized`;
    if (!this.#permitted) {
      this.#claims.checkResizable(what);
    }
    this.#notify((observer) => observer.resizing?.(block, usedLength));
    this.#change(what, () => this.#setLength(block, usedLength), block.id);
  }

  #setLength(block: RamBlock, usedLength: number): void {
    const oldPages = block.usedPages;
    for (const client of Object.values(DirtyClient)) {
      this.dirty.testAndClear(block.ramPage, oldPages, client);
    }
    block.setUsedLength(usedLength);
    this.#nextVersion();
    // Marks in the part that is gone would come back with the next log sync.
    for (const log of [block.bitmaps.remote, block.bitmaps.snapshot]) {
      this.bitmaps.kernels.testAndClearRange(log, block.usedPages, Math.max(0, oldPages - block.usedPages));
    }
    this.dirty.setRange(block.ramPage, block.usedPages, DirtyClientMask.all);
  }

  /** A description of the list as it is now, for `attach` and `update` in other threads. */
  share(): SharedRamBlockList {
    if (this.#ownership !== undefined) {
      this.#ownership.isShared = true;
    }
    const ids = new Map([...this.#segments].map(([id, segment]) => [segment, id]));
    const used = new Set(this.#blocks.flatMap((block) => block.extents.map(({ segment }) => segment)));
    return {
      version: this.#version,
      segmentBytes: this.segmentBytes,
      bitmaps: this.bitmaps.memory,
      dirty: this.dirty.header,
      claims: this.#claimsAddress,
      // Without those that only retired blocks use: the other threads shall let go of them, so that the engine can.
      segments: [...ids].filter(([segment]) => used.has(segment)).map(([{ memory }, id]) => ({ id, memory })),
      blocks: this.#blocks.map((block) => shareBlock(block, ids)),
    };
  }

  /** The list in another thread. It can do everything but add, remove, resize and reclaim. */
  static attach(shared: SharedRamBlockList): RamBlockList {
    const bitmaps = BitmapMemory.attach(shared.bitmaps);
    const dirty = DirtyMemory.attach(bitmaps, shared.dirty);
    const list = new RamBlockList(bitmaps, dirty, shared.segmentBytes, shared.claims);
    list.#takeOver(shared);
    return list;
  }

  /**
   * Takes over a newer description; an older one, or the same, changes nothing. Blocks and segments that remain are the same
   * objects as before. Observers are told, but can refuse nothing any more.
   */
  update(shared: SharedRamBlockList): void {
    if (shared.version > this.#version) {
      this.#takeOver(shared);
    }
  }

  #takeOver(shared: SharedRamBlockList): void {
    const segments = new Map(shared.segments.map(({ id, memory }) => [id, memory]));
    for (const id of this.#segments.keys()) {
      if (!segments.has(id)) {
        this.#segments.delete(id);
      }
    }
    for (const [id, memory] of segments) {
      // A memory that is sent twice arrives as two objects: the first one stays.
      if (!this.#segments.has(id)) {
        this.#segments.set(id, Segment.attach(memory));
      }
    }
    const known = new Map(this.#blocks.map((block) => [block.id, block]));
    const blocks = shared.blocks.map((description) => known.get(description.id) ?? this.#attachBlock(description));
    const listed = new Set(blocks);
    for (const block of known.values()) {
      if (!listed.has(block)) {
        this.#notify((observer) => observer.removing?.(block));
        block.discardManager?.abandon();
      }
    }
    for (const [index, { spec }] of shared.blocks.entries()) {
      const block = blocks[index]!;
      if (block.usedLength !== spec.usedLength) {
        this.#notify((observer) => observer.resizing?.(block, spec.usedLength));
        block.setUsedLength(spec.usedLength);
      }
    }
    this.#blocks = blocks;
    this.#version = shared.version;
    for (const block of blocks.filter((candidate) => !known.has(candidate.id))) {
      this.#notify((observer) => observer.added?.(block));
    }
  }

  /**
   * Runs a change of the list while nobody can claim the guest. A resize, of the block with id `resized`, breaks the claim that
   * there is; any other change is refused then.
   */
  #change<T>(what: string, change: () => T, resized?: number): T {
    if (this.#permitted) {
      return change();
    }
    if (resized === undefined) {
      this.#claims.beginChange(what);
    } else {
      this.#claims.beginResize(resized, what);
    }
    this.#isChanging = true;
    try {
      return change();
    } finally {
      this.#isChanging = false;
      this.#claims.endChange();
    }
  }

  #nextVersion(): void {
    this.#version += 1;
    this.#claims.version = this.#version;
  }

  #place(spec: Required<RamBlockSpec>, owned: Ownership): RamBlock {
    const pages = flatPages(spec);
    const start = owned.flat.allocate(pages);
    if (start === undefined) {
      throw new RamferryError(
        'failed',
        'FLAT_SPACE_EXHAUSTED',
        `The ram address space of ${FLAT_SPACE_PAGES} pages has no gap for RAM block ${spec.name} of ${pages} pages`,
        { value: spec.maxLength },
      );
    }
    const undo = [() => owned.flat.free(start, pages)];
    try {
      const allocate = (bits = pages): number => {
        const address = this.bitmaps.allocate(bits);
        undo.push(() => this.bitmaps.free(address, bits));
        return address;
      };
      const migrated = spec.migratable && !spec.ignored;
      const bitmaps = {
        send: migrated ? allocate() : 0,
        remote: allocate(),
        snapshot: allocate(),
        received: migrated ? allocate() : 0,
      };
      const endDiscards =
        spec.discardGranularity > 0 ? this.discardGate.requireCoordinated(`RAM block ${spec.name}`) : () => {};
      undo.push(endDiscards);
      const discardState = spec.discardGranularity > 0 ? allocate(discardStateBits(spec, spec.discardGranularity)) : 0;
      this.dirty.grow(start + pages);
      const extents = owned.ram.allocate(spec.maxLength);
      const discardManager = this.#discardManager(spec, discardState);
      const block = new RamBlock(spec, {
        id: owned.nextId++,
        ramPage: ramPage(start),
        extents,
        bitmaps,
        discardManager,
      });
      owned.discards.set(block, endDiscards);
      return block;
    } catch (error) {
      for (const step of undo.reverse()) {
        step();
      }
      if (error instanceof RamferryError) {
        throw error;
      }
      throw new RamferryError(
        'failed',
        'GUEST_MEMORY_EXHAUSTED',
        `No memory for RAM block ${spec.name} of ${spec.maxLength} bytes`,
        { value: spec.maxLength, cause: error },
      );
    }
  }

  #freeBitmaps(bitmaps: BlockBitmaps, block: RamBlock): void {
    const addresses = block.migrated
      ? [bitmaps.send, bitmaps.remote, bitmaps.snapshot, bitmaps.received]
      : [bitmaps.remote, bitmaps.snapshot];
    for (const address of addresses) {
      this.bitmaps.free(address, flatPages(block));
    }
  }

  #discardManager(spec: Required<RamBlockSpec>, state: number): RamDiscardManager | undefined {
    return state === 0 ? undefined : new RamDiscardManager(spec, spec.discardGranularity, this.bitmaps, state);
  }

  #attachBlock({ id, spec, ramPage: start, bitmaps, discardState, extents }: SharedRamBlock): RamBlock {
    return new RamBlock(spec, {
      id,
      ramPage: ramPage(start),
      bitmaps,
      discardManager: this.#discardManager(spec, discardState),
      extents: extents.map(({ segment, address, firstPage, pageCount }) => ({
        segment: this.#segments.get(segment)!,
        address,
        firstPage: pageIndex(firstPage),
        pageCount,
      })),
    });
  }

  #notify(tell: (observer: RamBlockObserver) => void): void {
    for (const observer of [...this.#observers]) {
      tell(observer);
    }
  }

  #checkListed(block: RamBlock): void {
    if (!this.#blocks.includes(block)) {
      throw new RamferryError('usage', 'RAM_BLOCK_UNKNOWN', `RAM block ${block.name} is not in this list`, {
        value: block.name,
      });
    }
  }

  #owned(): Ownership {
    if (this.#ownership === undefined) {
      throw new RamferryError('usage', 'NOT_OWNER', 'Only the thread that created the RAM block list changes it');
    }
    return this.#ownership;
  }
}

const shareBlock = (block: RamBlock, segmentIds: ReadonlyMap<Segment, number>): SharedRamBlock => {
  const { name, usedLength, maxLength, hostPageSize, migratable, ignored, shared, resizable, guestAddress } = block;
  const { remote, snapshot } = block.bitmaps;
  const discardGranularity = block.discardManager?.granularity ?? 0;
  return {
    id: block.id,
    spec: {
      ...{ name, usedLength, maxLength, hostPageSize, migratable, ignored, shared, resizable, guestAddress },
      discardGranularity,
    },
    ramPage: block.ramPage,
    bitmaps: {
      send: block.migrated ? block.bitmaps.send : 0,
      remote,
      snapshot,
      received: block.migrated ? block.bitmaps.received : 0,
    },
    discardState: block.discardManager?.address ?? 0,
    extents: block.extents.map((extent) => ({ ...extent, segment: segmentIds.get(extent.segment)! })),
  };
};

const completeSpec = (spec: RamBlockSpec): Required<RamBlockSpec> => {
  const maxLength = spec.maxLength ?? spec.usedLength;
  const complete = {
    maxLength,
    hostPageSize: GUEST_PAGE_SIZE,
    migratable: true,
    ignored: false,
    shared: false,
    resizable: maxLength !== spec.usedLength,
    guestAddress: guestAddress(0),
    discardGranularity: 0,
    ...spec,
  };
  const nameBytes = new TextEncoder().encode(spec.name).length;
  if (nameBytes < 1 || nameBytes > MAX_NAME_BYTES) {
    throw new RamferryError(
      'usage',
      'RAM_BLOCK_NAME_INVALID',
      `The name of a RAM block has 1 to ${MAX_NAME_BYTES} bytes, this one has ${nameBytes}`,
      { value: spec.name },
    );
  }
  const { hostPageSize } = complete;
  if (!Number.isInteger(Math.log2(hostPageSize)) || hostPageSize < GUEST_PAGE_SIZE) {
    throw new RamferryError(
      'usage',
      'RAM_BLOCK_PAGE_SIZE_INVALID',
      `Host page size ${hostPageSize} of RAM block ${spec.name} is not a power of two from ${GUEST_PAGE_SIZE} up`,
      { value: hostPageSize },
    );
  }
  checkLength(complete, complete.maxLength);
  checkLength(complete, complete.usedLength);
  if (complete.usedLength > complete.maxLength) {
    throw aboveMaximum(complete, complete.usedLength);
  }
  if (complete.discardGranularity !== 0) {
    checkDiscardGranularity(complete, complete.discardGranularity);
    if (complete.resizable) {
      throw new RamferryError(
        'usage',
        'DISCARD_GRANULARITY_INVALID',
        `RAM block ${spec.name} can be resized, so it cannot have discarded parts`,
        { value: complete.discardGranularity },
      );
    }
  }
  return complete;
};

const checkResize = (block: RamBlock, usedLength: number): void => {
  if (!block.resizable) {
    throw new RamferryError(
      'usage',
      'RAM_BLOCK_NOT_RESIZABLE',
      `RAM block ${block.name} of ${block.usedLength} bytes is not resizable, cannot make it ${usedLength} bytes`,
      { value: usedLength },
    );
  }
  if (usedLength > block.maxLength) {
    throw aboveMaximum(block, usedLength);
  }
  checkLength(block, usedLength);
};

const aboveMaximum = (block: { readonly name: string; readonly maxLength: number }, length: number): RamferryError =>
  new RamferryError(
    'usage',
    'RAM_BLOCK_LENGTH_ABOVE_MAXIMUM',
    `RAM block ${block.name} has a maximum of ${block.maxLength} bytes, cannot make it ${length} bytes`,
    { value: length },
  );

const checkLength = (block: { readonly name: string; readonly hostPageSize: number }, length: number): void => {
  if (!Number.isSafeInteger(length) || length <= 0 || length % block.hostPageSize !== 0) {
    throw new RamferryError(
      'usage',
      'RAM_BLOCK_LENGTH_INVALID',
      `Length ${length} of RAM block ${block.name} is not a positive multiple of its page size ${block.hostPageSize}`,
      { value: length },
    );
  }
};
