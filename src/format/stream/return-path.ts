// The return path: messages from the destination to the source, on the other direction of the same connection
// (spec/qemu-wire-format.md 5.5). Both directions of it: what a destination writes, what a source reads.
//
//   message := be16(type) be16(n <= 512) payload[n]

import { ByteWriter } from '../byte-writer.js';
import { be16, be32, be64, latin1 } from '../bytes.js';
import { invalid } from '../invalid.js';
import { ReturnPathMessage } from './constants.js';

const PAYLOAD_LIMIT = 512;

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

/** The destination agrees to the switchover. */
export const switchoverAck = (): Uint8Array => message(ReturnPathMessage.SWITCHOVER_ACK);

/** What a source does with the messages; the checks of 5.5 that need no knowledge of the blocks are already made. */
export interface ReturnPathHandler {
  pong(value: number): void;
  /** The last message. */
  shut(error: number): void;
  requestPages(blockName: string, start: number, length: number): void;
  switchoverAck(): void;
}

/** Payload bytes; REQ_PAGES_ID has a name besides. */
const LENGTHS: Readonly<Record<number, number>> = {
  [ReturnPathMessage.SHUT]: 4,
  [ReturnPathMessage.PONG]: 4,
  [ReturnPathMessage.REQ_PAGES]: 12,
  [ReturnPathMessage.SWITCHOVER_ACK]: 0,
};

/** The source's end of the return path. Resumable at any byte; waits for at most 516 bytes. */
export class ReturnPathReader {
  readonly #handler: ReturnPathHandler;
  #position = 0;
  #blockName: string | undefined;
  #done = false;

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
    while (end - at >= 4) {
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
    const hasName = type === ReturnPathMessage.REQ_PAGES_ID;
    if (!hasName && LENGTHS[type] === undefined) {
      throw invalid(
        'RETURN_PATH_MESSAGE',
        `The destination sent a message of unexpected type ${type}`,
        this.#position,
        {
          value: type,
        },
      );
    }
    if (length > PAYLOAD_LIMIT || (hasName ? length < 14 : length !== LENGTHS[type])) {
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
      default:
        this.#requestPages(bytes, payload, length);
    }
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
