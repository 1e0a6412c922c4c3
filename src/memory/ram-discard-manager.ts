// Which parts of a RAM block are logically memory (spec/algorithms.md section 6). A sparsely used block, such as the one of a
// virtio-mem device, is populated where the guest has memory plugged in and discarded everywhere else: what a discarded
// part holds is undefined, and so much as reading it may make the system allocate it.
//
//   granule      0   1   2   3   4   5   6   7        granularity: bytes of a granule
//   bitmap       1   1   0   0   0   1   0   0        1 = populated
//                └─────┘ └───────────┘ └─────┘
//   replay       populated  discarded  discarded      maximal runs, ascending, cut to the section asked for
//
// The state is one word and the bitmap, in shared memory, so that every thread's list of blocks shows the same:
//
//      0   may change        populate, discard: 0 ─▶ -1 ─▶ 0, by the thread of the device
//     -1   is changing       freeze: waits for 0, then counts up; thaw: counts down
//    n>0   frozen, n times   by each migration or snapshot that relies on it (RD-11)
//     -2   retired           0 ─▶ -2 when the block is unplugged; for good

import { GUEST_PAGE_SIZE } from '../../kernels/kernels.js';
import type { BitmapMemory } from './bitmap-memory.js';
import { RamferryError } from './errors.js';

const CHANGING = -1;
const RETIRED = -2;

/** The state word has a cache line of its own before the bitmap. */
const HEADER_BITS = 512;

/** How long a change may take while somebody waits to freeze the state: listeners make system calls for each MiB. */
const FREEZE_TIMEOUT_MS = 10_000;

/** Bytes [offset, offset + length) of the block. */
export interface RamSection {
  readonly offset: number;
  readonly length: number;
}

export type VisitSection = (offset: number, length: number) => void;

/**
 * Told of changes, in the order of registering and only in the thread that makes them. Ranges are granules, cut to the
 * section that the listener registered for.
 */
export interface RamDiscardListener {
  /** The range is about to be populated. Throws to refuse; whoever was told before is told of its discard then. */
  populate: VisitSection;
  /** The range is discarded. Must not throw. */
  discard: VisitSection;
}

/** What a manager needs of its block. */
export interface ManagedBlock {
  readonly name: string;
  readonly maxLength: number;
  readonly hostPageSize: number;
}

/** Bits of bitmap memory for the state of a block. */
export const discardStateBits = ({ maxLength }: ManagedBlock, granularity: number): number =>
  HEADER_BITS + Math.ceil(maxLength / granularity);

/** Throws DISCARD_GRANULARITY_INVALID (RD-21): a page that is only partly discarded would be neither moved nor not moved. */
export const checkDiscardGranularity = ({ name, hostPageSize }: ManagedBlock, granularity: number): void => {
  if (!Number.isInteger(Math.log2(granularity)) || granularity < Math.max(hostPageSize, GUEST_PAGE_SIZE)) {
    throw new RamferryError(
      'usage',
      'DISCARD_GRANULARITY_INVALID',
      `Discard granularity ${granularity} of RAM block ${name} is not a power of two from its page size ${hostPageSize} up`,
      { value: granularity },
    );
  }
};

export class RamDiscardManager {
  /** Bytes in whose multiples the state changes. */
  readonly granularity: number;
  /** Byte address of the state in the bitmap memory. */
  readonly address: number;
  readonly #block: ManagedBlock;
  readonly #bitmaps: BitmapMemory;
  readonly #bitmap: number;
  readonly #listeners = new Map<RamDiscardListener, RamSection>();
  /** The block has left the list; the state may be somebody else's memory by now. */
  #isRetired = false;

  /** `address`: `discardStateBits` bits of `bitmaps`; zero bits are discarded granules. */
  constructor(block: ManagedBlock, granularity: number, bitmaps: BitmapMemory, address: number) {
    this.granularity = granularity;
    this.address = address;
    this.#block = block;
    this.#bitmaps = bitmaps;
    this.#bitmap = address + HEADER_BITS / 8;
  }

  /** Bytes that are populated. */
  get populatedBytes(): number {
    let bytes = 0;
    this.replayPopulated(0, this.#block.maxLength, (_offset, length) => {
      bytes += length;
    });
    return bytes;
  }

  /** Whether every byte of the section is populated; its bounds need not be those of granules (RD-9). */
  isPopulated(offset: number, length: number): boolean {
    const [first, end] = this.#granules(offset, length);
    return this.#bitmaps.kernels.findNextClear(this.#bitmap, first, end) === end;
  }

  /** Whether every byte of the section is discarded. */
  isDiscarded(offset: number, length: number): boolean {
    const [first, end] = this.#granules(offset, length);
    return this.#bitmaps.kernels.findNextSet(this.#bitmap, first, end) === end;
  }

  /** Where the populated run ends that has the byte at `offset`; `offset` or less if that is discarded. */
  populatedEnd(offset: number): number {
    const [first, end] = this.#granules(offset, this.#block.maxLength - offset);
    const granule = this.#bitmaps.kernels.findNextClear(this.#bitmap, first, end);
    return Math.min(this.#block.maxLength, granule * this.granularity);
  }

  /** Visits the populated runs of a section, ascending. What `visit` throws ends it (RD-10). */
  replayPopulated(offset: number, length: number, visit: VisitSection): void {
    this.#replay(offset, length, visit, true);
  }

  /** Visits what `replayPopulated` leaves out (RD-8). */
  replayDiscarded(offset: number, length: number, visit: VisitSection): void {
    this.#replay(offset, length, visit, false);
  }

  /** From here on the listener hears of changes in the section; of what is populated there now it hears at once (RD-23). */
  register(listener: RamDiscardListener, section: RamSection = { offset: 0, length: this.#block.maxLength }): void {
    this.#checkInside(section.offset, section.length);
    const told: RamSection[] = [];
    try {
      this.replayPopulated(section.offset, section.length, (offset, length) => {
        listener.populate(offset, length);
        told.push({ offset, length });
      });
    } catch (error) {
      for (const { offset, length } of told) {
        listener.discard(offset, length);
      }
      throw error;
    }
    this.#listeners.set(listener, section);
  }

  /** Tells the listener of the discard of what is populated in its section, and of nothing any more. */
  unregister(listener: RamDiscardListener): void {
    const section = this.#listeners.get(listener);
    this.#listeners.delete(listener);
    if (section !== undefined) {
      this.replayPopulated(section.offset, section.length, listener.discard.bind(listener));
    }
  }

  /**
   * Populates granules that are discarded. Nothing has changed when it throws: RAM_DISCARD_BUSY while the state is frozen,
   * RAM_DISCARD_STATE if a part is populated, or what a listener refused with (RD-22).
   */
  populate(offset: number, length: number): void {
    this.#change(offset, length, () => {
      if (!this.isDiscarded(offset, length)) {
        throw this.#wrongState(offset, length, 'are not all discarded');
      }
      const told: RamDiscardListener[] = [];
      try {
        for (const [listener, section] of this.#listeners) {
          within(section, offset, length, listener.populate.bind(listener));
          told.push(listener);
        }
      } catch (error) {
        for (const listener of told) {
          within(this.#listeners.get(listener)!, offset, length, listener.discard.bind(listener));
        }
        throw error;
      }
      this.#bitmaps.kernels.setRange(this.#bitmap, offset / this.granularity, this.#count(offset, length));
    });
  }

  /**
   * Discards what is populated of a range of granules. Listeners find it discarded when they ask. Nothing has changed when it
   * throws RAM_DISCARD_BUSY.
   */
  discard(offset: number, length: number): void {
    this.#change(offset, length, () => {
      const runs: RamSection[] = [];
      this.replayPopulated(offset, length, (start, bytes) => runs.push({ offset: start, length: bytes }));
      this.#bitmaps.kernels.testAndClearRange(this.#bitmap, offset / this.granularity, this.#count(offset, length));
      for (const run of runs) {
        for (const [listener, section] of this.#listeners) {
          within(section, run.offset, run.length, listener.discard.bind(listener));
        }
      }
    });
  }

  /** Whether the state must not change now. */
  get isFrozen(): boolean {
    return Atomics.load(this.#bitmaps.words, this.address >>> 2) > 0;
  }

  /** From here until `thaw` the state stays as it is (RD-11). Any thread may; a change under way is waited for. */
  freeze(): void {
    const { words } = this.#bitmaps;
    const word = this.address >>> 2;
    for (;;) {
      this.#checkListed();
      const seen = Atomics.load(words, word);
      if (seen === RETIRED) {
        throw this.#unplugged();
      }
      if (seen >= 0 && Atomics.compareExchange(words, word, seen, seen + 1) === seen) {
        return;
      }
      if (seen === CHANGING && Atomics.wait(words, word, CHANGING, FREEZE_TIMEOUT_MS) === 'timed-out') {
        throw new RamferryError(
          'failed',
          'RAM_DISCARD_STUCK',
          `A change of what is populated of RAM block ${this.#block.name} did not end within ${FREEZE_TIMEOUT_MS} ms.`,
          { value: this.#block.name },
        );
      }
    }
  }

  /** Takes back one `freeze`. Throws RAM_DISCARD_STATE if there was none. */
  thaw(): void {
    this.#checkListed();
    const { words } = this.#bitmaps;
    const word = this.address >>> 2;
    for (let seen = Atomics.load(words, word); ; seen = Atomics.load(words, word)) {
      if (seen <= 0) {
        throw new RamferryError(
          'usage',
          'RAM_DISCARD_STATE',
          `What is populated of RAM block ${this.#block.name} is not frozen, so nobody can thaw it.`,
          { value: seen },
        );
      }
      if (Atomics.compareExchange(words, word, seen, seen - 1) === seen) {
        return;
      }
    }
  }

  /**
   * The end, before the block's bitmaps are given back: nothing is changed or frozen any more, in no thread. Only for the list
   * that owns the block. Throws RAM_DISCARD_BUSY while somebody relies on the state, or changes it.
   */
  retire(): void {
    this.#checkListed();
    if (Atomics.compareExchange(this.#bitmaps.words, this.address >>> 2, 0, RETIRED) !== 0) {
      throw this.#busy();
    }
    this.#isRetired = true;
  }

  /** Throws what `retire` would throw at this moment. */
  checkIdle(): void {
    this.#checkListed();
    if (Atomics.load(this.#bitmaps.words, this.address >>> 2) !== 0) {
      throw this.#busy();
    }
  }

  #busy(): RamferryError {
    return new RamferryError(
      'failed',
      'RAM_DISCARD_BUSY',
      `RAM block ${this.#block.name} cannot be unplugged while somebody relies on what is populated of it, or changes that.`,
      { value: this.#block.name },
    );
  }

  /** The same in another thread, after the owner's list has let go of the block: touches nothing. */
  abandon(): void {
    this.#isRetired = true;
  }

  #change(offset: number, length: number, change: () => void): void {
    this.#checkGranules(offset, length);
    const { words } = this.#bitmaps;
    const word = this.address >>> 2;
    const seen = Atomics.compareExchange(words, word, 0, CHANGING);
    if (seen === RETIRED) {
      throw this.#unplugged();
    }
    if (seen !== 0) {
      throw new RamferryError(
        'failed',
        'RAM_DISCARD_BUSY',
        `What is populated of RAM block ${this.#block.name} must not change while it is migrated or saved.`,
        { value: this.#block.name },
      );
    }
    try {
      change();
    } finally {
      Atomics.store(words, word, 0);
      Atomics.notify(words, word);
    }
  }

  #replay(offset: number, length: number, visit: VisitSection, populated: boolean): void {
    const { kernels } = this.#bitmaps;
    const [first, end] = this.#granules(offset, length);
    const findStart = populated ? kernels.findNextSet : kernels.findNextClear;
    const findEnd = populated ? kernels.findNextClear : kernels.findNextSet;
    for (let from = findStart(this.#bitmap, first, end); from < end; ) {
      const to = findEnd(this.#bitmap, from, end);
      const start = Math.max(offset, from * this.granularity);
      visit(start, Math.min(offset + length, to * this.granularity) - start);
      from = findStart(this.#bitmap, to, end);
    }
  }

  /** The granules that a section has a part of: [first, end). */
  #granules(offset: number, length: number): readonly [number, number] {
    this.#checkInside(offset, length);
    const first = Math.floor(offset / this.granularity);
    return [first, length === 0 ? first : Math.ceil((offset + length) / this.granularity)];
  }

  #count(offset: number, length: number): number {
    return Math.ceil((offset + length) / this.granularity) - offset / this.granularity;
  }

  #checkListed(): void {
    if (this.#isRetired) {
      throw this.#unplugged();
    }
  }

  #unplugged(): RamferryError {
    return new RamferryError(
      'usage',
      'RAM_BLOCK_UNKNOWN',
      `RAM block ${this.#block.name} was unplugged: nothing of it is populated or discarded any more.`,
      { value: this.#block.name },
    );
  }

  #checkInside(offset: number, length: number): void {
    this.#checkListed();
    if (!(offset >= 0 && length >= 0 && offset + length <= this.#block.maxLength)) {
      throw this.#wrongState(offset, length, `are not in its ${this.#block.maxLength} bytes`);
    }
  }

  #checkGranules(offset: number, length: number): void {
    this.#checkInside(offset, length);
    const end = offset + length;
    if (offset % this.granularity !== 0 || (end % this.granularity !== 0 && end !== this.#block.maxLength)) {
      throw this.#wrongState(offset, length, `are not whole granules of ${this.granularity} bytes`);
    }
  }

  #wrongState(offset: number, length: number, what: string): RamferryError {
    return new RamferryError(
      'usage',
      'RAM_DISCARD_STATE',
      `Bytes ${offset} to ${offset + length} of RAM block ${this.#block.name} ${what}.`,
      { value: offset },
    );
  }
}

const within = (section: RamSection, offset: number, length: number, visit: VisitSection): void => {
  const start = Math.max(section.offset, offset);
  const end = Math.min(section.offset + section.length, offset + length);
  if (start < end) {
    visit(start, end - start);
  }
};
