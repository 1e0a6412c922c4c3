import type { DirtyLog } from 'ramferry/dirty-log';
import { type RamBlock, type RamBlockList, ramPage } from 'ramferry/memory';

/** Pages of one block, by number. */
interface Marks {
  /** Written, and not cleared since. */
  readonly written: Set<number>;
  /** Those of them that a sync has reported. */
  readonly reported: Set<number>;
}

/** A dirty log kept in sets: for a guest whose stores are made in the engine's own thread, by an interpreter say. */
export class SetLog implements DirtyLog {
  readonly clearAlignPages = 1;
  readonly hasRangedClear = true;
  readonly #blocks: RamBlockList;
  readonly #marks = new Map<RamBlock, Marks>();
  #isRecording = false;

  constructor(blocks: RamBlockList) {
    this.#blocks = blocks;
  }

  /** The guest calls it after each store. */
  wrote(block: RamBlock, page: number): void {
    if (this.#isRecording) {
      this.#of(block).written.add(page);
    }
  }

  start(): void {
    this.#marks.clear();
    this.#isRecording = true;
  }

  stop(): void {
    this.#isRecording = false;
  }

  sync(block: RamBlock): number {
    const { dirty } = this.#blocks;
    const { written, reported } = this.#of(block);
    for (const page of written) {
      // What the engine sends comes out of dirty memory. A page that is not set here is lost, whatever this returns.
      dirty.setPage(ramPage(block.ramPage + page), dirty.trackingClients);
      reported.add(page);
    }
    return written.size;
  }

  clear(block: RamBlock, firstPage: number, pageCount: number): number {
    const { written, reported } = this.#of(block);
    let removed = 0;
    for (let page = firstPage; page < firstPage + pageCount; page += 1) {
      // Only what was reported: the engine does not know of anything else yet.
      if (reported.delete(page)) {
        written.delete(page);
        removed += 1;
      }
    }
    return removed;
  }

  forget(block: RamBlock, firstPage: number, pageCount: number): number {
    const { written, reported } = this.#of(block);
    let removed = 0;
    for (let page = firstPage; page < firstPage + pageCount; page += 1) {
      reported.delete(page);
      removed += written.delete(page) ? 1 : 0;
    }
    return removed;
  }

  syncCostMs(): number {
    return 0;
  }

  #of(block: RamBlock): Marks {
    let marks = this.#marks.get(block);
    if (marks === undefined) {
      marks = { written: new Set(), reported: new Set() };
      this.#marks.set(block, marks);
    }
    return marks;
  }
}
