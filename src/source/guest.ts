// What the source engine needs of a guest. The engine runs in its own thread; an implementation is the guest as that
// thread sees it, over shared memory, so that stopping it does not wait for anybody's event loop.

import type { DirtyLog } from '../dirty-log/dirty-log.js';
import type { WriteProtector } from '../dirty-log/write-protector.js';
import type { DeviceTail } from '../format/stream/device-tail.js';
import type { Extent, RamBlock } from '../memory/ram-block.js';
import type { RamBlockList } from '../memory/ram-block-list.js';
import type { PageIndex } from '../memory/units.js';

/** Pages of one block that the guest says it does not use. The engine reuses one object for all of them. */
export interface HintedRange {
  /** `RamBlock.id`. */
  blockId: number;
  /** Whole pages only: rounded inward by who resolved the guest's addresses (FH-19). */
  firstPage: number;
  pageCount: number;
}

/**
 * The status of the virtio-balloon device. A guest that never answers stays at `requested`; its end marker leads back
 * to `stop`.
 *
 *   stop ──request──▶ requested ──start marker──▶ start ──end marker, stop()──▶ stop ──done()──▶ done
 */
export type HintStatus = 'stop' | 'requested' | 'start' | 'done';

/**
 * The guest's free page hints as the engine's thread takes them (spec/algorithms.md section 3): a bounded ring that the
 * device fills. The engine alone owns the send bitmap, and takes and applies hints between batches, so that nothing
 * executes when `stop` has returned (FH-8) and no lock exists to be inverted (FH-25). No call waits for the guest (FH-22).
 *
 *   per round:  request ──▶ ( next* ──▶ acknowledge )* ──▶ stop ──▶ log sync ──▶ request …
 *   at the end: done
 */
export interface HintSource {
  /**
   * True if the guest leaves the pages of a hint alone until it was acknowledged. Then marks that the log has of them stem
   * from before the hint, and are dropped with it; otherwise they may be of a guest that took the page back.
   */
  readonly acknowledged: boolean;

  /** Device status as of now. Once it is `stop` after a request, what is not yet taken is in the ring. */
  readonly status: HintStatus;

  /** Hints ever dropped because they were given under an id that is no longer current (FH-5). */
  readonly stale: number;

  /** Hints ever dropped, or in part, because no guest memory is there (FH-4). */
  readonly outside: number;

  /** Whether the guest's driver broke the protocol, so that nothing more comes of it. */
  readonly isBroken: boolean;

  /** Asks for hints under a new id; after each sync with a running guest (FH-11). */
  request(): void;

  /** Before each sync: `next` yields nothing any more until the next request, whatever the ring holds (FH-7). */
  stop(): void;

  /** The guest stopped for the switchover, or the migration ended in any way: the guest may use its pages again (FH-12, FH-13). */
  done(): void;

  /** Puts the next hint given under the current id into `range`; false if there is none at the moment. */
  next(range: HintedRange): boolean;

  /** All ranges taken so far were applied: their elements may go back to the guest. */
  acknowledge(): void;
}

export interface SourceGuest {
  /** Machine type name of the configuration element, e.g. `pc-i440fx-10.0`. */
  readonly machine: string;

  /** Textual UUID, if the configuration element shall carry one. */
  readonly uuid: string | undefined;

  /** log2 of the page size, if the configuration element shall say it: machines whose architecture leaves it open do. */
  readonly targetPageBits?: number | undefined;

  /** Section id for RAM: not 0, which a QEMU destination mistakes, and not that of a device section. */
  readonly ramSectionId: number;

  readonly blocks: RamBlockList;

  /** Sees the guest's writes; undefined for a guest that cannot write (an opened snapshot). */
  readonly log: DirtyLog | undefined;

  /** The guest's free page hints, where it has a balloon device that gives them. */
  readonly hints?: HintSource;

  /** Keeps its pages as they are at an instant, if the guest's own stores can be asked to. */
  readonly protector?: WriteProtector | undefined;

  /** Whether the guest executes at this moment. */
  isRunning(): boolean;

  /**
   * Keeps the guest from running, whoever else does. Returns once every vCPU is parked and every mark of its stores is visible
   * to this thread (TS-3).
   */
  stop(): Promise<void>;

  /** Takes back `stop`: the guest runs on, if it ran then and its owner has not paused it since. */
  resume(): Promise<void>;

  /**
   * Instead of `resume`: the guest stays stopped, and is its owner's again. With `hasMoved` it runs, or may run, at the destination, so
   * that its owner must not let it run here by mistake. Not for guests that never run.
   */
  leave?(hasMoved: boolean): void;

  /** FULL sections, footers included, that go between RAM START and the first page (virtio-mem's early section). */
  readonly earlySections?: Uint8Array;

  /** All other device state, as stream bytes. Called with the guest stopped. */
  saveDevices(): DeviceTail;

  /** Keeps the vCPUs from running this percentage of their time (auto-converge); 0 lets them run freely. */
  throttle?(percentage: number): void;

  /**
   * For guests whose RAM is not in memory (an opened snapshot): brings the pages from `page` on into memory, at most
   * `pageCount`, and says where they are. The extent is valid until the next call, or `extentsKept` calls longer.
   */
  extentAt?(block: RamBlock, page: PageIndex, pageCount: number): Extent;

  /** Default 0. */
  readonly extentsKept?: number;

  /**
   * For guests that know without looking which pages have content: address of a bitmap of those, in the memory of the
   * block's bitmaps. All other pages read as zero; postcopy sends them only when asked.
   */
  contentBitmap?(block: RamBlock): number;
}
