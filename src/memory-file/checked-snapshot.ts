// A saved guest whose pages are checked against the digest of its file before anybody gets them: a flipped bit is found by us,
// and not by the guest, later and elsewhere. A MiB is checked as a whole, when the first page of it is read.

import { DIGEST_CHUNK_BYTES, RamDigest } from '../format/ram-digest.js';
import type { PageCounts, PageKind, Snapshot } from '../format/snapshot.js';
import { Segment } from '../memory/segment.js';
import { type PageIndex, pageIndex } from '../memory/units.js';
import {
  devicesDiffer,
  devicesOf,
  type FoundSidecar,
  findSidecar,
  memoryDiffers,
  type SidecarOwner,
} from './digest-sidecar-node.js';
import { SavedMebibytes } from './saved-mebibytes.js';
import type { Slices } from './slices-node.js';

/** So many MiBs with content are checked before the guest starts: a tenth of a second, where the file is in the page cache. */
const QUICK_MEBIBYTES = 128;

export class CheckedSnapshot implements Snapshot {
  readonly configuration: Snapshot['configuration'];
  readonly setup: Snapshot['setup'];
  readonly summary: Snapshot['summary'];
  readonly elsewhere: Snapshot['elsewhere'];
  readonly #snapshot: Snapshot;
  readonly #file: string;
  readonly #sidecar: string;
  /** By block: what each MiB that is not zero has to be. */
  readonly #expected: readonly SavedMebibytes[];
  /** By block and MiB. */
  readonly #checked: readonly Uint8Array[];
  readonly #scratch = Segment.create({ ramBytes: DIGEST_CHUNK_BYTES });
  readonly #digest = new RamDigest([{ name: '', usedLength: DIGEST_CHUNK_BYTES }]);

  /** @throws RamferryError DIGEST_MISMATCH if the device state is not what was saved */
  constructor(snapshot: Snapshot, file: string, { path, sidecar }: FoundSidecar & { readonly notChecked?: undefined }) {
    this.configuration = snapshot.configuration;
    this.setup = snapshot.setup;
    this.summary = snapshot.summary;
    this.elsewhere = snapshot.elsewhere;
    this.#snapshot = snapshot;
    this.#file = file;
    this.#sidecar = path;
    if (devicesOf(snapshot.summary.tail) !== sidecar!.devices) {
      throw devicesDiffer(file, path, snapshot.summary.devices[0]?.offset);
    }
    const saved = new Map(sidecar!.blocks.map(({ name, mebibytes }) => [name, mebibytes]));
    this.#expected = snapshot.setup.blocks.map(({ name }) => saved.get(name) ?? SavedMebibytes.none);
    this.#checked = snapshot.setup.blocks.map(
      ({ usedLength }) => new Uint8Array(Math.ceil(usedLength / DIGEST_CHUNK_BYTES)),
    );
  }

  get indexBytes(): number {
    return this.#snapshot.indexBytes;
  }

  counts(block: number): PageCounts {
    return this.#snapshot.counts(block);
  }

  cells(block: number, pagesPerCell: number): PageCounts[] {
    return this.#snapshot.cells(block, pagesPerCell);
  }

  kindOf(block: number, page: PageIndex): PageKind {
    return this.#snapshot.kindOf(block, page);
  }

  nextPresent(block: number, from: PageIndex, end?: PageIndex): PageIndex {
    return this.#snapshot.nextPresent(block, from, end);
  }

  forEachDiscarded(block: number, visit: (firstPage: PageIndex, pageCount: number) => void): void {
    this.#snapshot.forEachDiscarded(block, visit);
  }

  /** Also the zero pages of a MiB that has content: whether they are zero is for the digest to say, and so they are read. */
  presentBitmap(block: number, target: Uint8Array): void {
    this.#snapshot.presentBitmap(block, target);
    const { usedLength } = this.setup.blocks[block]!;
    const pageSize = this.setup.targetPageSize;
    for (const mebibyte of this.#expected[block]!.numbers) {
      const first = (mebibyte * DIGEST_CHUNK_BYTES) / pageSize;
      const end = Math.min(first + DIGEST_CHUNK_BYTES / pageSize, usedLength / pageSize);
      for (let page = first; page < end; page += 1) {
        target[Math.floor(page / 8)]! |= 1 << (page % 8);
      }
    }
  }

  /** @throws RamferryError DIGEST_MISMATCH if what is read is not what was saved */
  readPages(block: number, firstPage: PageIndex, pageCount: number, target: Uint8Array): void {
    const pageSize = this.setup.targetPageSize;
    const last = Math.floor((Math.max(firstPage + pageCount - 1, firstPage) * pageSize) / DIGEST_CHUNK_BYTES);
    for (let chunk = Math.floor((firstPage * pageSize) / DIGEST_CHUNK_BYTES); chunk <= last; chunk += 1) {
      this.#check(block, chunk);
    }
    this.#snapshot.readPages(block, firstPage, pageCount, target);
  }

  /** Checks everything that was not yet. @throws RamferryError DIGEST_MISMATCH */
  checkAll(inSlices: Slices): Promise<void> {
    return this.#checkUpTo(Number.POSITIVE_INFINITY, inSlices);
  }

  /** Checks everything now, if that takes no time worth mentioning; else each MiB when it is read. */
  async checkIfQuick(inSlices: Slices): Promise<void> {
    // A MiB is read as a whole for a single page of it: pages that are strewn over much memory are not quick.
    const mebibytes = this.#expected.reduce((sum, { numbers }) => sum + numbers.length, 0);
    if (mebibytes <= QUICK_MEBIBYTES) {
      await this.#checkUpTo(QUICK_MEBIBYTES, inSlices);
    }
  }

  /** Checks what was not yet, until so many MiBs were read: the file may store more than its digest knows of. */
  async #checkUpTo(mebibytes: number, inSlices: Slices): Promise<void> {
    const { blocks, targetPageSize, totalBytes } = this.setup;
    let block = 0;
    let chunk = 0;
    let read = 0;
    await inSlices('checking the digest', totalBytes, () => {
      if (read === mebibytes) {
        return 0;
      }
      const { usedLength } = blocks[block]!;
      const from = chunk * DIGEST_CHUNK_BYTES;
      const done = Math.min(DIGEST_CHUNK_BYTES, usedLength - from);
      const end = pageIndex((from + done) / targetPageSize);
      const isStored = this.nextPresent(block, pageIndex(from / targetPageSize), end) < end;
      if (isStored || this.#expected[block]!.get(chunk) !== undefined) {
        this.#check(block, chunk);
        read += 1;
      } else {
        this.#checked[block]![chunk] = 1;
      }
      chunk += 1;
      if (from + done === usedLength) {
        block += 1;
        chunk = 0;
      }
      return done;
    });
  }

  #check(block: number, chunk: number): void {
    const checked = this.#checked[block]!;
    if (checked[chunk] !== 0) {
      return;
    }
    const { usedLength, name, mapped } = this.setup.blocks[block]!;
    const { targetPageSize } = this.setup;
    const from = chunk * DIGEST_CHUNK_BYTES;
    const bytes = this.#scratch.bytes.subarray(0, Math.min(DIGEST_CHUNK_BYTES, usedLength - from));
    this.#snapshot.readPages(block, pageIndex(from / targetPageSize), bytes.length / targetPageSize, bytes);
    this.#digest.clear(0, 0, DIGEST_CHUNK_BYTES);
    this.#digest.setInSegment(0, 0, this.#scratch, 0, bytes.length);
    if (this.#digest.blocks()[0]!.mebibytes[0] !== this.#expected[block]!.get(chunk)) {
      throw memoryDiffers(this.#file, this.#sidecar, name, chunk, mapped?.pagesOffset);
    }
    checked[chunk] = 1;
  }
}

/** A saved guest, checked where its file has a digest. */
export interface DigestedSnapshot {
  readonly snapshot: Snapshot;
  /** The same, if there is a digest to check it with. */
  readonly checked: CheckedSnapshot | undefined;
  /** Why the digest beside the file was of no use, as a sentence. */
  readonly notChecked: string | undefined;
}

/** @throws RamferryError DIGEST_MISMATCH if the device state is not what was saved */
export const withDigest = (snapshot: Snapshot, owner: SidecarOwner): DigestedSnapshot => {
  const found = findSidecar(owner, snapshot);
  if (found === undefined || found.notChecked !== undefined) {
    return { snapshot, checked: undefined, notChecked: found?.notChecked };
  }
  const checked = new CheckedSnapshot(snapshot, owner.file, found);
  return { snapshot: checked, checked, notChecked: undefined };
};
