// A file as the target of a migration: the stream as it came, less what only means something on a connection, so that
// `-incoming file:` or `exec:cat` loads it. Every record passes the stream reader, but no byte is looked at twice or
// copied: reads and writes work on the same buffers.
//
//   buffer n   |▒▒▒▒ kept ▒▒▒▒|  command, dropped  |▒▒▒ consumed ▒▒▒|▓ rest of a record ▓|░░░░ room ░░░░|
//              0            #kept              #from            #consumed
//
// When the room gets small, the kept bytes leave in one write, and the rest goes to the front of the next buffer.

import type { ByteChannel } from '../channel/channel.js';
import { DIGEST_PAGE_BYTES, RamDigest } from '../format/ram-digest.js';
import { Command, ElementType, TARGET_PAGE_BITS } from '../format/stream/constants.js';
import type { DeviceTail } from '../format/stream/device-tail.js';
import type { RamSetup, ReadRamBlock } from '../format/stream/stream-handler.js';
import { decodeXbzrle } from '../format/stream/xbzrle.js';
import { Segment } from '../memory/segment.js';
import type { DigestingTarget, DigestOption, PageCounts, ReceiveArea } from './target.js';
import { Waiters } from './waiters.js';

/** Takes bytes in order, as a file does. A `ByteChannel` is one. */
export type ByteSink = Pick<ByteChannel, 'write'>;

/** Reads of a MiB into what is left of a buffer, writes of at least one from its front: neither gains from more. */
const SMALLEST_READ_BYTES = 2 ** 20;
const BUFFER_BYTES = 2 * SMALLEST_READ_BYTES;

/** One being filled, two being written, so that the disk never waits for the network. */
const BUFFERS = 3;

/** Room for them: a power of two. */
const BUFFERS_BYTES = 4 * BUFFER_BYTES;

/**
 * Commands that stay. SWITCHOVER_START is part of what QEMU itself writes into a file, and only machine types that know it
 * (10.0) send it. The others speak to a live peer: the loader of a file fails on a PING, and on a postcopy ADVISE unless it
 * is configured for postcopy (spec/qemu-wire-format.md 5.2).
 */
const keptCommands: ReadonlySet<number> = new Set([Command.SWITCHOVER_START]);

export class FileTarget implements DigestingTarget {
  readonly pages: PageCounts = { normal: 0, zero: 0, xbzrle: 0 };
  readonly warnings: readonly string[] = [];
  readonly #sink: ByteSink;
  /** All buffers, where the digest's kernel finds the pages in them. */
  readonly #buffers = Segment.create({ ramBytes: BUFFERS_BYTES });
  readonly #free: Uint8Array[] = [];
  #allocated = 0;
  #buffer: Uint8Array | undefined;
  #kept = 0;
  #from = 0;
  #consumed = 0;
  #writes = 0;
  #lateDevices: Uint8Array | undefined;
  #error: Error | undefined;
  readonly #waiters = new Waiters();
  /** XBZRLE data is applied to this, only to see whether it can be: no check depends on the page's old content. */
  readonly #page = new Uint8Array(2 ** TARGET_PAGE_BITS.largest);
  #pageSize = 0;
  readonly #digests: boolean;
  #digest: RamDigest | undefined;

  constructor(sink: ByteSink, { digests = false }: DigestOption = {}) {
    this.#sink = sink;
    this.#digests = digests;
  }

  /** A page that comes as a difference cannot be hashed: what it differs from is in the file. */
  get digest(): RamDigest | undefined {
    return this.#digest;
  }

  get ready(): boolean {
    return this.#buffer !== undefined || this.#free.length > 0 || this.#allocated < BUFFERS;
  }

  async whenReady(): Promise<void> {
    await this.#waiters.until(() => {
      this.#throwIfBroken();
      return this.ready;
    });
  }

  area(): ReceiveArea {
    this.#throwIfBroken();
    this.#buffer ??= this.#nextBuffer();
    return { bytes: this.#buffer, start: this.#consumed, end: BUFFER_BYTES };
  }

  consumed(end: number): void {
    this.#consumed = end;
    if (BUFFER_BYTES - end < SMALLEST_READ_BYTES) {
      this.#writeBuffer();
    }
  }

  async finish(): Promise<void> {
    this.#writeBuffer();
    if (this.#lateDevices !== undefined) {
      this.#write(this.#lateDevices, () => {});
    }
    await this.#waiters.until(() => {
      this.#throwIfBroken();
      return this.#writes === 0;
    });
  }

  ramSetup({ targetPageSize, blocks }: RamSetup): void {
    this.#pageSize = targetPageSize;
    if (this.#digests && targetPageSize % DIGEST_PAGE_BYTES === 0) {
      this.#digest = new RamDigest(blocks);
    }
  }

  zeroPage({ index }: ReadRamBlock, page: number): void {
    this.#digest?.clear(index, page * this.#pageSize, this.#pageSize);
    this.pages.zero += 1;
  }

  page({ index }: ReadRamBlock, page: number, bytes: Uint8Array, at: number): void {
    this.#digest?.setInSegment(index, page * this.#pageSize, this.#buffers, bytes.byteOffset + at, this.#pageSize);
    this.pages.normal += 1;
  }

  xbzrlePage(_block: ReadRamBlock, _page: number, bytes: Uint8Array, at: number, length: number, offset: number): void {
    decodeXbzrle(bytes, at, length, this.#page.subarray(0, this.#pageSize), offset);
    this.pages.xbzrle += 1;
    this.#digest = undefined;
  }

  command(command: number, payload: Uint8Array): void {
    if (keptCommands.has(command)) {
      return;
    }
    // The payload is a view of the buffer; the element's type, number and length stand in front of it.
    const start = payload.byteOffset - this.#buffer!.byteOffset - 5;
    this.#drop(start, start + 5 + payload.length);
  }

  notSaved(_bytes: Uint8Array, start: number, end: number): void {
    this.#drop(start, end);
  }

  /** Behind RAM, where a precopy has them. */
  lateDevices({ sections }: DeviceTail): void {
    this.#lateDevices = new Uint8Array(sections.length + 1);
    this.#lateDevices.set(sections);
    this.#lateDevices[sections.length] = ElementType.EOF;
  }

  #drop(start: number, end: number): void {
    this.#keep(start);
    this.#from = end;
  }

  /** Moves the bytes up to `end` behind those that are kept already: nothing to do where nothing was dropped. */
  #keep(end: number): void {
    if (this.#from !== this.#kept) {
      this.#buffer!.copyWithin(this.#kept, this.#from, end);
    }
    this.#kept += end - this.#from;
    this.#from = end;
  }

  #writeBuffer(): void {
    const buffer = this.#buffer;
    if (buffer === undefined) {
      return;
    }
    this.#keep(this.#consumed);
    const bytes = buffer.subarray(0, this.#kept);
    this.#buffer = undefined;
    this.#kept = 0;
    this.#from = 0;
    this.#consumed = 0;
    this.#write(bytes, () => this.#free.push(buffer));
  }

  #write(bytes: Uint8Array, done: () => void): void {
    this.#writes += 1;
    this.#sink.write(bytes, (error) => {
      this.#writes -= 1;
      this.#error ??= error;
      done();
      this.#waiters.wake();
    });
  }

  #nextBuffer(): Uint8Array {
    const free = this.#free.pop();
    if (free !== undefined) {
      return free;
    }
    this.#allocated += 1;
    return this.#buffers.bytes.subarray((this.#allocated - 1) * BUFFER_BYTES, this.#allocated * BUFFER_BYTES);
  }

  #throwIfBroken(): void {
    if (this.#error !== undefined) {
      throw this.#error;
    }
  }
}
