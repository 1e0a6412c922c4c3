// What `pages` finds out about a guest's pages, in one pass over those that the file holds.

import { DistinctPages } from '../format/distinct-pages.js';
import { MOST_ENTROPY_BITS, PageContent } from '../format/page-content.js';
import { PageKind, type Snapshot } from '../format/snapshot.js';
import { pageIndex } from '../memory/units.js';
import { type CompressionResult, CompressionSample } from './compression-sample.js';
import { type PageMap, pageMap, withEntropy } from './page-map.js';

/** Contents that are shown as those that most pages have. */
const MOST_REPEATED = 5;

/** Figures of the present pages of a block, or of all blocks. */
export interface ContentFigures {
  /** Present pages whose bytes are all zero. */
  readonly zeroContentPages: number;
  /** Pages with content of which no earlier page of the guest has the same. */
  readonly distinctPages: number;
  /** The other pages with content. */
  readonly repeatedPages: number;
  /** Pages with content by entropy: below 1 bit a byte, below 2, … up to 8. */
  readonly entropyPages: readonly number[];
}

/** A content that several pages have. */
export interface RepeatedContent {
  readonly block: number;
  /** Byte offset of the first page that has it. */
  readonly offset: number;
  readonly pages: number;
  /** Set if all its bytes are the same. */
  readonly byte?: number;
}

export interface Survey {
  readonly whole: ContentFigures;
  readonly blocks: readonly ContentFigures[];
  /** Whether distinct and repeated pages were counted, not estimated. */
  readonly isExact: boolean;
  readonly mostRepeated: readonly RepeatedContent[];
  readonly compression: CompressionResult;
  /** Cells with entropy. */
  readonly map: PageMap;
}

export interface SurveyOptions {
  /** Width of the terminal for which the map is. */
  readonly columns: number;
  /** Whether every page is compressed, not a sample. */
  readonly compressAll: boolean;
}

/** Is shown the present pages of a guest, in ascending order, and sums up. */
export class PageSurvey {
  /** Bytes of present pages that there are to see. */
  readonly presentBytes: number;
  readonly #snapshot: Snapshot;
  readonly #content: PageContent;
  readonly #distinct: DistinctPages;
  readonly #compression: CompressionSample;
  readonly #map: PageMap;
  /** Sum of the entropy of the present pages of each cell of the map, by block. */
  readonly #cellBits: readonly Float64Array[];
  readonly #zeroContent: Float64Array;
  /** By block and class. */
  readonly #entropyPages: readonly Float64Array[];
  /** Number of the first page of each block, all blocks in a row. */
  readonly #firstPages: readonly number[];
  /** Present pages so far. */
  #seen = 0;

  constructor(snapshot: Snapshot, { columns, compressAll }: SurveyOptions) {
    const { blocks, targetPageSize } = snapshot.setup;
    this.#snapshot = snapshot;
    this.#content = new PageContent(targetPageSize);
    const presentPages = blocks.reduce((sum, { index }) => sum + snapshot.counts(index).presentPages, 0);
    this.presentBytes = presentPages * targetPageSize;
    this.#compression = new CompressionSample(targetPageSize, presentPages, MOST_ENTROPY_BITS, compressAll);
    this.#map = pageMap(snapshot, columns);
    this.#cellBits = this.#map.blocks.map(({ cells }) => new Float64Array(cells.length));
    this.#zeroContent = new Float64Array(blocks.length);
    this.#entropyPages = blocks.map(() => new Float64Array(MOST_ENTROPY_BITS));
    let pages = 0;
    this.#firstPages = blocks.map(({ usedLength }) => {
      const first = pages;
      pages += usedLength / targetPageSize;
      return first;
    });
    this.#distinct = new DistinctPages(blocks.length, (page) => this.#blockOf(page));
  }

  /** Looks at those of `pageCount` pages that are present; returns how many that are. */
  add(block: number, firstPage: number, pageCount: number, words: Int32Array): number {
    const before = this.#seen;
    for (let index = 0; index < pageCount; index += 1) {
      const page = firstPage + index;
      if (this.#snapshot.kindOf(block, pageIndex(page)) === PageKind.present) {
        this.#addPage(block, page, words, index);
        this.#seen += 1;
      }
    }
    return this.#seen - before;
  }

  #addPage(block: number, page: number, words: Int32Array, index: number): void {
    const { targetPageSize: pageBytes } = this.#snapshot.setup;
    const at = (index * pageBytes) / 4;
    if (this.#content.isZero(words, at)) {
      this.#zeroContent[block] += 1;
      return;
    }
    const bits = this.#content.entropyBits(words, at);
    const ofClass = Math.min(Math.floor(bits), MOST_ENTROPY_BITS - 1);
    this.#entropyPages[block][ofClass] += 1;
    this.#cellBits[block][Math.floor(page / this.#map.pagesPerCell)] += bits;
    this.#content.digest(words, at);
    this.#distinct.add(this.#content.digestWords, this.#firstPages[block] + page);
    if (this.#compression.includes(this.#seen)) {
      const bytes = new Uint8Array(words.buffer, words.byteOffset + index * pageBytes, pageBytes);
      this.#compression.add(this.#seen, bytes, ofClass);
    }
  }

  result(): Survey {
    const blocks = this.#snapshot.setup.blocks.map(({ index }) => this.#figures(index));
    const sum = (field: 'zeroContentPages' | 'distinctPages' | 'repeatedPages'): number =>
      blocks.reduce((total, figures) => total + figures[field], 0);
    const entropyPages = Array.from({ length: MOST_ENTROPY_BITS }, (_, ofClass) =>
      blocks.reduce((total, figures) => total + figures.entropyPages[ofClass], 0),
    );
    return {
      whole: {
        zeroContentPages: sum('zeroContentPages'),
        distinctPages: sum('distinctPages'),
        repeatedPages: sum('repeatedPages'),
        entropyPages,
      },
      blocks,
      isExact: this.#distinct.isExact,
      mostRepeated: this.#distinct
        .mostRepeated(MOST_REPEATED)
        .map(({ first, copies }) => this.#repeatedContent(first, copies)),
      compression: this.#compression.result(entropyPages),
      map: withEntropy(this.#map, this.#cellBits),
    };
  }

  #figures(block: number): ContentFigures {
    const entropyPages = [...this.#entropyPages[block]];
    const contentPages = entropyPages.reduce((sum, pages) => sum + pages, 0);
    const distinctPages = Math.min(this.#distinct.distinct(block), contentPages);
    return {
      zeroContentPages: this.#zeroContent[block],
      distinctPages,
      repeatedPages: contentPages - distinctPages,
      entropyPages,
    };
  }

  #repeatedContent(first: number, copies: number): RepeatedContent {
    const { targetPageSize: pageBytes } = this.#snapshot.setup;
    const block = this.#blockOf(first);
    const page = first - this.#firstPages[block];
    const bytes = new Uint8Array(pageBytes);
    this.#snapshot.readPages(block, pageIndex(page), 1, bytes);
    const isUniform = bytes.every((byte) => byte === bytes[0]);
    return { block, offset: page * pageBytes, pages: copies, ...(isUniform && { byte: bytes[0] }) };
  }

  /** The last block that begins at or before the page. */
  #blockOf(page: number): number {
    let [from, end] = [0, this.#firstPages.length];
    while (end - from > 1) {
      const middle = Math.floor((from + end) / 2);
      if (this.#firstPages[middle] <= page) {
        from = middle;
      } else {
        end = middle;
      }
    }
    return from;
  }
}
