// The engine's end of free page hints (spec/algorithms.md section 3): what the guest does not use does not travel.
// docs/free-page-hints.md argues the choices made here.
//
//             sync             sync           last sync
//   round n    │ request        │               │ done
//   ───────────┼──▶ hints ─▶ stop ┼──▶ hints ─▶ stop ┼──────────
//              │   between batches│                │ none any more
//
// Why no write is lost although a guest under memory pressure takes a page back before its hint was looked at, writes it,
// and the hint is applied all the same:
//   not acknowledged  the log is cleared whole before hints are asked for. A write after the hint is then a write after the
//                     clear, so its mark stands in the log or in dirty memory; those are left alone, the next sync has it.
//   acknowledged      the guest does not touch the page before the engine has dropped it from every layer; what
//                     it writes then is marked anew.

import type { Extent, RamBlock } from '../memory/ram-block.js';
import type { RamBlockList } from '../memory/ram-block-list.js';
import type { HintedRange, HintSource } from './guest.js';
import type { HintWait } from './hint-wait.js';
import type { SendBitmap } from './send-bitmap.js';
import type { HintStatistics } from './statistics.js';
import type { Trace } from './trace.js';

export interface FreePageHintsOptions {
  readonly source: HintSource;
  readonly send: SendBitmap;
  readonly blocks: RamBlockList;
  readonly wait: HintWait;
  readonly trace: Trace;
  /** Called with every range that a hint was applied to. */
  readonly forgotten?: (block: RamBlock, firstPage: number, pageCount: number) => void;
}

export class FreePageHints {
  readonly #options: FreePageHintsOptions;
  readonly #source: HintSource;
  readonly #blocks: ReadonlyMap<number, RamBlock>;
  readonly #range: HintedRange = { blockId: 0, firstPage: 0, pageCount: 0 };
  /** Between a request and the next stop: only then does a hint act (FH-7). */
  #asked = false;
  readonly #staleBefore: number;
  /** Hints that named no guest memory: those of an earlier migration count against it. */
  #outside: number;
  #pages = 0;
  #honoured = 0;
  /** What the current sweep has passed over: its block, first page, and the page behind the last. */
  #swept: { readonly block: RamBlock; firstPage: number; endPage: number } | undefined;

  constructor(options: FreePageHintsOptions) {
    this.#options = options;
    this.#source = options.source;
    this.#blocks = new Map(options.blocks.blocks.map((block) => [block.id, block]));
    this.#staleBefore = options.source.stale;
    this.#outside = -options.source.outside;
  }

  get statistics(): HintStatistics {
    return { pages: this.#pages, honoured: this.#honoured, stale: this.#source.stale - this.#staleBefore };
  }

  /** Why hints were ignored (FH-4). */
  get warnings(): string[] {
    const outside = this.#outside + this.#source.outside;
    return [
      ...(outside > 0 ? [`The guest hinted what is no guest memory as free, ${outside} times: that was ignored`] : []),
      ...(this.#source.isBroken
        ? ["The guest's balloon driver broke the protocol: its free page hints are ignored until it is reset"]
        : []),
    ];
  }

  /** Whether pages that may yet be hinted are held back at present. */
  get holding(): boolean {
    return this.#asked && this.#options.wait.holding;
  }

  /** BEFORE-SYNC. A hint applied after the sync would take out writes that the sync has just brought (FH-8). */
  stop(): void {
    if (this.#asked) {
      this.#options.trace.free_page_hint_stop?.(this.#pages, this.#honoured);
    }
    this.#asked = false;
    this.#swept = undefined;
    this.#source.stop();
  }

  /** AFTER-SYNC with the guest running (FH-11). */
  request(): void {
    if (!this.#source.acknowledged) {
      this.#options.send.payAllDebts();
    }
    this.#asked = true;
    this.#source.request();
    this.#options.trace.free_page_hint_request?.();
  }

  /** AFTER-SYNC with the guest stopped, COMPLETE and CLEANUP: device state is saved with this status (FH-12, FH-13). */
  done(): void {
    this.#source.done();
  }

  /**
   * Applies what hints there are, then finds the next pages to send. While the first sweep is awaited, these are pages it
   * has already passed over: the guest would have hinted them if they were free.
   */
  next(limit: (extent: Extent) => number, now: number): boolean {
    this.take(now);
    const { send } = this.#options;
    if (!this.holding) {
      return send.next(limit);
    }
    const swept = this.#swept;
    return swept !== undefined && send.nextIn(swept.block, swept.firstPage, swept.endPage, limit);
  }

  /** Applies the hints that are in the ring. */
  take(now: number): void {
    if (!this.#asked) {
      return;
    }
    // Read before the ring is emptied: after its end marker the guest gives nothing more.
    const { status } = this.#source;
    let taken = false;
    while (this.#source.next(this.#range)) {
      this.#apply(this.#range);
      taken = true;
    }
    if (taken) {
      this.#source.acknowledge();
    }
    this.#options.wait.update(status, this.#honoured, now);
  }

  #apply({ blockId, firstPage, pageCount }: HintedRange): void {
    const block = this.#blocks.get(blockId);
    const endPage = Math.min(firstPage + pageCount, block?.usedPages ?? 0);
    if (block === undefined || firstPage + pageCount > endPage) {
      this.#outside += 1;
    }
    if (block?.migrated !== true || firstPage >= endPage) {
      return;
    }
    const count = endPage - firstPage;
    const { send, trace } = this.#options;
    const honoured = this.#source.acknowledged
      ? send.forget(block, firstPage, count)
      : send.exclude(block, firstPage, count);
    // Also what was sent before it was hinted: what the guest writes there from now on is marked, and comes again.
    this.#options.forgotten?.(block, firstPage, count);
    this.#pages += count;
    this.#honoured += honoured;
    trace.free_page_hint_range?.(block.name, firstPage, count, honoured);
    if (this.#swept?.block !== block) {
      this.#swept = { block, firstPage, endPage };
      return;
    }
    this.#swept.firstPage = Math.min(this.#swept.firstPage, firstPage);
    this.#swept.endPage = Math.max(this.#swept.endPage, endPage);
  }
}
