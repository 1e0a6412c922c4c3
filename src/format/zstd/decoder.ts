// zstd frames (RFC 8878), unpacked as they come, for a Node without zstd of its own.
//
//   | magic | descriptor, window, dictionary, content size | block | block | … | checksum |     frames follow each other
//
// The library unpacks blocks. What makes a file whole is looked after here: window and blocks are within bounds before
// anything is allocated, every frame ends, with as many bytes as it says, and with the checksum that it says.

import { Decompress } from 'fzstd';
import { hex, invalid } from '../invalid.js';
import { Xxh64 } from './xxh64.js';

/** As much as the zstd command gives without being asked. */
const WINDOW_LIMIT_BYTES = 128 * 1024 * 1024;

const BLOCK_LIMIT_BYTES = 128 * 1024;
const BLOCK_HEAD_BYTES = 3;
const MAGIC = 0xfd2f_b528;
/** Of frames to be skipped, without the last four bits. */
const SKIPPABLE_MAGIC = 0x184d_2a50;
const SKIPPABLE_HEAD_BYTES = 8;
/** Magic and descriptor. */
const SHORTEST_HEAD_BYTES = 5;
const CHECKSUM_FLAG = 4;

interface Frame {
  readonly decompressor: Decompress;
  readonly contentBytes: number | undefined;
  readonly checksum: Xxh64 | undefined;
  readonly blockLimitBytes: number;
  doneBytes: number;
}

const le = (bytes: Uint8Array, at: number, length: number): number => {
  let value = 0;
  for (let index = length - 1; index >= 0; index -= 1) {
    value = value * 256 + bytes[at + index]!;
  }
  return value;
};

const damaged = (statement: string, offset: number, value?: number | string): Error =>
  invalid('COMPRESSED_DATA', statement, offset, value === undefined ? {} : { value });

export class ZstdDecoder {
  /** Bytes of a unit that has begun: a head, or a block with its head. */
  readonly #unit = new Uint8Array(BLOCK_HEAD_BYTES + BLOCK_LIMIT_BYTES);
  #unitBytes = 0;
  /** How many it takes to go on. */
  #needed = SHORTEST_HEAD_BYTES;
  /** What becomes of the unit once it is there. */
  #next: () => void = () => this.#head();
  #frame: Frame | undefined;
  #frames = 0;
  /** Still to be skipped. */
  #skipBytes = 0;
  /** Of the packed data, where the unit begins. */
  #position = 0;
  readonly #output: Uint8Array[] = [];
  /** The last byte of a block is given to the library with the next one: it would keep each block that ends with its piece. */
  #heldByte = new Uint8Array(0);
  readonly #endsAnywhere: boolean;
  #ended = false;

  /** @param endsAnywhere whatever follows the last frame is no part of it, as on a device */
  constructor({ endsAnywhere = false }: { readonly endsAnywhere?: boolean } = {}) {
    this.#endsAnywhere = endsAnywhere;
  }

  /** Whether everything was unpacked, and something else follows. */
  get ended(): boolean {
    return this.#ended;
  }

  /**
   * Takes the next of the packed bytes; yields what they unpack to, block by block.
   * @throws RamferryError `invalid`
   */
  *push(bytes: Uint8Array): Generator<Uint8Array> {
    for (let at = 0; !this.#ended; ) {
      const skipped = Math.min(this.#skipBytes, bytes.length - at);
      this.#skipBytes -= skipped;
      this.#position += skipped;
      at += skipped;
      const taken = Math.min(this.#needed - this.#unitBytes, bytes.length - at);
      this.#unit.set(bytes.subarray(at, at + taken), this.#unitBytes);
      this.#unitBytes += taken;
      at += taken;
      if (this.#unitBytes < this.#needed) {
        return;
      }
      this.#next();
      yield* this.#output.splice(0);
    }
  }

  /** @throws RamferryError `invalid` if the last frame is cut */
  finish(): void {
    const isAtEnd = this.#frame === undefined && this.#unitBytes === 0 && this.#skipBytes === 0;
    if (!this.#ended && !(isAtEnd && this.#frames > 0)) {
      throw damaged('The zstd data end inside a frame', this.#position + this.#unitBytes);
    }
  }

  /** The unit is done with: another follows. */
  #then(needed: number, next: () => void): void {
    this.#position += this.#unitBytes;
    this.#unitBytes = 0;
    this.#needed = needed;
    this.#next = next;
  }

  /** More of the same unit is needed. */
  #extend(needed: number, next: () => void): void {
    this.#needed = needed;
    this.#next = next;
  }

  #head(): void {
    const unit = this.#unit;
    const magic = le(unit, 0, 4);
    if (magic - (magic % 16) === SKIPPABLE_MAGIC) {
      this.#extend(SKIPPABLE_HEAD_BYTES, () => {
        this.#skipBytes = le(unit, 4, 4);
        this.#frames += 1;
        this.#then(SHORTEST_HEAD_BYTES, () => this.#head());
      });
      return;
    }
    if (magic !== MAGIC) {
      if (this.#endsAnywhere && this.#frames > 0) {
        this.#ended = true;
        return;
      }
      throw damaged(`A zstd frame begins with ${hex(magic)}`, this.#position, magic);
    }
    const descriptor = unit[4]!;
    const isSingle = (descriptor & 0x20) !== 0;
    const dictionaryBytes = [0, 1, 2, 4][descriptor & 3]!;
    const sizeBytes = [isSingle ? 1 : 0, 2, 4, 8][descriptor >> 6]!;
    const length = SHORTEST_HEAD_BYTES + Number(!isSingle) + dictionaryBytes + sizeBytes;
    this.#extend(length, () => this.#begin(length, dictionaryBytes, sizeBytes, isSingle));
  }

  #begin(length: number, dictionaryBytes: number, sizeBytes: number, isSingle: boolean): void {
    const unit = this.#unit;
    const at = SHORTEST_HEAD_BYTES + Number(!isSingle);
    if (le(unit, at, dictionaryBytes) !== 0) {
      throw damaged('The zstd frame wants a dictionary', this.#position, le(unit, at, dictionaryBytes));
    }
    const sizeAt = at + dictionaryBytes;
    const contentBytes =
      sizeBytes === 0 ? undefined : sizeBytes === 2 ? le(unit, sizeAt, 2) + 256 : le(unit, sizeAt, sizeBytes);
    const windowByte = unit[SHORTEST_HEAD_BYTES]!;
    const windowBase = 2 ** (10 + (windowByte >> 3));
    const windowBytes = isSingle ? contentBytes! : windowBase + (windowBase / 8) * (windowByte & 7);
    if (windowBytes > WINDOW_LIMIT_BYTES) {
      throw damaged(`The zstd frame wants a window of ${windowBytes} bytes`, this.#position, windowBytes);
    }
    const hasChecksum = (unit[4]! & CHECKSUM_FLAG) !== 0;
    const frame: Frame = {
      decompressor: new Decompress((bytes) => {
        if (bytes.length > 0) {
          frame.doneBytes += bytes.length;
          frame.checksum?.update(bytes);
          this.#output.push(bytes);
        }
      }),
      contentBytes,
      checksum: hasChecksum ? new Xxh64() : undefined,
      blockLimitBytes: Math.min(BLOCK_LIMIT_BYTES, windowBytes),
      doneBytes: 0,
    };
    this.#frame = frame;
    // The checksum is ours to look at.
    const head = unit.slice(0, length);
    head[4]! &= ~CHECKSUM_FLAG;
    this.#heldByte = new Uint8Array(0);
    this.#unpack(head, false);
    this.#then(BLOCK_HEAD_BYTES, () => this.#blockHead());
  }

  #blockHead(): void {
    const head = le(this.#unit, 0, BLOCK_HEAD_BYTES);
    const isLast = head % 2 === 1;
    const type = (head >> 1) & 3;
    const size = head >> 3;
    // The encoder's limit is the window's; the format's own is what a decoder has to hold.
    if (type === 3 || size > Math.max(this.#frame!.blockLimitBytes, type === 2 ? BLOCK_LIMIT_BYTES : 0)) {
      throw damaged(`The zstd block has type ${type} and ${size} bytes`, this.#position, size);
    }
    this.#extend(BLOCK_HEAD_BYTES + (type === 1 ? 1 : size), () => this.#block(isLast));
  }

  #block(isLast: boolean): void {
    this.#unpack(this.#unit.slice(0, this.#unitBytes), isLast);
    if (!isLast) {
      this.#then(BLOCK_HEAD_BYTES, () => this.#blockHead());
      return;
    }
    const { checksum } = this.#frame!;
    if (checksum === undefined) {
      this.#end();
    } else {
      this.#then(4, () => {
        const found = checksum.low32();
        const stored = le(this.#unit, 0, 4);
        if (found !== stored) {
          throw damaged(
            `The zstd frame has checksum ${hex(stored)}, its content ${hex(found)}`,
            this.#position,
            stored,
          );
        }
        this.#end();
      });
    }
  }

  #end(): void {
    const { contentBytes, doneBytes } = this.#frame!;
    if (contentBytes !== undefined && contentBytes !== doneBytes) {
      throw damaged(`The zstd frame has ${doneBytes} bytes and says ${contentBytes}`, this.#position, doneBytes);
    }
    this.#frame = undefined;
    this.#frames += 1;
    this.#then(SHORTEST_HEAD_BYTES, () => this.#head());
  }

  #unpack(piece: Uint8Array, isLast: boolean): void {
    const whole = new Uint8Array(this.#heldByte.length + piece.length);
    whole.set(this.#heldByte);
    whole.set(piece, this.#heldByte.length);
    const end = isLast ? whole.length : whole.length - 1;
    this.#heldByte = whole.slice(end);
    try {
      this.#frame!.decompressor.push(whole.subarray(0, end), isLast);
    } catch (error) {
      throw damaged(`The zstd block cannot be unpacked: ${(error as Error).message}`, this.#position);
    }
  }
}
