// The log of Linux before 5.10. From 3.5 on a buffer of records, each with a header; one of length 0 says that the next one is at the
// beginning. Before that a ring of plain text, whose lines begin with `<6>` where they have a level.

import { hex } from '../invalid.js';
import type { KernelMemory } from './kernel-memory.js';
import { LOG_LIMIT, type LogRecord, levelOf, logDamaged, logText, MOST_RECORDS } from './log-record.js';

/** Flags of a record in the lowest 5 bits: the text ends a line; the text continues that of the record before. */
const NEWLINE = 1 << 1;
const CONTINUES = 1 << 3;

/** Name of the structure of a record, which was `log` in Linux 3.5 to 3.10. */
const recordName = ({ info }: KernelMemory): 'printk_log' | 'log' | undefined =>
  (['printk_log', 'log'] as const).find(
    (name) => info.size(name) !== undefined && info.offset(`${name}.len`) !== undefined,
  );

/** Whether it is a buffer of records, as opposed to one of text. */
export const hasLogRecords = (kernel: KernelMemory): boolean => recordName(kernel) !== undefined;

interface LogBuffer {
  readonly bytes: Uint8Array;
  variable(name: string): number;
}

const readBuffer = (kernel: KernelMemory): LogBuffer => {
  const variable = (name: string): number => {
    const symbol = kernel.info.symbol(name);
    const value = symbol === undefined ? undefined : kernel.tryUint32(symbol);
    if (value === undefined) {
      throw logDamaged(`${name} is not known`);
    }
    return value;
  };
  const symbol = kernel.info.symbol('log_buf');
  const address = symbol === undefined ? undefined : kernel.tryWord(symbol);
  const length = variable('log_buf_len');
  if (address === undefined || length < 16 || length > LOG_LIMIT) {
    throw logDamaged(`its buffer would have ${length} bytes`);
  }
  const bytes = new Uint8Array(length);
  if (!kernel.tryRead(address, bytes)) {
    throw logDamaged(`its buffer at ${hex(address)} is not in the file`);
  }
  return { bytes, variable };
};

/** Where members of a record's header are; checked to be in the header. */
const headerOf = (
  kernel: KernelMemory,
): { bytes: number; time: number; length: number; textLength: number; flags: number } => {
  const name = recordName(kernel)!;
  const { info } = kernel;
  const bytes = info.size(name)!;
  const [time, length, textLength, dictionaryLength] = ['ts_nsec', 'len', 'text_len', 'dict_len'].map(
    (member) => info.offset(`${name}.${member}`) ?? Number.POSITIVE_INFINITY,
  ) as [number, number, number, number];
  const header = { bytes, time, length, textLength, flags: dictionaryLength + 2 };
  if (bytes > 256 || time + 8 > bytes || Math.max(length, textLength, header.flags) + 2 > bytes) {
    throw logDamaged(`VMCOREINFO does not say what a ${name} is`);
  }
  return header;
};

/** A record as it is in the buffer. */
interface Piece {
  readonly record: LogRecord;
  readonly endsLine: boolean;
  readonly continues: boolean;
}

function* pieces(kernel: KernelMemory): Generator<Piece, void, undefined> {
  const header = headerOf(kernel);
  const { bytes, variable } = readBuffer(kernel);
  const view = new DataView(bytes.buffer);
  const end = variable('log_next_idx');
  let at = variable('log_first_idx');
  let isAgain = false;
  while (at !== end) {
    if (at + header.bytes > bytes.length) {
      throw logDamaged(`a record would begin at byte ${at} of ${bytes.length}`);
    }
    const length = view.getUint16(at + header.length, true);
    const textLength = view.getUint16(at + header.textLength, true);
    if (length === 0 && !isAgain) {
      isAgain = true;
      at = 0;
      continue;
    }
    if (length < header.bytes + textLength || at + length > bytes.length) {
      throw logDamaged(`the record at byte ${at} would have ${length} bytes`);
    }
    const flags = view.getUint8(at + header.flags + 1);
    yield {
      record: {
        timeNs: view.getBigUint64(at + header.time, true),
        level: levelOf(flags),
        facility: view.getUint8(at + header.flags),
        text: logText(bytes.subarray(at + header.bytes, at + header.bytes + textLength)),
      },
      endsLine: (flags & NEWLINE) !== 0,
      continues: (flags & CONTINUES) !== 0,
    };
    at += length;
  }
}

/** Longest line that is put together out of pieces. */
const LINE_LIMIT = 64 * 1024;

/**
 * The records of Linux 3.5 to 5.9 from the oldest to the newest; what continues a line is part of it.
 * @throws RamferryError `failed`, `KERNEL_LOG`, if the buffer is damaged or not in the file
 */
export function* bufferRecords(kernel: KernelMemory): Generator<LogRecord, void, undefined> {
  let line: Piece | undefined;
  let damage: unknown;
  try {
    for (const piece of pieces(kernel)) {
      if (line !== undefined && !line.endsLine && piece.continues && line.record.text.length < LINE_LIMIT) {
        const text = line.record.text + piece.record.text;
        line = { ...line, record: { ...line.record, text }, endsLine: piece.endsLine };
        continue;
      }
      if (line !== undefined) {
        yield line.record;
      }
      line = piece;
    }
  } catch (error) {
    damage = error;
  }
  if (line !== undefined) {
    yield line.record;
  }
  if (damage !== undefined) {
    throw damage;
  }
}

/**
 * The lines of a log before Linux 3.5 from the oldest to the newest.
 * @throws RamferryError `failed`, `KERNEL_LOG`, if the buffer is damaged or not in the file
 */
export function* textRecords(kernel: KernelMemory): Generator<LogRecord, void, undefined> {
  const { bytes, variable } = readBuffer(kernel);
  // `log_end` counts all characters that were ever written, `logged_chars` those that are still there.
  const end = variable('log_end') % bytes.length;
  const count = Math.min(variable('logged_chars'), bytes.length);
  const start = (end - count + bytes.length) % bytes.length;
  const inOrder = new Uint8Array(count);
  const before = bytes.subarray(start, Math.min(start + count, bytes.length));
  inOrder.set(before);
  inOrder.set(bytes.subarray(0, count - before.length), before.length);
  for (const line of logText(inOrder)
    .replace(/\n$/, '')
    .split('\n', MOST_RECORDS + 1)) {
    const [prefix, level] = /^<(\d{1,3})>/.exec(line) ?? [''];
    yield {
      timeNs: undefined,
      level: level === undefined ? undefined : Number(level) & 7,
      facility: level === undefined ? undefined : Number(level) >>> 3,
      text: line.slice(prefix!.length),
    };
  }
}
