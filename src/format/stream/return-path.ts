// The return path: messages from the destination to the source, on the other direction of the same connection
// (spec/qemu-wire-format.md 5.5). Both directions of it: what a destination writes, what a source reads.
//
//   message := be16(type) be16(n <= 512) payload[n]

import { ByteWriter } from '../byte-writer.js';
import { be16, be32, be64, latin1 } from '../bytes.js';
import { invalid } from '../invalid.js';
import { ReturnPathMessage } from './constants.js';

const PAYLOAD_LIMIT = 512;

/** Follows a received bitmap (5.6): 0x0123456789abcdef. */
const BITMAP_END_MARK = [0x01234567, 0x89abcdef] as const;

/** Bytes of a block's received bitmap on the wire: whole 64-bit words, whatever the words of either side (RC-12). */
export const receivedBitmapBytes = (pageCount: number): number => Math.ceil(pageCount / 64) * 8;

const message = (type: number, payload: ByteWriter = new ByteWriter(0)): Uint8Array =>
  new ByteWriter(4 + payload.length).be16(type).be16(payload.length).bytes(payload.view).copy();

const number = (value: number): ByteWriter => new ByteWriter(4).be32(value);

/** The last message: 0 says that everything was loaded; any other value makes the source's guest run on. */
export const shut = (error: number): Uint8Array => message(ReturnPathMessage.SHUT, number(error));

/** Answer to PING, with its value. */
export const pong = (value: number): Uint8Array => message(ReturnPathMessage.PONG, number(value));

/** Asks for pages: `length` bytes from `start` of a block; without a name, of the block of the request before. */
export const requestPages = (start: number, length: number, blockName?: string): Uint8Array => {
  const payload = new ByteWriter(16).be64(start).be32(length);
  return blockName === undefined
    ? message(ReturnPathMessage.REQ_PAGES, payload)
    : message(ReturnPathMessage.REQ_PAGES_ID, payload.str8(blockName));
};

/** The destination can go on after a recovery. */
export const resumeAck = (): Uint8Array => message(ReturnPathMessage.RESUME_ACK, number(1));

/**
 * Which pages of a block have arrived: bit n % 8 of byte n / 8 is page n. `bitmap` has `receivedBitmapBytes`.
 */
export const receivedBitmap = (blockName: string, bitmap: Uint8Array): Uint8Array =>
  new ByteWriter(bitmap.length + 280)
    .bytes(message(ReturnPathMessage.RECV_BITMAP, new ByteWriter().str8(blockName)))
    .be64(bitmap.length)
    .bytes(bitmap)
    .be32(BITMAP_END_MARK[0])
    .be32(BITMAP_END_MARK[1])
    .copy();

/** The destination agrees to the switchover. */
export const switchoverAck = (): Uint8Array => message(ReturnPathMessage.SWITCHOVER_ACK);

/** What a source does with the messages; the checks of 5.5 that need no knowledge of the blocks are already made. */
export interface ReturnPathHandler {
  pong(value: number): void;
  /** The last message. */
  shut(error: number): void;
  requestPages(blockName: string, start: number, length: number): void;
  switchoverAck(): void;
  /** Only with these two does a source that recovers accept the answers to its questions; without them they are refused. */
  readonly recovery?: {
    /** Where the bitmap of the block goes; its length is what the destination must announce. Throws if it was not asked for. */
    bitmapTarget(blockName: string): Uint8Array;
    /** All of it is there. */
    bitmapReceived(blockName: string): void;
    resumeAck(value: number): void;
  };
}

/** Payload bytes; REQ_PAGES_ID has a name besides, RECV_BITMAP has nothing else. */
const LENGTHS: Readonly<Record<number, number>> = {
  [ReturnPathMessage.SHUT]: 4,
  [ReturnPathMessage.PONG]: 4,
  [ReturnPathMessage.REQ_PAGES]: 12,
  [ReturnPathMessage.SWITCHOVER_ACK]: 0,
};
const RECOVERY_LENGTHS: Readonly<Record<number, number>> = { [ReturnPathMessage.RESUME_ACK]: 4 };

/** A bitmap that is arriving behind its message. */
interface IncomingBitmap {
  readonly blockName: string;
  readonly target: Uint8Array;
  /** Bytes that are there; -1 before the size was read. */
  received: number;
}

/** The source's end of the return path. Resumable at any byte; waits for at most 516 bytes. */
export class ReturnPathReader {
  readonly #handler: ReturnPathHandler;
  #position = 0;
  #blockName: string | undefined;
  #done = false;
  #bitmap: IncomingBitmap | undefined;

  constructor(handler: ReturnPathHandler) {
    this.#handler = handler;
  }

  /** Whether SHUT was read. A peer that ends before that has failed. */
  get done(): boolean {
    return this.#done;
  }

  /**
   * Reads the bytes [start, end); returns how many were consumed, the rest must be pushed again with more behind it.
   * @throws RamferryError of kind `invalid`; offsets count the bytes of the return path.
   */
  push(bytes: Uint8Array, start = 0, end = bytes.length): number {
    let at = start;
    for (;;) {
      if (this.#bitmap !== undefined) {
        const count = this.#readBitmap(this.#bitmap, bytes, at, end);
        at += count;
        this.#position += count;
        if (this.#bitmap !== undefined) {
          break;
        }
      }
      if (end - at < 4) {
        break;
      }
      const length = be16(bytes, at + 2);
      this.#check(be16(bytes, at), length);
      if (end - at < 4 + length) {
        break;
      }
      this.#message(bytes, at, length);
      at += 4 + length;
      this.#position += 4 + length;
    }
    return at - start;
  }

  #check(type: number, length: number): void {
    const recovers = this.#handler.recovery !== undefined;
    const isBitmap = recovers && type === ReturnPathMessage.RECV_BITMAP;
    const hasName = type === ReturnPathMessage.REQ_PAGES_ID || isBitmap;
    const fixed = LENGTHS[type] ?? (recovers ? RECOVERY_LENGTHS[type] : undefined);
    if (!hasName && fixed === undefined) {
      throw invalid(
        'RETURN_PATH_MESSAGE',
        `The destination sent a message of unexpected type ${type}`,
        this.#position,
        {
          value: type,
        },
      );
    }
    if (length > PAYLOAD_LIMIT || (hasName ? length < (isBitmap ? 2 : 14) : length !== fixed)) {
      throw invalid('RETURN_PATH_LENGTH', `A message of type ${type} has ${length} bytes`, this.#position + 2, {
        value: length,
      });
    }
    if (this.#done) {
      throw invalid('RETURN_PATH_MESSAGE', `A message of type ${type} follows SHUT`, this.#position, { value: type });
    }
  }

  #message(bytes: Uint8Array, at: number, length: number): void {
    const payload = at + 4;
    switch (be16(bytes, at)) {
      case ReturnPathMessage.SHUT:
        this.#done = true;
        this.#handler.shut(be32(bytes, payload));
        break;
      case ReturnPathMessage.PONG:
        this.#handler.pong(be32(bytes, payload));
        break;
      case ReturnPathMessage.SWITCHOVER_ACK:
        this.#handler.switchoverAck();
        break;
      case ReturnPathMessage.RESUME_ACK:
        this.#handler.recovery?.resumeAck(be32(bytes, payload));
        break;
      case ReturnPathMessage.RECV_BITMAP:
        this.#startBitmap(bytes, payload, length);
        break;
      default:
        this.#requestPages(bytes, payload, length);
    }
  }

  #startBitmap(bytes: Uint8Array, payload: number, length: number): void {
    if (length !== 1 + bytes[payload]) {
      throw invalid('RETURN_PATH_LENGTH', `A received bitmap's header has ${length} bytes`, this.#position + 2, {
        value: length,
      });
    }
    const blockName = latin1(bytes, payload + 1, payload + length);
    const target = this.#handler.recovery!.bitmapTarget(blockName);
    this.#bitmap = { blockName, target, received: -1 };
  }

  /** Reads what is there of size, bitmap and end mark; returns how many bytes that was. */
  #readBitmap(bitmap: IncomingBitmap, bytes: Uint8Array, start: number, end: number): number {
    const { blockName, target } = bitmap;
    let at = start;
    if (bitmap.received < 0) {
      if (end - at < 8) {
        return 0;
      }
      const size = be64(bytes, at);
      if (size !== target.length) {
        const statement = `The received bitmap of RAM block "${blockName}" has ${size} bytes, expected are ${target.length}`;
        throw invalid('RECEIVED_BITMAP_SIZE', statement, this.#position, { value: size });
      }
      at += 8;
      bitmap.received = 0;
    }
    const count = Math.min(target.length - bitmap.received, end - at);
    target.set(bytes.subarray(at, at + count), bitmap.received);
    bitmap.received += count;
    at += count;
    if (bitmap.received < target.length || end - at < 8) {
      return at - start;
    }
    if (be32(bytes, at) !== BITMAP_END_MARK[0] || be32(bytes, at + 4) !== BITMAP_END_MARK[1]) {
      const statement = `The received bitmap of RAM block "${blockName}" ends without its end mark`;
      throw invalid('RECEIVED_BITMAP_END', statement, this.#position + at - start);
    }
    this.#bitmap = undefined;
    this.#handler.recovery!.bitmapReceived(blockName);
    return at + 8 - start;
  }

  #requestPages(bytes: Uint8Array, payload: number, length: number): void {
    const start = be64(bytes, payload);
    if (length > 12) {
      if (length !== 13 + bytes[payload + 12]) {
        throw invalid('RETURN_PATH_LENGTH', `A page request has ${length} bytes`, this.#position + 2, {
          value: length,
        });
      }
      this.#blockName = latin1(bytes, payload + 13, payload + length);
    }
    if (this.#blockName === undefined || Number.isNaN(start)) {
      const what = this.#blockName === undefined ? 'names no RAM block' : 'lies beyond what any machine has';
      throw invalid('PAGE_REQUEST', `A page request ${what}`, this.#position);
    }
    this.#handler.requestPages(this.#blockName, start, be32(bytes, payload + 8));
  }
}
