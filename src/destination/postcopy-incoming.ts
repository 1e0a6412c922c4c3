// The destination's part in postcopy (spec/algorithms.md sections 8 and 9): it asks for what guest threads wait for, and after a
// broken link it says what has arrived and asks again.
//
//   guest thread ── fault ──▶ outstanding ── REQ_PAGES ──▶ source ── page ──▶ placed, no longer outstanding
//                                  └── after POSTCOPY_RESUME: all of them once more (RC-7)

import { GUEST_PAGE_SIZE } from '../../kernels/kernels.js';
import type { MissingPage } from '../dirty-log/missing-pages.js';
import { receivedBitmap, requestPages, resumeAck } from '../format/stream/return-path.js';
import type { PostcopyHandler, ReadRamBlock, StreamSummary } from '../format/stream/stream-handler.js';
import type { RamBlock } from '../memory/ram-block.js';
import type { PostcopyTarget } from './postcopy-target.js';
import type { ReturnPathWriter } from './return-path-writer.js';

/** What it needs of the engine. */
export interface PostcopyHost {
  readonly returnPath: ReturnPathWriter;
  /** The devices have come. */
  run(summary: StreamSummary, pings: readonly number[]): void;
  resumed(): void;
}

export interface IncomingPostcopyReport {
  /** Pages asked for, each once however often the link broke. */
  readonly requests: number;
  /** Pages that came although they were there already. */
  readonly duplicates: number;
  readonly recoveries: number;
  /** Connections that were dropped because they were not the source's. */
  readonly strangers: number;
  /** Milliseconds from the start of the migration to the moment at which the guest ran here. */
  readonly runningMs?: number;
}

export class PostcopyIncoming implements PostcopyHandler {
  requests = 0;
  readonly #target: PostcopyTarget;
  readonly #host: PostcopyHost;
  /** What guest threads wait for, in the order in which they began; no more than there are threads. */
  #outstanding: MissingPage[] = [];
  #isConnected = true;
  /** Block of the last request on this connection. */
  #lastBlock: RamBlock | undefined;

  constructor(target: PostcopyTarget, host: PostcopyHost) {
    this.#target = target;
    this.#host = host;
    target.onPlaced = (block, pages, count) => this.#placed(block, pages, count);
  }

  advise(): void {
    this.#target.advise();
  }

  discard(block: ReadRamBlock, start: number, length: number): void {
    this.#target.discard(block, start, length);
  }

  run(summary: StreamSummary, pings: readonly number[]): void {
    this.#target.listen(() => this.#takeFaults());
    this.#host.run(summary, pings);
  }

  #takeFaults(): void {
    for (let fault = this.#target.nextFault(); fault !== undefined; fault = this.#target.nextFault()) {
      const { block, page } = fault;
      if (!this.#outstanding.some((other) => other.block === block && other.page === page)) {
        this.#outstanding.push(fault);
        this.requests += 1;
        this.#ask(fault);
      }
    }
    if (this.#isConnected) {
      this.#host.returnPath.flush();
    }
  }

  #ask({ block, page }: MissingPage): void {
    if (this.#isConnected) {
      const name = block === this.#lastBlock ? undefined : block.name;
      this.#host.returnPath.append(requestPages(page * GUEST_PAGE_SIZE, GUEST_PAGE_SIZE, name));
      this.#lastBlock = block;
    }
  }

  #placed(block: RamBlock, pages: Int32Array, count: number): void {
    if (this.#outstanding.length > 0) {
      const placed = pages.subarray(0, count);
      this.#outstanding = this.#outstanding.filter((page) => page.block !== block || !placed.includes(page.page));
    }
  }

  /** The link is gone: who waits goes on waiting. */
  pause(): void {
    this.#isConnected = false;
  }

  askReceived(block: ReadRamBlock): void {
    this.#host.returnPath.append(receivedBitmap(block.name, this.#target.receivedBitmap(block)));
  }

  resume(): void {
    this.#isConnected = true;
    this.#lastBlock = undefined;
    this.#host.returnPath.append(resumeAck());
    for (const page of this.#outstanding) {
      this.#ask(page);
    }
    this.#host.resumed();
  }

  abandon(): void {
    this.#target.abandon();
  }
}
