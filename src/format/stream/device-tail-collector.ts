// Collects device state while it arrives, and notices by itself where the stream ends. There is no length in front of
// it and, on a socket with a return path, the source neither closes nor says more until it is answered; so the VM
// description that ends the stream is recognised as it comes in (spec/qemu-wire-format.md 1.9.3, option 2):
//
//   sections ... | 00 | 06 | be32(n) | { " ...n bytes... |
//                 EOF   VMDESCRIPTION
//
// Work is linear in the bytes, whatever they are: the text holds no control character, so of all places that look like
// the start of a description at most one is alive at a time.

import { RamferryError } from '../../memory/errors.js';
import { ByteWriter } from '../byte-writer.js';
import { be32, isPrintable, latin1 } from '../bytes.js';
import { invalid } from '../invalid.js';
import { ElementType } from './constants.js';
import { type SectionWalk, walkSections } from './device-sections.js';
import { DESCRIPTION_LIMIT_BYTES, parseDescription, type VmDescription } from './vm-description.js';

/** Most device state accepted. A QEMU guest has some 20 KB, one with several virtio-gpu tens of MiB. */
export const DEVICE_TAIL_LIMIT_BYTES = 256 * 1024 * 1024;

/** EOF, type, length of the description. */
const DESCRIPTION_HEAD_BYTES = 6;

/**
 * How the text of a description starts. The letter tells it from the case that the last bytes of the footer and the
 * first of the length pass for EOF and description (id 6, length 0x7b22).
 */
const KEY_START = /^\{"[a-z]$/;

/** What follows EOF. */
export type DescriptionState =
  | 'present'
  /** `06 00000000`: allowed, and written by some tools. */
  | 'empty'
  /** Nothing: the machine suppresses it, or the stream is cut right there. */
  | 'absent'
  /** The stream ends inside it. */
  | 'cut'
  /** It is not what QEMU writes. QEMU's loader would not know: it looks at none. */
  | 'damaged';

export interface CollectedTail extends SectionWalk {
  readonly sections: Uint8Array;
  /** The text; empty if there is none that can be read. */
  readonly description: string;
  readonly descriptionState: DescriptionState;
  /** What is wrong with a damaged one. */
  readonly descriptionDamage: RamferryError | undefined;
  readonly described: VmDescription | undefined;
}

/** The text behind EOF, as far as it is there and can be read. */
interface ReadDescription {
  readonly text: string;
  readonly state: DescriptionState;
  readonly described?: VmDescription;
  readonly damage?: RamferryError;
}

export class DeviceTailCollector {
  readonly #offset: number;
  readonly #limit: number;
  readonly #hasFooters: boolean;
  readonly #collected = new ByteWriter(64 * 1024);
  /** Where the next description may start: nothing before it does. */
  #scanned = 0;
  /** Start of the description that the bytes so far agree with; -1 without one. */
  #candidate = -1;
  /** How far the candidate's text was looked at. */
  #checked = 0;
  #end = -1;

  /** @param offset stream offset of the first byte that will be appended: the first device section, or EOF. */
  constructor(offset: number, limit = DEVICE_TAIL_LIMIT_BYTES, hasFooters = true) {
    this.#offset = offset;
    this.#limit = limit;
    this.#hasFooters = hasFooters;
  }

  /** Whether the end of the stream was recognised. */
  get complete(): boolean {
    return this.#end >= 0;
  }

  /** Bytes held. */
  get length(): number {
    return this.#collected.length;
  }

  /** Takes bytes; returns how many of them belong to the stream: all, unless it became complete. */
  append(bytes: Uint8Array, start: number, end: number): number {
    const before = this.#collected.length;
    this.#collected.bytes(bytes, start, Math.min(end, start + this.#limit - before));
    this.#end = this.#findEnd(this.#collected.view);
    if (this.complete) {
      this.#collected.truncate(this.#end);
    } else if (this.#collected.length >= this.#limit) {
      const statement = `The device state is longer than ${this.#limit} bytes`;
      const hint = 'Raise the limit if the guest really has that much.';
      throw invalid('DEVICE_STATE_TOO_LARGE', statement, this.#offset, { value: this.#limit, hint });
    }
    return this.#collected.length - before;
  }

  /** Cuts what was collected into sections. Called when it is complete, or when the peer ended. */
  finish(): CollectedTail {
    const bytes = this.#collected.view;
    if (this.complete) {
      const start = Math.max(this.#candidate, 0);
      return this.#cut(bytes, start);
    }
    // The peer ended without a description that could be recognised: look for EOF by the footers alone.
    const walk = walkSections(bytes, this.#offset, { hasFooters: this.#hasFooters });
    return this.#cut(bytes, walk.end, walk);
  }

  /** Index behind the last byte of the stream, -1 while unknown. */
  #findEnd(bytes: Uint8Array): number {
    if (bytes[0] === ElementType.EOF) {
      return this.#endAfterKnownEof(bytes);
    }
    for (;;) {
      if (this.#candidate < 0 && !this.#nextCandidate(bytes)) {
        return -1;
      }
      const end = this.#candidate + DESCRIPTION_HEAD_BYTES + be32(bytes, this.#candidate + 2);
      const until = Math.min(end, bytes.length);
      while (this.#checked < until && bytes[this.#checked] >= 0x20 && bytes[this.#checked] <= 0x7e) {
        this.#checked += 1;
      }
      if (this.#checked === until) {
        return until === end ? end : -1;
      }
      this.#scanned = this.#candidate + 1;
      this.#candidate = -1;
    }
  }

  /** Finds `00 06 be32(n) {"` and the first letter of a key; false if more bytes are needed. */
  #nextCandidate(bytes: Uint8Array): boolean {
    for (;;) {
      // By its second byte: device state is full of the first one, zero.
      const type = bytes.indexOf(ElementType.VMDESCRIPTION, this.#scanned + 1);
      if (type < 0) {
        this.#scanned = Math.max(this.#scanned, bytes.length - 1);
        return false;
      }
      const at = type - 1;
      this.#scanned = at;
      if (at + DESCRIPTION_HEAD_BYTES + 3 > bytes.length) {
        return false;
      }
      const length = be32(bytes, at + 2);
      if (
        bytes[at] === ElementType.EOF &&
        length <= DESCRIPTION_LIMIT_BYTES &&
        KEY_START.test(latin1(bytes, at + 6, at + 9))
      ) {
        this.#candidate = at;
        this.#checked = at + DESCRIPTION_HEAD_BYTES;
        return true;
      }
      this.#scanned = at + 1;
    }
  }

  /** Without any device section EOF is the first byte, and what follows it needs no recognising. */
  #endAfterKnownEof(bytes: Uint8Array): number {
    if (bytes.length < 2) {
      return -1;
    }
    if (bytes[1] !== ElementType.VMDESCRIPTION) {
      return 1;
    }
    if (bytes.length < DESCRIPTION_HEAD_BYTES) {
      return -1;
    }
    const length = be32(bytes, 2);
    if (length > DESCRIPTION_LIMIT_BYTES) {
      throw invalid('DESCRIPTION_TOO_LARGE', `The VM description is ${length} bytes long`, this.#offset + 2, {
        value: length,
      });
    }
    return bytes.length < DESCRIPTION_HEAD_BYTES + length ? -1 : DESCRIPTION_HEAD_BYTES + length;
  }

  /** The description behind EOF at `eof`. A damaged one costs what it says, not the guest that is in front of it. */
  #description(bytes: Uint8Array, eof: number): ReadDescription {
    const start = eof + DESCRIPTION_HEAD_BYTES;
    if (bytes.length === eof + 1) {
      return { text: '', state: 'absent' };
    }
    if (start > bytes.length || start + be32(bytes, eof + 2) > bytes.length) {
      return { text: '', state: 'cut' };
    }
    const end = start + be32(bytes, eof + 2);
    if (end === start) {
      return { text: '', state: 'empty' };
    }
    try {
      if (!isPrintable(bytes, start, end)) {
        const statement = 'The VM description holds characters that JSON text does not';
        throw invalid('DESCRIPTION_NOT_JSON', statement, this.#offset + start);
      }
      const text = latin1(bytes, start, end);
      return { text, state: 'present', described: parseDescription(text, this.#offset + start) };
    } catch (error) {
      if (error instanceof RamferryError) {
        return { text: '', state: 'damaged', damage: error };
      }
      throw error;
    }
  }

  #cut(bytes: Uint8Array, eof: number, walked?: SectionWalk): CollectedTail {
    const { text, state, described, damage } = this.#description(bytes, eof);
    const walk =
      described === undefined && walked !== undefined
        ? walked
        : walkSections(bytes.subarray(0, eof + 1), this.#offset, {
            description: described?.devices,
            knownEnd: eof,
            hasFooters: this.#hasFooters,
          });
    return {
      ...walk,
      sections: bytes.slice(0, eof),
      description: text,
      descriptionState: state,
      descriptionDamage: damage,
      described,
    };
  }
}
