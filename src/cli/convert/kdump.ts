// Any memory file to a kdump-compressed dump. Pages are read here, compressed by threads, and written here in their order:
//
//   nextPresent ─┬─▶ absent: a descriptor of the zero page
//                └─▶ batches ─▶ PageCompressor ─▶ content, one page behind the other; a descriptor of each

import { setImmediate as nextTurn } from 'node:timers/promises';
import { channelError } from '../../channel/channel-error.js';
import { OutputFile } from '../../channel/output-file-node.js';
import { writeFully } from '../../channel/write-fully-node.js';
import { debuggerNotes, isCoreOf64Bits } from '../../format/debugger-notes.js';
import { refuseElsewhere } from '../../format/elsewhere.js';
import { flattenedEnd, flattenedHead, flattenedPiece } from '../../format/kdump/flattened.js';
import { frameBitmap } from '../../format/kdump/frame-bitmap.js';
import { type KdumpHead, kdumpHead } from '../../format/kdump/head.js';
import { KDUMP_PAGE_BYTES, PAGE_DESCRIPTOR_BYTES, PageDescriptors } from '../../format/kdump/page-descriptors.js';
import type { PhysicalRange } from '../../format/physical-map.js';
import { PhysicalMemory } from '../../format/physical-memory.js';
import { pageIndex } from '../../memory/units.js';
import { type CompressorBatch, PageCompressor } from '../../memory-file/page-compressor-node.js';
import { SLICE_MS } from '../../memory-file/slices-node.js';
import { progressOf } from '../read-memory-file.js';
import { addressedMemory } from './addressed-memory.js';
import type { Conversion, Written, WrittenCore } from './conversion.js';
import { coreDetails } from './core-details.js';
import { openOutput, type SequentialOutput } from './open-output.js';

/** Writes bytes to a place in the dump; they are used again when it has resolved. */
type WriteAt = (bytes: Uint8Array, position: number) => Promise<void> | void;

export const writeKdump = async (conversion: Conversion): Promise<Written> => {
  const { out, surroundings } = conversion;
  const { head, ranges, written } = await planKdump(conversion);
  const output = openOutput(out);
  try {
    let fileBytes = 0;
    const writeAt = output instanceof OutputFile ? toFile(output, out) : flattened(output);
    const count: WriteAt = (bytes, position) => {
      fileBytes += bytes.length;
      return writeAt(bytes, position);
    };
    if (!(output instanceof OutputFile)) {
      await output.write(flattenedHead());
    }
    await writeHead(head, ranges, count);
    await new KdumpPages(conversion, head, count).write(ranges);
    if (!(output instanceof OutputFile)) {
      await output.write(flattenedEnd());
    }
    surroundings.progress.update({ phase: 'syncing the file' });
    await output.commit();
    return { ...written, fileBytes };
  } finally {
    output.abort();
  }
};

/** All but the pages. */
export const planKdump = async (
  conversion: Conversion,
): Promise<{
  readonly head: KdumpHead;
  readonly ranges: readonly PhysicalRange[];
  readonly written: Omit<Written, 'fileBytes'>;
}> => {
  const { snapshot } = conversion;
  const { map, ranges, written } = addressedMemory(conversion);
  refuseElsewhere(
    snapshot,
    ranges.map(({ block }) => block),
  );
  const last = ranges.at(-1)!;
  const memory = new PhysicalMemory(snapshot, map);
  const { cpus, kernel, vmcoreinfo, written: core } = await coreDetails(conversion, memory);
  const hasRegisters = isCoreOf64Bits(cpus);
  const head = kdumpHead({
    notes: debuggerNotes(hasRegisters ? cpus : [], vmcoreinfo),
    processors: Math.max(1, cpus.length),
    vmcoreinfo: vmcoreinfo ?? new Uint8Array(),
    uname: kernel?.uname(),
    physBase: BigInt(kernel?.physicalBase ?? 0),
    pageCount: ranges.reduce((sum, { bytes }) => sum + bytes, 0) / KDUMP_PAGE_BYTES,
    frameEnd: (last.address + last.bytes) / KDUMP_PAGE_BYTES,
  });
  return { head, ranges, written: { ...written, core: hasRegisters ? core : without32Bits(core) } };
};

/** A dump is of x86_64, whose registers have 64 bits. */
const without32Bits = (core: WrittenCore): WrittenCore => ({
  ...core,
  cpus: [],
  notes: [...core.notes, 'No registers: the guest did not run in 64-bit mode. An ELF core has them.'],
});

const toFile =
  ({ descriptor }: OutputFile, file: string): WriteAt =>
  (bytes, position) => {
    try {
      writeFully(descriptor, bytes, 0, bytes.length, position);
    } catch (error) {
      throw channelError(error, 'write', file);
    }
  };

const flattened =
  (output: SequentialOutput): WriteAt =>
  async (bytes, position) => {
    await output.write(flattenedPiece(position, bytes.length));
    await output.write(bytes);
  };

/** All that stands before the descriptors. Where a bitmap is zero, the file has a hole. */
const writeHead = async (
  { bytes, bitmaps }: KdumpHead,
  ranges: readonly PhysicalRange[],
  writeAt: WriteAt,
): Promise<void> => {
  await writeAt(bytes, 0);
  const frames = ranges.map((range) => ({
    first: range.address / KDUMP_PAGE_BYTES,
    count: range.bytes / KDUMP_PAGE_BYTES,
  }));
  for (const bitmap of bitmaps) {
    for (const piece of frameBitmap(frames, bitmaps[1] - bitmaps[0])) {
      await writeAt(piece.bytes, bitmap + piece.offset);
    }
  }
};

/** Descriptors that are written at a time. */
const MOST_DESCRIPTORS = 32768;

/** A batch that is compressed, or was. */
interface Pending {
  readonly batch: CompressorBatch;
  readonly pageCount: number;
  /** Number of its first page among all of the dump. */
  readonly first: number;
  readonly done: Promise<void>;
}

/** Descriptors and content of all pages. */
class KdumpPages {
  readonly #conversion: Conversion;
  readonly #writeAt: WriteAt;
  readonly #descriptorOffset: number;
  readonly #zeroPage: number;
  readonly #descriptors = new PageDescriptors(MOST_DESCRIPTORS);
  readonly #compressor = new PageCompressor(KDUMP_PAGE_BYTES);
  /** The oldest first. */
  readonly #pending: Pending[] = [];
  /** Where the next content goes. */
  #position: number;
  /** Pages that have their place among the descriptors. */
  #pageCount = 0;
  #sliceEnd = performance.now() + SLICE_MS;

  constructor(conversion: Conversion, { descriptorOffset, dataOffset }: KdumpHead, writeAt: WriteAt) {
    this.#conversion = conversion;
    this.#writeAt = writeAt;
    this.#descriptorOffset = descriptorOffset;
    this.#zeroPage = dataOffset;
    this.#position = dataOffset + KDUMP_PAGE_BYTES;
  }

  async write(ranges: readonly PhysicalRange[]): Promise<void> {
    const totalBytes = ranges.reduce((sum, { bytes }) => sum + bytes, 0);
    const onProgress = progressOf(this.#conversion.surroundings, 'writing', totalBytes);
    const onTurn = (): void => onProgress(this.#pageCount * KDUMP_PAGE_BYTES);
    try {
      await this.#writeAt(new Uint8Array(KDUMP_PAGE_BYTES), this.#zeroPage);
      for (const range of ranges) {
        await this.#writeRange(range, onTurn);
      }
      while (this.#pending.length > 0) {
        await this.#writeOldest();
      }
    } finally {
      await this.#compressor.close();
    }
  }

  async #writeRange({ block, offset, bytes }: PhysicalRange, onTurn: () => void): Promise<void> {
    const { snapshot, surroundings } = this.#conversion;
    const { targetPageSize: pageSize } = snapshot.setup;
    const end = (offset + bytes) / pageSize;
    for (let page = offset / pageSize; page < end; ) {
      const present = snapshot.nextPresent(block, pageIndex(page), pageIndex(end));
      await this.#writeZeros(((present - page) * pageSize) / KDUMP_PAGE_BYTES);
      page = present;
      if (page < end) {
        const batch = this.#compressor.claim() ?? (await this.#writeOldest());
        const target = batch.pages.subarray(0, Math.min(batch.pages.length, (end - page) * pageSize));
        snapshot.readPages(block, pageIndex(page), target.length / pageSize, target);
        this.#compress(batch, target.length / KDUMP_PAGE_BYTES);
        page += target.length / pageSize;
      }
      if (performance.now() >= this.#sliceEnd) {
        onTurn();
        await nextTurn();
        surroundings.signal.throwIfAborted();
        this.#sliceEnd = performance.now() + SLICE_MS;
      }
    }
  }

  #compress(batch: CompressorBatch, pageCount: number): void {
    const done = this.#compressor.compress(batch, pageCount);
    this.#pending.push({ batch, pageCount, first: this.#pageCount, done });
    this.#pageCount += pageCount;
  }

  async #writeZeros(pageCount: number): Promise<void> {
    for (let left = pageCount; left > 0; ) {
      const count = Math.min(MOST_DESCRIPTORS, left);
      this.#descriptors.addShared(this.#zeroPage, KDUMP_PAGE_BYTES, count);
      await this.#writeDescriptors(this.#pageCount);
      this.#pageCount += count;
      left -= count;
    }
  }

  /** Writes the oldest batch when it is compressed; resolves with the batch, to be filled again. */
  async #writeOldest(): Promise<CompressorBatch> {
    const { batch, pageCount, first, done } = this.#pending.shift()!;
    await done;
    let end = 0;
    for (const length of batch.lengths.subarray(0, pageCount)) {
      if (length === 0) {
        this.#descriptors.add(this.#zeroPage, KDUMP_PAGE_BYTES);
      } else {
        this.#descriptors.add(this.#position + end, length);
        end += length;
      }
    }
    await this.#writeDescriptors(first);
    if (end > 0) {
      await this.#writeAt(batch.data.subarray(0, end), this.#position);
      this.#position += end;
    }
    return batch;
  }

  async #writeDescriptors(first: number): Promise<void> {
    await this.#writeAt(this.#descriptors.written, this.#descriptorOffset + first * PAGE_DESCRIPTOR_BYTES);
    this.#descriptors.clear();
  }
}
