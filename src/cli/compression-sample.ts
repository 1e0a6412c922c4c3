// How far pages compress: some of them, spread evenly over all, or all of them.

import * as zlib from 'node:zlib';

/** Pages of a run: neighbours that are compressed together as well, as formats do that pack more than a page at a time. */
const RUN_PAGES = 16;

/** Runs of a sample: 8 MiB with pages of 4 KiB. */
const RUNS = 128;

/** What multifd, makedumpfile and libvirt use unless told otherwise, or something near. */
const LEVEL = 1;

type Compress = (bytes: Uint8Array) => Uint8Array;

/** zstd came into node:zlib with Node 22.15 and 23.8. */
const { zstdCompressSync, constants } = zlib as unknown as {
  readonly zstdCompressSync?: (bytes: Uint8Array, options: object) => Uint8Array;
  readonly constants: { readonly ZSTD_c_compressionLevel: number };
};

const sum = (values: Float64Array): number => values.reduce((total, value) => total + value, 0);

/** What this Node has. */
const compressors: readonly (readonly [method: string, Compress])[] = [
  ['zlib', (bytes) => zlib.deflateSync(bytes, { level: LEVEL })],
  ...(zstdCompressSync === undefined
    ? []
    : [
        [
          'zstd',
          (bytes: Uint8Array) => zstdCompressSync(bytes, { params: { [constants.ZSTD_c_compressionLevel]: LEVEL } }),
        ] as const,
      ]),
];

/** What a method makes of the pages; a piece that does not shrink counts as it is, since every format stores it so. */
export interface MethodResult {
  readonly method: string;
  readonly level: number;
  /** How many pages are compressed together. */
  readonly pagesAtOnce: number;
  readonly compressedBytes: number;
  /** What all pages with content would take; of a sample, estimated by how many pages of each class there are. */
  readonly estimatedBytes: number;
}

/** What the methods make of single pages, of one class. */
export interface ClassResult {
  readonly pages: number;
  readonly compressedBytes: Readonly<Record<string, number>>;
}

export interface CompressionResult {
  /** Whether it is a sample, or all pages with content. */
  readonly isSample: boolean;
  readonly pages: number;
  readonly bytes: number;
  readonly methods: readonly MethodResult[];
  readonly classes: readonly ClassResult[];
}

/** Compresses those pages that belong to the sample, one by one and in runs. */
export class CompressionSample {
  readonly isSample: boolean;
  readonly #pageBytes: number;
  readonly #presentPages: number;
  readonly #run: Uint8Array;
  readonly #pagesOfClass: Float64Array;
  /** By method and class. */
  readonly #ofClass: readonly Float64Array[];
  readonly #ofRuns = new Float64Array(compressors.length);
  #runPages = 0;
  #runNumber = -1;

  /** @param presentPages of all that will be offered */
  constructor(pageBytes: number, presentPages: number, classes: number, compressAll: boolean) {
    this.#pageBytes = pageBytes;
    this.#presentPages = presentPages;
    this.isSample = !compressAll && presentPages > RUNS * RUN_PAGES;
    this.#run = new Uint8Array(RUN_PAGES * pageBytes);
    this.#pagesOfClass = new Float64Array(classes);
    this.#ofClass = compressors.map(() => new Float64Array(classes));
  }

  /** Whether the present page of this number is one of those to be compressed. */
  includes(number: number): boolean {
    if (!this.isSample) {
      return true;
    }
    const first = this.#firstOfRun(this.#runOf(number));
    return number >= first && number < first + RUN_PAGES;
  }

  /** @param number counts present pages, ascending */
  add(number: number, page: Uint8Array, ofClass: number): void {
    const run = this.#runOf(number);
    if (run !== this.#runNumber) {
      this.#endRun();
      this.#runNumber = run;
    }
    this.#run.set(page, this.#runPages * this.#pageBytes);
    this.#runPages += 1;
    this.#pagesOfClass[ofClass] += 1;
    compressors.forEach(([, compress], method) => {
      this.#ofClass[method][ofClass] += Math.min(compress(page).length, page.length);
    });
  }

  /** @param pagesOfClass pages with content, compressed or not, by class */
  result(pagesOfClass: readonly number[]): CompressionResult {
    this.#endRun();
    const pages = sum(this.#pagesOfClass);
    return {
      isSample: this.isSample,
      pages,
      bytes: pages * this.#pageBytes,
      methods: compressors.flatMap(([method], index) => {
        const single = sum(this.#ofClass[index]);
        const runs = this.#ofRuns[index];
        const estimate = this.#estimate(index, pagesOfClass);
        return [
          { method, level: LEVEL, pagesAtOnce: 1, compressedBytes: single, estimatedBytes: Math.round(estimate) },
          {
            method,
            level: LEVEL,
            pagesAtOnce: RUN_PAGES,
            compressedBytes: runs,
            estimatedBytes: single === 0 ? 0 : Math.round((estimate * runs) / single),
          },
        ];
      }),
      classes: Array.from(this.#pagesOfClass, (ofClass, index) => ({
        pages: ofClass,
        compressedBytes: Object.fromEntries(compressors.map(([method], at) => [method, this.#ofClass[at][index]])),
      })),
    };
  }

  /** What single pages of all that have content compress to. */
  #estimate(method: number, pagesOfClass: readonly number[]): number {
    return pagesOfClass.reduce((total, pages, ofClass) => {
      const compressed = this.#pagesOfClass[ofClass];
      // Of a class without a page in the sample nothing is known: its pages are taken as incompressible.
      const bytes = compressed === 0 ? this.#pageBytes : this.#ofClass[method][ofClass] / compressed;
      return total + pages * bytes;
    }, 0);
  }

  /** Runs of a sample lie one in each of as many equal parts of all pages. */
  #runOf(number: number): number {
    return this.isSample ? Math.floor((number * RUNS) / this.#presentPages) : Math.floor(number / RUN_PAGES);
  }

  /** Somewhere in its part: by the golden ratio, so that it is nowhere in step with what the guest does. */
  #firstOfRun(run: number): number {
    const from = Math.ceil((run * this.#presentPages) / RUNS);
    const end = Math.ceil(((run + 1) * this.#presentPages) / RUNS);
    return from + Math.floor(((run * 0.618034) % 1) * (end - from - RUN_PAGES + 1));
  }

  #endRun(): void {
    const bytes = this.#run.subarray(0, this.#runPages * this.#pageBytes);
    if (bytes.length > 0) {
      compressors.forEach(([, compress], method) => {
        this.#ofRuns[method] += Math.min(compress(bytes).length, bytes.length);
      });
    }
    this.#runPages = 0;
  }
}
