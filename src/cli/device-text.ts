// What people read of a device's fields: one line for what fits one, names aligned, arrays and buffers only as long as
// somebody reads.

import type { DeviceFields } from '../format/stream/device-fields.js';
import { type DeviceField, FieldGroup } from '../format/stream/field-group.js';
import { formatCount } from './format.js';
import { hexdump, hexLine } from './hexdump.js';
import { plural } from './inspect-text.js';
import { styledLine } from './safe-text.js';
import type { Colors } from './terminal.js';

/** Bytes of a field that stand on the line of its name. */
const INLINE_BYTES = 16;

/** What is shown without `--full`: bytes of a buffer, lines of an array of numbers, elements of an array of structures. */
const SHOWN = { bytes: 256, lines: 8, elements: 16 } as const;

/** Integers beyond this are addresses, masks, identifiers: nobody reads them in decimal. */
const MOST_DECIMAL = 1_000_000n;

/** Longer names push their values out of line. */
const MOST_PADDING = 32;

/** A structure of so few numbers is one line. */
const INLINE_FIELDS = 4;

export interface DeviceTextOptions {
  readonly colors: Colors;
  /** Width to fill. */
  readonly columns: number;
  /** Show everything. */
  readonly full: boolean;
}

/** The fields of one section, indented by their depth. */
export const fieldsText = (device: DeviceFields, options: DeviceTextOptions): string => {
  const printer = new FieldPrinter(device, options);
  printer.group(device.fields, 1);
  return printer.lines.map((line) => `${line}\n`).join('');
};

/** The body of a section of which no more is known. */
export const bytesText = (body: Uint8Array, full: boolean): string =>
  shownBytes(body, full)
    .map((line) => `  ${line}\n`)
    .join('');

const shownBytes = (bytes: Uint8Array, full: boolean): string[] => {
  const shown = full ? bytes : bytes.subarray(0, SHOWN.bytes);
  const more = bytes.length - shown.length;
  return [...hexdump(shown), ...(more > 0 ? [`… ${plural(more, 'more byte')} (--full)`] : [])];
};

class FieldPrinter {
  readonly lines: string[] = [];
  readonly #body: Uint8Array;
  readonly #options: DeviceTextOptions;

  constructor({ body }: DeviceFields, options: DeviceTextOptions) {
    this.#body = body;
    this.#options = options;
  }

  /** As deep as the decoder lets structures nest. */
  group({ fields, subsections }: FieldGroup, depth: number): void {
    const { colors } = this.#options;
    let width = 0;
    for (const name of fields.keys()) {
      width = Math.max(width, Math.min(name.length, MOST_PADDING));
    }
    for (const [name, same] of fields) {
      this.#fields(name, same, width, depth);
    }
    for (const [name, { version, group }] of subsections) {
      this.#line(depth, `${colors.cyan(name)} (subsection, version ${version})`);
      this.group(group, depth + 1);
    }
  }

  #line(depth: number, text: string): void {
    // Names and types are the file's.
    this.lines.push(`${'  '.repeat(depth)}${styledLine(text)}`);
  }

  #fields(name: string, same: readonly DeviceField[], width: number, depth: number): void {
    const padded = this.#options.colors.bold(name) + ' '.repeat(Math.max(0, width - name.length));
    const [first] = same;
    if (same.length === 1) {
      this.#one(padded, first!, depth);
    } else if (same.every(({ type, value }) => typeof value === 'bigint' && type !== 'timer')) {
      this.#line(depth, `${padded}  ${formatCount(same.length)} x ${first!.type}`);
      if (same.length > INLINE_BYTES && areBytes(same)) {
        this.#dump(this.#body.subarray(first!.at, first!.at + same.length), depth + 1);
      } else {
        this.#numbers(same, depth + 1);
      }
    } else {
      this.#line(depth, `${padded}  ${plural(same.length, 'element')}`);
      const digits = String(same.length - 1).length;
      const shown = this.#options.full ? same : same.slice(0, SHOWN.elements);
      shown.forEach((field, index) => {
        this.#one(`[${String(index).padStart(digits)}]`, field, depth + 1);
      });
      this.#more(same.length - shown.length, 'more element', depth + 1);
    }
  }

  #one(label: string, { type, at, bytes, value }: DeviceField, depth: number): void {
    if (value instanceof FieldGroup) {
      const inline = inlineText(value);
      this.#line(depth, inline === undefined ? label : `${label}  ${inline}`);
      if (inline === undefined) {
        this.group(value, depth + 1);
      }
      return;
    }
    if (!(value instanceof Uint8Array)) {
      this.#line(depth, `${label}  ${scalarText({ type, at, bytes, value })}`);
      return;
    }
    const isUnused = type === 'unused_buffer' && value.every((byte) => byte === 0);
    if (isUnused || bytes <= INLINE_BYTES) {
      this.#line(depth, `${label}  ${isUnused ? `${plural(bytes, 'unused byte')}, zero` : hexLine(value)}`);
      return;
    }
    this.#line(depth, `${label}  ${type}, ${plural(bytes, 'byte')}`);
    this.#dump(this.#body.subarray(at, at + bytes), depth + 1);
  }

  #dump(bytes: Uint8Array, depth: number): void {
    for (const line of shownBytes(bytes, this.#options.full)) {
      this.#line(depth, line);
    }
  }

  /** Numbers side by side, each line with the index of its first; lines that repeat the one before are a star. */
  #numbers(same: readonly DeviceField[], depth: number): void {
    const digits = String(same.length - 1).length;
    const texts = same.map(hexText);
    const width = texts.reduce((most, text) => Math.max(most, text.length), 0) + 1;
    const room = this.#options.columns - 2 * depth - digits - 2;
    const perLine = Math.max(1, 2 ** Math.floor(Math.log2(Math.max(1, room / width))));
    let last: string | undefined;
    let lines = 0;
    for (let index = 0; index < same.length; index += perLine) {
      if (lines === SHOWN.lines && !this.#options.full) {
        this.#more(same.length - index, 'more', depth);
        return;
      }
      const text = texts
        .slice(index, index + perLine)
        .map((each) => each.padStart(width - 1))
        .join(' ');
      if (text !== last || index + perLine >= same.length) {
        this.#line(depth, `${String(index).padStart(digits)}: ${text}`);
        lines += 1;
      } else if (this.lines.at(-1)?.trim() !== '*') {
        this.#line(depth, '*');
      }
      last = text;
    }
  }

  #more(count: number, what: string, depth: number): void {
    if (count > 0) {
      this.#line(depth, `… ${what === 'more' ? `${formatCount(count)} more` : plural(count, what)} (--full)`);
    }
  }
}

/** Whether these fields are bytes one behind the other. */
const areBytes = (same: readonly DeviceField[]): boolean =>
  same.every(({ type, at }, index) => type === 'uint8' && at === same[0]!.at + index);

/** A small structure of nothing but numbers, on one line. */
const inlineText = ({ fields, subsections }: FieldGroup): string | undefined => {
  const members = [...fields];
  const isPlain = ([, same]: [string, readonly DeviceField[]]): boolean =>
    same.length === 1 && typeof same[0]!.value !== 'object' && same[0]!.type !== 'timer';
  return members.length > 0 && members.length <= INLINE_FIELDS && subsections.size === 0 && members.every(isPlain)
    ? members.map(([name, [field]]) => `${name} ${hexText(field!)}`).join('  ')
    : undefined;
};

/** An integer as all of its hexadecimal digits; everything else that fits one word. */
const hexText = ({ value, bytes }: DeviceField): string =>
  typeof value === 'bigint'
    ? `0x${BigInt.asUintN(bytes * 8, value)
        .toString(16)
        .padStart(bytes * 2, '0')}`
    : String(value);

const scalarText = (field: DeviceField): string => {
  const { type, value } = field;
  if (value === null) {
    return 'null pointer';
  }
  if (typeof value !== 'bigint') {
    return value === true ? 'yes' : 'no';
  }
  if (type === 'timer') {
    return value === -1n ? 'timer, not armed' : `timer, expires at ${value} ns`;
  }
  const isReadable = value < 0n ? value > -MOST_DECIMAL : value > 9n && value < MOST_DECIMAL;
  return isReadable ? `${hexText(field)}  ${value}` : hexText(field);
};
