// What the source engine needs of a guest. The engine runs in its own thread; an implementation is the guest as that
// thread sees it, over shared memory, so that stopping it does not wait for anybody's event loop.

import type { DirtyLog } from '../dirty-log/dirty-log.js';
import type { DeviceTail } from '../format/stream/device-tail.js';
import type { Extent, RamBlock } from '../memory/ram-block.js';
import type { RamBlockList } from '../memory/ram-block-list.js';
import type { PageIndex } from '../memory/units.js';

export interface SourceGuest {
  /** Machine type name of the configuration element, e.g. `pc-i440fx-10.0`. */
  readonly machine: string;

  /** Textual UUID, if the configuration element shall carry one. */
  readonly uuid: string | undefined;

  /** Section id for RAM: not 0, which a QEMU destination mistakes, and not that of a device section. */
  readonly ramSectionId: number;

  readonly blocks: RamBlockList;

  /** Sees the guest's writes; undefined for a guest that cannot write (an opened snapshot). */
  readonly log: DirtyLog | undefined;

  /** Whether the guest executes at this moment. */
  isRunning(): boolean;

  /** Returns once every vCPU is parked and every mark of its stores is visible to this thread (TS-3). */
  stop(): Promise<void>;

  /** Lets a stopped guest run on. */
  resume(): Promise<void>;

  /** FULL sections, footers included, that go between RAM START and the first page (virtio-mem's early section). */
  readonly earlySections?: Uint8Array;

  /** All other device state, as stream bytes. Called with the guest stopped. */
  saveDevices(): DeviceTail;

  /** Keeps the vCPUs from running this percentage of their time (auto-converge); 0 lets them run freely. */
  throttle?(percentage: number): void;

  /**
   * For guests whose RAM is not in memory (an opened snapshot): brings the pages from `page` on into memory and says
   * where they are. The extent is valid until the next call.
   */
  extentAt?(block: RamBlock, page: PageIndex): Extent;
}
