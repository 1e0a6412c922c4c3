// Reads the bodies of RAM sections: page records up to EOS (spec/qemu-wire-format.md 2.2, 2.4, 2.5).

import { pageIndex } from '../../memory/units.js';
import { be16, be32, be64, be64Exact } from '../bytes.js';
import { hex } from '../invalid.js';
import { RecordFlag } from './constants.js';
import type { Cursor } from './cursor.js';
import type { RamSetup, ReadRamBlock, StreamHandler } from './stream-handler.js';

export class PageRecordReader {
  readonly #handler: StreamHandler;
  readonly #pageSize: number;
  readonly #blocks: ReadonlyMap<string, ReadRamBlock>;
  /** Block of the last page record; what CONTINUE continues, across sections too. */
  #block: ReadRamBlock | undefined;

  constructor(setup: RamSetup, handler: StreamHandler) {
    this.#handler = handler;
    this.#pageSize = setup.targetPageSize;
    this.#blocks = new Map(setup.blocks.map((block) => [block.name, block]));
  }

  /** The next page names its block (RC-11). */
  forgetBlock(): void {
    this.#block = undefined;
  }

  /** Hands pages to the handler; true once EOS is consumed, false while more bytes are needed. */
  read(cursor: Cursor): boolean {
    while (cursor.has(8)) {
      if (this.#block !== undefined && (cursor.peek(7) & RecordFlag.CONTINUE) !== 0) {
        const { bytes, at, limit, position } = cursor;
        cursor.at += this.#handler.records?.(this.#block, bytes, at, limit, position) ?? 0;
        if (!cursor.has(8)) {
          return false;
        }
      }
      const flags = be32(cursor.bytes, cursor.at + 4) % this.#pageSize;
      if (flags === RecordFlag.EOS) {
        cursor.at += 8;
        return true;
      }
      if (flags === RecordFlag.HOOK) {
        cursor.at += 8;
      } else if (!this.#readPage(cursor, flags)) {
        return false;
      }
    }
    return false;
  }

  #readPage(cursor: Cursor, flags: number): boolean {
    const continued = (flags & RecordFlag.CONTINUE) !== 0;
    const kind = flags & ~RecordFlag.CONTINUE;
    if (kind !== RecordFlag.ZERO && kind !== RecordFlag.PAGE && kind !== RecordFlag.XBZRLE) {
      throw badFlags(cursor, flags);
    }
    if (!continued && !(cursor.has(9) && cursor.has(9 + cursor.peek(8)))) {
      return false;
    }
    const head = continued ? 8 : 9 + cursor.peek(8);
    const block = continued ? this.#block : this.#named(cursor);
    if (block === undefined) {
      throw cursor.invalid('NO_CURRENT_BLOCK', 'A page continues a RAM block, but no page before it names one', 0);
    }
    const offset = be64(cursor.bytes, cursor.at) - flags;
    // Not `>=`: an offset that no number holds is NaN.
    if (!(offset < block.usedLength)) {
      const value = be64Exact(cursor.bytes, cursor.at) - BigInt(flags);
      const statement = `A page lies at ${hex(value)} of RAM block "${block.name}", which has ${hex(block.usedLength)} bytes`;
      throw cursor.invalid('PAGE_OUTSIDE_BLOCK', statement, 0, value);
    }
    const page = pageIndex(offset / this.#pageSize);
    const payload =
      kind === RecordFlag.ZERO
        ? 1
        : kind === RecordFlag.PAGE
          ? this.#pageSize
          : xbzrleBytes(cursor, head, this.#pageSize);
    if (!cursor.has(head + payload)) {
      return false;
    }
    const { bytes, at, position } = cursor;
    if (kind === RecordFlag.PAGE) {
      this.#handler.page(block, page, bytes, at + head, position + head);
    } else if (kind === RecordFlag.XBZRLE) {
      const data = head + XBZRLE_HEAD_BYTES;
      this.#handler.xbzrlePage(block, page, bytes, at + data, head + payload - data, position + data);
    } else if (cursor.peek(head) === 0) {
      this.#handler.zeroPage(block, page);
    } else {
      const fill = cursor.peek(head);
      const hint = 'QEMU writes only 0; up to 7.2 it would accept this.';
      throw cursor.invalid('ZERO_PAGE_FILL', `A page is filled with byte ${hex(fill)}`, head, fill, hint);
    }
    this.#block = block;
    cursor.at += head + payload;
    return true;
  }

  /** The block that the record at the cursor names. */
  #named(cursor: Cursor): ReadRamBlock {
    const name = cursor.name(9, cursor.peek(8), 'name of a RAM block');
    const block = this.#blocks.get(name);
    if (block === undefined) {
      throw cursor.invalid('UNKNOWN_RAM_BLOCK', `A page belongs to RAM block "${name}", which is not listed`, 8, name);
    }
    return block;
  }
}

/** Method and length. */
const XBZRLE_HEAD_BYTES = 3;

/** Payload bytes of an XBZRLE record, as far as they can be told: at least its head. */
const xbzrleBytes = (cursor: Cursor, head: number, pageSize: number): number => {
  if (!cursor.has(head + XBZRLE_HEAD_BYTES)) {
    return XBZRLE_HEAD_BYTES;
  }
  const method = cursor.peek(head);
  const length = be16(cursor.bytes, cursor.at + head + 1);
  if (method !== 1 || length > pageSize) {
    throw cursor.invalid('XBZRLE_HEADER', `An XBZRLE page has method ${method} and ${length} bytes`, head, length);
  }
  return XBZRLE_HEAD_BYTES + length;
};

const badFlags = (cursor: Cursor, flags: number): Error => {
  switch (flags & ~RecordFlag.CONTINUE) {
    case RecordFlag.COMPRESS_PAGE: {
      const hint = 'Migrate without the capability "compress".';
      return cursor.invalid('COMPRESSED_PAGE', 'A page is compressed, as QEMU could do until 9.0', 0, flags, hint);
    }
    case RecordFlag.MULTIFD_FLUSH: {
      const statement = 'The source sends its pages over multifd channels, not in this stream';
      return cursor.invalid('MULTIFD_STREAM', statement, 0, flags, 'Migrate without the capability "multifd".');
    }
    default:
      return cursor.invalid('RECORD_FLAGS', `A record has the flags ${hex(flags)}`, 0, flags);
  }
};
