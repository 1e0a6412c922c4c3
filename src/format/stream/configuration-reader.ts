// Reads the configuration element (spec/qemu-wire-format.md 1.2). It has no length and no end mark: it ends at the first
// byte that does not introduce a subsection.

import { be32 } from '../bytes.js';
import { hex } from '../invalid.js';
import { ConfigurationSubsection, type StreamConfiguration, uuidText } from './configuration.js';
import { Capability, ElementType, TARGET_PAGE_BITS } from './constants.js';
import type { Cursor } from './cursor.js';

/** Longest machine type name accepted; QEMU's longest has 30 characters, and its own loader allocates any length. */
const MACHINE_NAME_LIMIT = 255;

/** Most capabilities accepted; QEMU has 25 and writes at most two. */
const CAPABILITY_LIMIT = 64;

/** What stands behind the header of a stream without configuration. */
const startsElement = (type: number): boolean =>
  type === ElementType.SECTION_START || type === ElementType.SECTION_FULL || type === ElementType.COMMAND;

export class ConfigurationReader {
  readonly warnings: string[] = [];
  #machine: string | undefined;
  #targetPageBits: number | undefined;
  #capabilities: string[] | undefined;
  #capabilitiesLeft = 0;
  #uuid: string | undefined;

  /** The configuration, once it is there; undefined while more bytes are needed. */
  read(cursor: Cursor): StreamConfiguration | undefined {
    if (this.#machine === undefined && cursor.has(1) && startsElement(cursor.peek())) {
      this.warnings.push(
        'The stream has no configuration, as with machine types up to 2.3: it does not name its machine.',
      );
      return { machine: '', isMissing: true, targetPageBits: undefined, capabilities: [], uuid: undefined };
    }
    if (this.#machine === undefined && !this.#readMachine(cursor)) {
      return undefined;
    }
    for (;;) {
      const more = this.#capabilitiesLeft > 0 ? this.#readCapability(cursor) : this.#readSubsection(cursor);
      if (more === 'end') {
        return {
          machine: this.#machine!,
          targetPageBits: this.#targetPageBits,
          capabilities: this.#capabilities ?? [],
          uuid: this.#uuid,
        };
      }
      if (!more) {
        return undefined;
      }
    }
  }

  #readMachine(cursor: Cursor): boolean {
    if (cursor.has(1) && cursor.peek() !== ElementType.CONFIGURATION) {
      const found = cursor.peek();
      const statement = `The stream has element ${hex(found)} instead of a configuration`;
      throw cursor.invalid('NO_CONFIGURATION', statement, 0, found);
    }
    if (!cursor.has(5)) {
      return false;
    }
    const length = be32(cursor.bytes, cursor.at + 1);
    if (length > MACHINE_NAME_LIMIT) {
      throw cursor.invalid('MACHINE_NAME_LENGTH', `The machine type name has ${length} bytes`, 1, length);
    }
    if (!cursor.has(5 + length)) {
      return false;
    }
    this.#machine = cursor.name(5, length, 'machine type name');
    cursor.at += 5 + length;
    return true;
  }

  /** One subsection: of the capabilities only their count. */
  #readSubsection(cursor: Cursor): boolean | 'end' {
    if (!cursor.has(1)) {
      return false;
    }
    if (cursor.peek() !== ElementType.SUBSECTION) {
      return 'end';
    }
    if (!cursor.has(2) || !cursor.has(6 + cursor.peek(1))) {
      return false;
    }
    const nameLength = cursor.peek(1);
    const name = cursor.name(2, nameLength, 'subsection name');
    const version = be32(cursor.bytes, cursor.at + 2 + nameLength);
    const head = 6 + nameLength;
    const refuse = (what: string): Error =>
      cursor.invalid('CONFIGURATION_SUBSECTION', `The configuration's subsection "${name}" ${what}`, 0, name);
    if (version !== 1) {
      throw refuse(`has version ${version}`);
    }
    const once = (value: unknown): void => {
      if (value !== undefined) {
        throw refuse('appears twice');
      }
    };
    const body = cursor.at + head;
    switch (name) {
      case ConfigurationSubsection.TARGET_PAGE_BITS: {
        once(this.#targetPageBits);
        if (!cursor.has(head + 4)) {
          return false;
        }
        const bits = be32(cursor.bytes, body);
        if (bits < TARGET_PAGE_BITS.smallest || bits > TARGET_PAGE_BITS.largest) {
          throw cursor.invalid('TARGET_PAGE_BITS', `The target page size is 2^${bits} bytes`, head, bits);
        }
        this.#targetPageBits = bits;
        cursor.at += head + 4;
        return true;
      }
      case ConfigurationSubsection.UUID:
        once(this.#uuid);
        if (!cursor.has(head + 16)) {
          return false;
        }
        this.#uuid = uuidText(cursor.bytes.subarray(body, body + 16));
        cursor.at += head + 16;
        return true;
      case ConfigurationSubsection.CAPABILITIES: {
        once(this.#capabilities);
        if (!cursor.has(head + 4)) {
          return false;
        }
        const count = be32(cursor.bytes, body);
        if (count > CAPABILITY_LIMIT) {
          throw cursor.invalid('CAPABILITY_COUNT', `The configuration lists ${count} capabilities`, head, count);
        }
        this.#capabilities = [];
        this.#capabilitiesLeft = count;
        cursor.at += head + 4;
        return true;
      }
      default:
        throw refuse('is unknown');
    }
  }

  #readCapability(cursor: Cursor): boolean {
    if (!cursor.has(1) || !cursor.has(1 + cursor.peek())) {
      return false;
    }
    const length = cursor.peek();
    const name = cursor.name(1, length, 'capability');
    if (name !== Capability.IGNORE_SHARED && name !== Capability.MAPPED_RAM) {
      this.warnings.push(`The stream names capability "${name}", which QEMU does not write there.`);
    }
    this.#capabilities!.push(name);
    this.#capabilitiesLeft -= 1;
    cursor.at += 1 + length;
    return true;
  }
}
