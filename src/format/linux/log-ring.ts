// The log of Linux 5.10 and later: a ring of descriptors, an array of what is known about each record, and a ring of texts.
//
//   desc_ring   id of the oldest and of the newest record; a descriptor for each, at its id modulo their number
//   descriptor  id and state in one word; begin and end of its text, counted from the first byte that was ever written
//   infos       time, length, level, at the same index as the descriptor
//   text ring   each text follows the id of its record; one that does not fit before the end is at the beginning

import { hex } from '../invalid.js';
import { type KernelMemory, wordAt } from './kernel-memory.js';
import { LOG_LIMIT, type LogRecord, levelOf, logDamaged, logText } from './log-record.js';

/** Records of which nothing but their descriptors are needed; more than the largest log buffer has. */
const MOST_COUNT_BITS = 22;
/** A descriptor has 24 bytes, what is known about a record 88. */
const MOST_STRUCTURE_BYTES = 256;
/** Descriptors read at once. */
const BATCH = 1024;

/** Begin and end of the text of a record for which the ring had no room. */
const FAILED = 1n;

/** States of a descriptor in which its text is complete. */
const COMMITTED = 1n;
const FINALIZED = 2n;

/** Reads members of structures by the names that VMCOREINFO has for them. */
class Structure {
  readonly #kernel: KernelMemory;
  readonly #address: bigint;
  readonly #name: string;

  constructor(kernel: KernelMemory, address: bigint, name: string) {
    this.#kernel = kernel;
    this.#address = address;
    this.#name = name;
  }

  address(member: string): bigint {
    return this.#address + BigInt(offsetOf(this.#kernel, `${this.#name}.${member}`));
  }

  word(member: string): bigint {
    return known(
      this.#kernel.tryWord(this.address(member)),
      `${this.#name} at ${hex(this.#address)} is not in the file`,
    );
  }

  uint32(member: string): number {
    return known(
      this.#kernel.tryUint32(this.address(member)),
      `${this.#name} at ${hex(this.#address)} is not in the file`,
    );
  }
}

const known = <Value>(value: Value | undefined, otherwise: string): Value => {
  if (value === undefined) {
    throw logDamaged(otherwise);
  }
  return value;
};

const offsetOf = ({ info }: KernelMemory, member: string): number =>
  known(info.offset(member), `VMCOREINFO does not say where ${member} is`);

const sizeOf = ({ info }: KernelMemory, name: string): number => {
  const size = known(info.size(name), `VMCOREINFO does not say how large ${name} is`);
  if (size > MOST_STRUCTURE_BYTES) {
    throw logDamaged(`VMCOREINFO says that ${name} has ${size} bytes`);
  }
  return size;
};

/** Ids of `head` and `tail` and the number of descriptors, checked. */
const ringIds = (ring: Structure, wordBits: number): { first: bigint; count: number; countBits: number } => {
  const countBits = ring.uint32('count_bits');
  if (countBits < 1 || countBits > MOST_COUNT_BITS) {
    throw logDamaged(`it would have 2^${countBits} records`);
  }
  const first = ring.word('tail_id');
  const count = BigInt.asUintN(wordBits - 2, ring.word('head_id') - first) + 1n;
  if (count > 1n << BigInt(countBits)) {
    throw logDamaged(`${count} records are in use of 2^${countBits}`);
  }
  return { first, count: Number(count), countBits };
};

/** An array that is read a batch at a time, in the order of its elements, from the beginning again behind the end. */
class ArrayBatches {
  readonly #kernel: KernelMemory;
  readonly #address: bigint;
  readonly #itemBytes: number;
  readonly #count: number;
  readonly #what: string;
  #first = 0;
  #view: DataView = new DataView(new ArrayBuffer(0));

  constructor(kernel: KernelMemory, address: bigint, itemBytes: number, count: number, what: string) {
    this.#kernel = kernel;
    this.#address = address;
    this.#itemBytes = itemBytes;
    this.#count = count;
    this.#what = what;
  }

  /** The view that has the element, and where in it that begins. */
  at(index: number): { view: DataView; start: number } {
    const start = (index - this.#first) * this.#itemBytes;
    if (start >= 0 && start < this.#view.byteLength) {
      return { view: this.#view, start };
    }
    const items = Math.min(BATCH, this.#count - index);
    const address = this.#address + BigInt(index * this.#itemBytes);
    this.#view = known(
      this.#kernel.tryView(address, items * this.#itemBytes),
      `${this.#what} at ${hex(address)} are not in the file`,
    );
    this.#first = index;
    return { view: this.#view, start: 0 };
  }
}

/** Where a text is in the ring; undefined for a record without one. */
const textRange = (
  begin: bigint,
  end: bigint,
  ring: { readonly sizeBits: number; readonly wordBytes: 4 | 8 },
): { at: number; bytes: number } | undefined => {
  // Odd positions stand for a record that has no text, or whose text did not fit.
  if ((begin & 1n) === 1n || (end & 1n) === 1n) {
    return undefined;
  }
  const size = 2 ** ring.sizeBits;
  const bits = BigInt(ring.sizeBits);
  const [from, to] = [begin, end].map((position) => Number(BigInt.asUintN(ring.sizeBits, position))) as [
    number,
    number,
  ];
  const laps = (end >> bits) - (begin >> bits);
  if (laps === 0n ? to < from : laps !== 1n) {
    return undefined;
  }
  const isWhole = laps === 0n || to === 0;
  const start = isWhole ? from : 0;
  const bytes = (isWhole && laps === 1n ? size : to) - start - ring.wordBytes;
  return bytes < 0 ? undefined : { at: start + ring.wordBytes, bytes };
};

/**
 * The records from the oldest to the newest. Those that were being written are left out, as `dmesg` does it.
 * @throws RamferryError `failed`, `KERNEL_LOG`, if the buffer is damaged or not in the file
 */
export function* ringRecords(kernel: KernelMemory): Generator<LogRecord, void, undefined> {
  const { info } = kernel;
  const { wordBytes } = info;
  const pointer = known(info.symbol('prb'), 'VMCOREINFO does not say where it is');
  const address = known(kernel.tryWord(pointer), `memory at ${hex(pointer)} is not in the file`);
  const whole = new Structure(kernel, address, 'printk_ringbuffer');
  const descriptorRing = new Structure(kernel, whole.address('desc_ring'), 'prb_desc_ring');
  const textRing = new Structure(kernel, whole.address('text_data_ring'), 'prb_data_ring');

  const { first, count, countBits } = ringIds(descriptorRing, wordBytes * 8);
  const sizeBits = textRing.uint32('size_bits');
  if (sizeBits < 1 || 2 ** sizeBits > LOG_LIMIT) {
    throw logDamaged(`its text would have 2^${sizeBits} bytes`);
  }
  const textAddress = textRing.word('data');
  const text = new Uint8Array(2 ** sizeBits);
  if (!kernel.tryRead(textAddress, text)) {
    throw logDamaged(`its text at ${hex(textAddress)} is not in the file`);
  }
  const slots = 2 ** countBits;
  const descriptors = new ArrayBatches(
    kernel,
    descriptorRing.word('descs'),
    sizeOf(kernel, 'prb_desc'),
    slots,
    'its descriptors',
  );
  const infos = new ArrayBatches(
    kernel,
    descriptorRing.word('infos'),
    sizeOf(kernel, 'printk_info'),
    slots,
    'its records',
  );
  const members = memberOffsets(kernel);

  const idBits = wordBytes * 8 - 2;
  let textBytes = 0;
  for (let number = 0; number < count; number += 1) {
    const id = BigInt.asUintN(idBits, first + BigInt(number));
    const index = Number(BigInt.asUintN(countBits, id));
    const { view, start } = descriptors.at(index);
    const stateVar = wordAt(view, start + members.stateVar, wordBytes);
    const state = stateVar >> BigInt(idBits);
    if ((state !== COMMITTED && state !== FINALIZED) || BigInt.asUintN(idBits, stateVar) !== id) {
      continue;
    }
    const begin = wordAt(view, start + members.begin, wordBytes);
    const end = wordAt(view, start + members.next, wordBytes);
    if (begin === FAILED) {
      continue;
    }
    const record = infos.at(index);
    const range = textRange(begin, end, { sizeBits, wordBytes });
    const bytes = Math.min(range?.bytes ?? 0, record.view.getUint16(record.start + members.textLength, true));
    // Texts do not overlap: together they are never longer than the ring.
    textBytes += bytes;
    if (textBytes > text.length) {
      throw logDamaged('its texts overlap');
    }
    yield {
      timeNs: record.view.getBigUint64(record.start + members.time, true),
      facility: record.view.getUint8(record.start + members.textLength + 2),
      level: levelOf(record.view.getUint8(record.start + members.textLength + 3)),
      text: range === undefined ? '' : logText(text.subarray(range.at, range.at + bytes)),
    };
  }
}

/** Where members are in a descriptor and in an info; they fit into their structures. */
const memberOffsets = (
  kernel: KernelMemory,
): { stateVar: number; begin: number; next: number; time: number; textLength: number } => {
  const { wordBytes } = kernel.info;
  const position = offsetOf(kernel, 'prb_desc.text_blk_lpos');
  const offsets = {
    stateVar: offsetOf(kernel, 'prb_desc.state_var') + offsetOf(kernel, 'atomic_long_t.counter'),
    begin: position + offsetOf(kernel, 'prb_data_blk_lpos.begin'),
    next: position + offsetOf(kernel, 'prb_data_blk_lpos.next'),
    time: offsetOf(kernel, 'printk_info.ts_nsec'),
    textLength: offsetOf(kernel, 'printk_info.text_len'),
  };
  const descriptorEnd = Math.max(offsets.stateVar, offsets.begin, offsets.next) + wordBytes;
  const infoEnd = Math.max(offsets.time + 8, offsets.textLength + 4);
  if (descriptorEnd > sizeOf(kernel, 'prb_desc') || infoEnd > sizeOf(kernel, 'printk_info')) {
    throw logDamaged('VMCOREINFO places members outside of their structures');
  }
  return offsets;
};
