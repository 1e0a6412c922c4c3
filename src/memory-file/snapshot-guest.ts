// An opened memory file as a guest that never runs: what `send` migrates. Its RAM stays in the file; the engine gets a
// window of it at a time, so that sending needs a few MiB however large the guest is.

import { GUEST_PAGE_SIZE } from '../../kernels/kernels.js';
import { refuseElsewhere } from '../format/elsewhere.js';
import type { RamDigest } from '../format/ram-digest.js';
import type { Snapshot } from '../format/snapshot.js';
import { Capability } from '../format/stream/constants.js';
import { type DeviceTail, inFrontOfPages, pickRamSectionId } from '../format/stream/device-tail.js';
import { withRunState } from '../format/stream/global-state.js';
import { oldFraming } from '../format/stream/write.js';
import { RamferryError } from '../memory/errors.js';
import type { Extent, RamBlock } from '../memory/ram-block.js';
import { RamBlockList } from '../memory/ram-block-list.js';
import { Segment, STAGING_SLOT_PAGES } from '../memory/segment.js';
import type { PageIndex } from '../memory/units.js';
import type { SourceGuest } from '../source/guest.js';
import type { RunDecision } from './run-decision.js';

export interface SnapshotGuestOptions {
  /** Of the snapshot's blocks; sees all content on its way. */
  readonly digest?: RamDigest | undefined;
  /** Device state in place of the snapshot's. */
  readonly devices?: DeviceTail | undefined;
  /** Blocks whose content the destination has by other means, except for pages that it has to be told are zero, by name. */
  readonly held?: ReadonlyMap<string, readonly PageRange[]> | undefined;
  /** What the device state is to say instead of the state that the guest was saved in. */
  readonly runState?: RunDecision['rewritten'];
  /**
   * Windows that take turns, so that a sink can still write one while the next is read: a power of two. Default 1, which stays
   * in the processor's cache.
   */
  readonly windows?: number;
}

/** A little less than the ram address space has: besides each page's bits in it, those that say which pages have content. */
const SENDABLE_BYTES = 6 * 2 ** 40;

/** Neighbouring pages of a block. */
export interface PageRange {
  readonly firstPage: number;
  readonly pageCount: number;
}

const WINDOW_BYTES = STAGING_SLOT_PAGES * GUEST_PAGE_SIZE;

export class SnapshotGuest implements SourceGuest {
  readonly machine: string;
  readonly uuid: string | undefined;
  readonly targetPageBits: number | undefined;
  readonly ramSectionId: number;
  readonly earlySections: Uint8Array;
  /** Only the geometry: guest RAM is reserved when a block is added and never touched here. */
  readonly blocks: RamBlockList;
  readonly log = undefined;

  readonly #snapshot: Snapshot;
  readonly #devices: DeviceTail;
  /** Position of each block in the snapshot. */
  readonly #indexes = new Map<RamBlock, number>();
  readonly #content = new Map<RamBlock, number>();
  readonly extentsKept: number;
  readonly #windows: Segment;
  #nextWindow = 0;
  #loaded: { readonly block: RamBlock; readonly extent: Extent } | undefined;

  readonly #digest: RamDigest | undefined;
  readonly #held: SnapshotGuestOptions['held'];

  /**
   * @param file its name, for errors
   * @throws RamferryError `invalid`, if the file has what cannot be sent on as a plain stream
   */
  constructor(snapshot: Snapshot, file?: string, options: SnapshotGuestOptions = {}) {
    const { digest, devices, held, runState, windows = 1 } = options;
    refuseElsewhere(snapshot, undefined, file);
    this.#held = held;
    this.#digest = digest;
    this.#windows = Segment.create({ ramBytes: windows * WINDOW_BYTES });
    this.extentsKept = windows - 1;
    const { configuration, setup, summary } = snapshot;
    const refuse = (what: string, value: number | string): never => {
      throw new RamferryError('invalid', 'NOT_SENDABLE', `The snapshot ${what}; it cannot be sent.`, {
        value,
        ...(file === undefined ? {} : { file }),
      });
    };
    if (setup.targetPageSize !== GUEST_PAGE_SIZE) {
      refuse(
        `has pages of ${setup.targetPageSize} bytes and only ${GUEST_PAGE_SIZE} are supported here`,
        setup.targetPageSize,
      );
    }
    if (configuration.isMissing || summary.tail.lacksFooters) {
      throw oldFraming('Another stream').with(file === undefined ? {} : { file });
    }
    // Which capabilities the receiver has is its own matter, and mapped-ram is about the file (1.10 item 1).
    const needed = configuration.capabilities.filter((capability) => capability !== Capability.MAPPED_RAM);
    if (needed.length > 0) {
      refuse(`needs the capability ${needed.join(', ')}`, needed.join(','));
    }
    if (setup.totalBytes > SENDABLE_BYTES) {
      throw new RamferryError(
        'failed',
        'MEMORY_LIMIT',
        `The snapshot has ${setup.totalBytes} bytes of RAM; no more than ${SENDABLE_BYTES} can be sent.`,
        { value: setup.totalBytes, ...(file === undefined ? {} : { file }) },
      );
    }
    this.machine = configuration.machine;
    this.uuid = configuration.uuid;
    this.targetPageBits = configuration.targetPageBits;
    this.#snapshot = snapshot;
    this.#devices = devices ?? (runState === undefined ? summary.tail : withRunState(summary, runState));
    this.earlySections = inFrontOfPages(summary.tail);
    this.ramSectionId = pickRamSectionId(summary.tail);
    this.blocks = RamBlockList.create();
    for (const { index, name, usedLength } of setup.blocks) {
      const discardGranularity = GUEST_PAGE_SIZE;
      const zeros = held?.get(name);
      const block = this.blocks.add({ name, usedLength, ignored: zeros?.length === 0, discardGranularity });
      this.#indexes.set(block, index);
      if (zeros === undefined) {
        this.#discard(block);
      } else {
        for (const { firstPage, pageCount } of zeros) {
          block.discardManager!.populate(firstPage * GUEST_PAGE_SIZE, pageCount * GUEST_PAGE_SIZE);
        }
      }
    }
  }

  /** What was no memory, as far as the file tells, is none here. */
  #discard(block: RamBlock): void {
    const manager = block.discardManager!;
    manager.populate(0, block.usedLength);
    this.#snapshot.forEachDiscarded(this.#indexes.get(block)!, (firstPage, pageCount) => {
      manager.discard(firstPage * GUEST_PAGE_SIZE, pageCount * GUEST_PAGE_SIZE);
    });
  }

  isRunning(): boolean {
    return false;
  }

  async stop(): Promise<void> {}

  async resume(): Promise<void> {}

  saveDevices(): DeviceTail {
    return this.#devices;
  }

  /** Made when first asked for, which takes a stream file a few milliseconds for each GiB. */
  contentBitmap(block: RamBlock): number {
    let address = this.#content.get(block);
    if (address === undefined) {
      const { bitmaps } = this.blocks;
      address = bitmaps.allocate(block.usedPages);
      const target = new Uint8Array(bitmaps.memory.buffer, address, Math.ceil(block.usedPages / 8));
      if (this.#held?.has(block.name) !== true) {
        this.#snapshot.presentBitmap(this.#indexes.get(block) as number, target);
      }
      this.#content.set(block, address);
    }
    return address;
  }

  extentAt(block: RamBlock, page: PageIndex, pagesWanted: number): Extent {
    const loaded = this.#loaded;
    if (
      loaded?.block === block &&
      page >= loaded.extent.firstPage &&
      page < loaded.extent.firstPage + loaded.extent.pageCount
    ) {
      return loaded.extent;
    }
    const pageCount = Math.min(STAGING_SLOT_PAGES, pagesWanted, block.usedPages - page);
    const address = this.#nextWindow * WINDOW_BYTES;
    this.#nextWindow = (this.#nextWindow + 1) % (this.extentsKept + 1);
    const target = this.#windows.bytes.subarray(address, address + pageCount * GUEST_PAGE_SIZE);
    const index = this.#indexes.get(block) as number;
    this.#snapshot.readPages(index, page, pageCount, target);
    this.#digest?.setInSegment(index, page * GUEST_PAGE_SIZE, this.#windows, address, target.length);
    const extent = { segment: this.#windows, address, firstPage: page, pageCount };
    this.#loaded = { block, extent };
    return extent;
  }
}
