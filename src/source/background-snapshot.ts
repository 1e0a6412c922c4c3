// The guest at one instant, saved while it runs on (spec/algorithms.md section 10). What the engine's loop does differently
// then is here; the loop itself, the sink and the send bitmap are those of every migration.
//
//   arm │ stop ─ devices saved ─ protect ─ resume │ loop: urgent pages first, each page once │ devices written
//       └──────────── the instant ────────────────┘
//
// There is no log and no sync: a page that was saved may change (BS-12).

import type { PagesToSave, WriteProtector } from '../dirty-log/write-protector.js';
import type { DeviceTail } from '../format/stream/device-tail.js';
import { RamferryError } from '../memory/errors.js';
import type { Extent } from '../memory/ram-block.js';
import type { Clock } from './clock.js';
import type { SourceGuest } from './guest.js';
import type { GuestHold } from './guest-hold.js';
import type { SendBitmap } from './send-bitmap.js';
import type { DowntimeBreakdown } from './statistics.js';

/**
 * Pages that are saved at once: a guest thread that stores to one of them waits for all (BS-4). 256 KiB take a tenth of
 * a millisecond into the page cache, and larger writes gain little. So many urgent pages may come before each batch:
 * threads that store all over memory would otherwise have every page saved singly, which takes ten times as long.
 */
const BATCH_PAGES = 64;

export class BackgroundSnapshot {
  /** The devices as they were at the instant (BS-9). */
  devices!: DeviceTail;
  readonly #guest: SourceGuest;
  readonly #protector: WriteProtector;
  readonly #hold: GuestHold;
  readonly #clock: Clock;
  #urgentLeft = BATCH_PAGES;

  constructor(guest: SourceGuest, protector: WriteProtector, hold: GuestHold, clock: Clock) {
    if (guest.extentAt !== undefined) {
      throw new RamferryError(
        'usage',
        'BACKGROUND_SNAPSHOT_GUEST',
        'A guest that is an opened file has no memory to protect: no background snapshot can be taken of it.',
        { hint: 'use convert to copy the file' },
      );
    }
    this.#guest = guest;
    this.#protector = protector;
    this.#hold = hold;
    this.#clock = clock;
  }

  /** The instant. The send bitmap holds what is to be saved. A guest that ran runs on, whatever fails. */
  async take(): Promise<DowntimeBreakdown> {
    this.#protector.arm();
    const marks = [this.#clock.now()];
    try {
      await this.#hold.stop();
      marks.push(this.#clock.now());
      this.devices = this.#guest.saveDevices();
      marks.push(this.#clock.now());
      this.#protector.protect();
      marks.push(this.#clock.now());
    } finally {
      await this.#hold.resume();
    }
    marks.push(this.#clock.now());
    const part = (index: number): number => Math.round((marks[index + 1]! - marks[index]!) * 100) / 100;
    return { stopMs: part(0), syncMs: 0, ramMs: part(2), deviceMs: part(1), ackMs: part(3) };
  }

  /** Makes the send bitmap's batch of the pages to save next, urgent ones first; false if there are none at present. */
  next(send: SendBitmap, limit: (extent: Extent) => number): boolean {
    const urgent = this.#urgentLeft > 0 ? this.#protector.nextUrgent() : undefined;
    if (urgent !== undefined) {
      const { block, extent, firstPage } = urgent;
      const pageCount = Math.min(urgent.pageCount, limit(extent));
      this.#urgentLeft -= pageCount;
      send.pick(block, extent, firstPage, pageCount);
      return true;
    }
    this.#urgentLeft = BATCH_PAGES;
    if (!send.next((extent) => Math.min(BATCH_PAGES, limit(extent)))) {
      return false;
    }
    send.batch.count = this.#protector.claim(send.batch);
    // What guest threads have claimed comes as urgent in a moment; nothing is lost by looking at a cancel meanwhile.
    return send.batch.count > 0;
  }

  /** The pages have left the sink's hands (BS-3). */
  release(pages: PagesToSave): void {
    this.#protector.release(pages);
  }

  /** Lifts the protection (BS-6). */
  end(): void {
    this.#protector.stop();
  }
}
