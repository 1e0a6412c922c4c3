// Reads the setup record of RAM START: which blocks there are, and how long (spec/qemu-wire-format.md 2.3). In a mapped-ram
// file also where their pages are; the stream then goes on behind those (3.2).

import { be64 } from '../bytes.js';
import { hex } from '../invalid.js';
import { MAPPED_RAM_HEADER_BYTES } from '../mapped-ram/layout.js';
import { mappedPageSize, readLayout } from '../mapped-ram/read-layout.js';
import { RecordFlag, TARGET_PAGE_BITS } from './constants.js';
import type { Cursor } from './cursor.js';
import type { RamSetup, ReadRamBlock } from './stream-handler.js';

/** Most RAM blocks accepted; the largest QEMU guests, with a ROM for each of many PCI functions, have hundreds. */
const BLOCK_LIMIT = 4096;

const SMALLEST_PAGE_BYTES = 2 ** TARGET_PAGE_BITS.smallest;

/** What the setup record lists. */
export interface ListedRam extends Omit<RamSetup, 'targetPageSize'> {
  /** Undefined while it is to be found out. */
  readonly targetPageSize: number | undefined;
}

export class RamSetupReader {
  readonly #sectionId: number;
  #pageSize: number | undefined;
  /** The blocks carry addresses (capability `x-ignore-shared`). */
  readonly #withAddresses: boolean;
  /** Size of the mapped-ram file that this is; undefined for a stream with page records. */
  readonly #mappedFileBytes: number | undefined;
  readonly #blocks: ReadRamBlock[] = [];
  readonly #names = new Set<string>();
  #total: number | undefined;
  #left = 0;

  /** @param pageSize undefined if it has to be found */
  constructor(sectionId: number, pageSize: number | undefined, withAddresses: boolean, mappedFileBytes?: number) {
    this.#mappedFileBytes = mappedFileBytes;
    this.#sectionId = sectionId;
    this.#pageSize = pageSize;
    this.#withAddresses = withAddresses;
  }

  /** The setup, once all of its blocks are there; undefined while more bytes are needed. */
  read(cursor: Cursor): ListedRam | undefined {
    if (this.#total === undefined) {
      if (!cursor.has(8)) {
        return undefined;
      }
      this.#readTotal(cursor);
    }
    while (this.#left > 0) {
      if (!this.#readBlock(cursor)) {
        return undefined;
      }
    }
    return {
      sectionId: this.#sectionId,
      targetPageSize: this.#pageSize,
      totalBytes: this.#total!,
      blocks: this.#blocks,
    };
  }

  #readTotal(cursor: Cursor): void {
    const flags = cursor.peek(7);
    if (flags !== RecordFlag.MEM_SIZE) {
      throw cursor.invalid('RAM_SETUP', `RAM starts with flags ${hex(flags)} instead of its setup record`, 0, flags);
    }
    this.#total = be64(cursor.bytes, cursor.at) - flags;
    if (Number.isNaN(this.#total)) {
      throw cursor.tooLarge('The total size of RAM', 0);
    }
    this.#left = this.#total;
    cursor.at += 8;
  }

  #readBlock(cursor: Cursor): boolean {
    if (!cursor.has(1)) {
      return false;
    }
    const nameLength = cursor.peek();
    const mappedAhead = 9 + nameLength + (this.#withAddresses ? 8 : 0);
    const headBytes = mappedAhead + (this.#mappedFileBytes === undefined ? 0 : MAPPED_RAM_HEADER_BYTES);
    if (!cursor.has(headBytes)) {
      return false;
    }
    const name = cursor.name(1, nameLength, 'name of a RAM block');
    if (nameLength === 0 || this.#names.has(name)) {
      const statement = nameLength === 0 ? 'A RAM block has no name' : `RAM block "${name}" is listed twice`;
      throw cursor.invalid('RAM_BLOCK_NAME', statement, 0, name);
    }
    const lengthAhead = 1 + nameLength;
    const usedLength = be64(cursor.bytes, cursor.at + lengthAhead);
    if (Number.isNaN(usedLength)) {
      throw cursor.tooLarge(`The length of RAM block "${name}"`, lengthAhead);
    }
    if (this.#mappedFileBytes !== undefined) {
      this.#pageSize ??= mappedPageSize(cursor, mappedAhead);
    }
    // QEMU's loop would take a block of length 0 anywhere but at the end, and no QEMU has one.
    const pageSize = this.#pageSize ?? SMALLEST_PAGE_BYTES;
    if (usedLength === 0 || usedLength % pageSize !== 0) {
      const statement = `RAM block "${name}" has ${usedLength} bytes, which are not whole pages of ${pageSize}`;
      throw cursor.invalid('RAM_BLOCK_LENGTH', statement, lengthAhead, usedLength);
    }
    if (usedLength > this.#left) {
      const statement = `RAM block "${name}" has ${usedLength} bytes, but the total leaves only ${this.#left}`;
      throw cursor.invalid('RAM_TOTAL', statement, lengthAhead, usedLength);
    }
    const address = this.#withAddresses ? be64(cursor.bytes, cursor.at + lengthAhead + 8) : undefined;
    if (Number.isNaN(address)) {
      throw cursor.tooLarge(`The address of RAM block "${name}"`, lengthAhead + 8);
    }
    if (this.#blocks.length === BLOCK_LIMIT) {
      throw cursor.invalid('RAM_BLOCK_COUNT', `The stream lists more than ${BLOCK_LIMIT} RAM blocks`, 0, BLOCK_LIMIT);
    }
    const lengthOffset = cursor.position + lengthAhead;
    const mapped =
      this.#mappedFileBytes === undefined
        ? undefined
        : readLayout(cursor, mappedAhead, {
            name,
            usedLength,
            pageSize,
            fileBytes: this.#mappedFileBytes,
            mayBeIgnored: this.#withAddresses,
          });
    this.#blocks.push({
      index: this.#blocks.length,
      name,
      usedLength,
      address,
      lengthOffset,
      ...(mapped && { mapped }),
    });
    this.#names.add(name);
    this.#left -= usedLength;
    cursor.jump(mapped?.end ?? cursor.position + headBytes);
    return true;
  }
}
