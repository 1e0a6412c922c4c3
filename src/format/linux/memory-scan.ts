// Looks through all pages of a saved guest that have content for what a Linux kernel leaves in memory and no program needs to help
// with: its banner, its VMCOREINFO and the boot line in its log. Bytes that look so are common (programs that print a banner, kernels on a disk that the
// guest reads, a kernel that ran before the last reboot); which of them is the guest's kernel shows later.

import { pageIndex } from '../../memory/units.js';
import { latin1 } from '../bytes.js';
import type { Snapshot } from '../snapshot.js';
import { parseVmcoreinfo, VMCOREINFO_LIMIT, VMCOREINFO_START, type Vmcoreinfo } from './vmcoreinfo.js';

/** Somewhere in a RAM block. */
export interface BlockPlace {
  /** Position in `setup.blocks`. */
  readonly block: number;
  readonly offset: number;
}

/** A line of text, and where it was seen first. */
export interface FoundText extends BlockPlace {
  readonly text: string;
}

/** VMCOREINFO, and where it was seen first. */
export interface FoundVmcoreinfo extends BlockPlace {
  readonly info: Vmcoreinfo;
}

/** Most different ones of either kind. A guest has one or two; a file that holds a thousand was made to. */
const FOUND_LIMIT = 64;

/** Bytes read at once, and the longest line. */
const BATCH_BYTES = 2 ** 20;
const LINE_LIMIT = 1024;

/** A text to look for, by a byte in it that is rare in memory. */
interface Needle {
  readonly bytes: Uint8Array;
  readonly rareAt: number;
  /** Longest text that begins so. */
  readonly limit: number;
}

const needle = (text: string, rare: string, limit: number): Needle => ({
  bytes: new TextEncoder().encode(text),
  rareAt: text.indexOf(rare),
  limit,
});

const NEEDLES = {
  banner: needle('Linux version ', 'x', LINE_LIMIT),
  commandLine: needle('Kernel command line: ', 'K', LINE_LIMIT),
  vmcoreinfo: needle(VMCOREINFO_START, 'O', VMCOREINFO_LIMIT),
};

/** Bytes of the end of a batch that are looked at again with the next: a needle may begin there. */
const OVERLAP = Math.max(...Object.values(NEEDLES).map(({ bytes }) => bytes.length)) - 1;

/** The search, in steps. */
export class LinuxScan {
  readonly #snapshot: Snapshot;
  readonly #pageSize: number;
  readonly #buffer: Uint8Array;
  readonly #banners = new Map<string, FoundText>();
  readonly #commandLines = new Map<string, FoundText>();
  readonly #vmcoreinfos = new Map<string, FoundVmcoreinfo>();
  #block = 0;
  #page = 0;
  /** How many bytes in front of `#page` are in the buffer: 0 where a run of pages begins. */
  #carried = 0;

  constructor(snapshot: Snapshot) {
    this.#snapshot = snapshot;
    this.#pageSize = snapshot.setup.targetPageSize;
    this.#buffer = new Uint8Array(OVERLAP + Math.max(BATCH_BYTES, this.#pageSize));
  }

  /** Different banners, in the order of the file. */
  get banners(): FoundText[] {
    return [...this.#banners.values()];
  }

  /** Different boot lines, as far as they are in the log, in the order of the file. */
  get commandLines(): FoundText[] {
    return [...this.#commandLines.values()];
  }

  /** Different VMCOREINFOs, in the order of the file. */
  get vmcoreinfos(): FoundVmcoreinfo[] {
    return [...this.#vmcoreinfos.values()];
  }

  /** Bytes to go through, those without content included. */
  get totalBytes(): number {
    const { blocks } = this.#snapshot.setup;
    return blocks.reduce((sum, { usedLength }) => sum + usedLength, 0);
  }

  /** Goes on for a while; returns how many bytes it has passed, 0 at the end. */
  advance(): number {
    const { blocks } = this.#snapshot.setup;
    while (this.#block < blocks.length) {
      const pages = Math.ceil(blocks[this.#block]!.usedLength / this.#pageSize);
      const from = this.#page;
      const isThere = from < pages && !this.#snapshot.elsewhere.has(this.#block);
      const first = isThere ? this.#snapshot.nextPresent(this.#block, pageIndex(from)) : pages;
      if (first < pages) {
        if (first > from) {
          this.#carried = 0;
        }
        const count = Math.min(pages - first, Math.max(1, Math.floor(BATCH_BYTES / this.#pageSize)));
        this.#searchPages(first, count);
        this.#page = first + count;
        return (this.#page - from) * this.#pageSize;
      }
      this.#block += 1;
      this.#page = 0;
      this.#carried = 0;
      if (pages > from) {
        return (pages - from) * this.#pageSize;
      }
    }
    return 0;
  }

  #searchPages(first: number, count: number): void {
    const start = this.#carried;
    const bytes = this.#buffer.subarray(0, start + count * this.#pageSize);
    this.#snapshot.readPages(this.#block, pageIndex(first), count, bytes.subarray(start));
    const offset = first * this.#pageSize - start;
    this.#search(bytes, offset, NEEDLES.vmcoreinfo, (text, place) => this.#addVmcoreinfo(text, place));
    this.#search(bytes, offset, NEEDLES.banner, (text, place) => addLine(this.#banners, text, place, isBanner));
    this.#search(bytes, offset, NEEDLES.commandLine, (text, place) =>
      addLine(this.#commandLines, text.subarray(NEEDLES.commandLine.bytes.length), place, isCommandLine),
    );
    // A text that begins in the last bytes may end in the next batch; one that is seen twice is kept once.
    this.#carried = Math.min(OVERLAP, bytes.length);
    bytes.copyWithin(0, bytes.length - this.#carried);
  }

  /** Visits each text that begins with a needle, up to its end. */
  #search(
    bytes: Uint8Array,
    offset: number,
    needle: Needle,
    visit: (text: Uint8Array, place: BlockPlace) => void,
  ): void {
    let done = 0;
    for (const at of positions(bytes, needle)) {
      // Whoever fills memory with the needle shall not have each byte of it looked at many times.
      if (at >= done) {
        const text = this.#text(bytes, offset, at, needle.limit);
        visit(text, { block: this.#block, offset: offset + at });
        done = at + text.length;
      }
    }
  }

  /** The text from `at` on. Its end may lie behind the batch. */
  #text(bytes: Uint8Array, offset: number, at: number, limit: number): Uint8Array {
    const text = textOf(bytes.subarray(at, at + limit));
    return at + text.length === bytes.length && text.length < limit ? textOf(this.#read(offset + at, limit)) : text;
  }

  #addVmcoreinfo(text: Uint8Array, place: BlockPlace): void {
    const info = this.#vmcoreinfos.size < FOUND_LIMIT ? parseVmcoreinfo(text) : undefined;
    if (info !== undefined && !this.#vmcoreinfos.has(info.text)) {
      this.#vmcoreinfos.set(info.text, { ...place, info });
    }
  }

  /** Up to so many bytes of the block that is searched. */
  #read(offset: number, most: number): Uint8Array {
    const { usedLength } = this.#snapshot.setup.blocks[this.#block]!;
    const first = Math.floor(offset / this.#pageSize);
    const end = Math.min(Math.ceil(usedLength / this.#pageSize), Math.ceil((offset + most) / this.#pageSize));
    const bytes = new Uint8Array((end - first) * this.#pageSize);
    this.#snapshot.readPages(this.#block, pageIndex(first), end - first, bytes);
    const start = offset - first * this.#pageSize;
    return bytes.subarray(start, start + most);
  }
}

const addLine = (
  found: Map<string, FoundText>,
  bytes: Uint8Array,
  place: BlockPlace,
  isMeant: (text: string) => boolean,
): void => {
  const [text = ''] = latin1(bytes, 0, Math.min(bytes.length, LINE_LIMIT)).split('\n', 1);
  if (found.size < FOUND_LIMIT && isMeant(text) && !found.has(text)) {
    found.set(text, { ...place, text });
  }
};

/** The kernel's own format string is no line. */
const isCommandLine = (text: string): boolean => !/^(?:%|$)/.test(text);

/** The format strings that banners are made of begin like them. */
const isBanner = (text: string): boolean =>
  /^Linux version \d{1,3}\.\d/.test(text) && text.includes(' (') && text.includes(' #');

/** Printable ASCII and line breaks, up to the first byte that is neither. */
const textOf = (bytes: Uint8Array): Uint8Array => {
  let end = 0;
  while (end < bytes.length && (bytes[end] === 0x0a || (bytes[end]! >= 0x20 && bytes[end]! < 0x7f))) {
    end += 1;
  }
  return bytes.subarray(0, end);
};

/** Where a text begins in `bytes`. */
function* positions(bytes: Uint8Array, { bytes: wanted, rareAt }: Needle): Generator<number, void, undefined> {
  const rare = wanted[rareAt]!;
  for (let hit = bytes.indexOf(rare, rareAt); hit !== -1; hit = bytes.indexOf(rare, hit + 1)) {
    const start = hit - rareAt;
    let same = 0;
    while (same < wanted.length && bytes[start + same] === wanted[same]) {
      same += 1;
    }
    if (same === wanted.length) {
      yield start;
    }
  }
}
