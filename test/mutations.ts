// Damaged input by the thousand: what a reader has to survive. 300 mutations in a usual run, 100,000 with RAMFERRY_SLOW=1.

import assert from 'node:assert/strict';
import { RamferryError } from '../src/memory/errors.js';
import { startCpuTimer } from './cpu-time.js';
import { randomChoices } from './random.js';

/** Whole numbers below a limit. */
export type Below = (limit: number) => number;

/** How many mutations a suite tries. */
export const MUTATIONS = process.env['RAMFERRY_SLOW'] === '1' ? 100_000 : 300;

/** One mutation is small: what costs more than this does not end with the input. */
const MOST_MS = 1500;

/** What all of them together may leave behind; garbage that was not collected yet is in it. */
const MOST_KEPT_BYTES = 400 * 2 ** 20;

const extremeBytes = [0, 1, 2, 4, 0x20, 0x7e, 0x7f, 0x80, 0xfe, 0xff];

/** Lengths, counts and offsets that are wrong in a way of their own; each fits the width that it is written in. */
const extremeNumbers = (bits: number): bigint[] => {
  const most = (1n << BigInt(bits)) - 1n;
  return [0n, 1n, most, most - 1n, most >> 1n, (most >> 1n) + 1n, 1n << BigInt(bits / 2), 4095n, 4096n].map((value) =>
    BigInt.asUintN(bits, value),
  );
};

const putNumber = (bytes: Uint8Array, at: number, below: Below): void => {
  const width = [2, 4, 8][below(3)]!;
  if (at + width > bytes.length) {
    return;
  }
  const numbers = extremeNumbers(8 * width);
  let value = numbers[below(numbers.length)]!;
  const isBigEndian = below(2) === 0;
  for (let index = 0; index < width; index += 1) {
    bytes[at + (isBigEndian ? width - 1 - index : index)] = Number(value & 0xffn);
    value >>= 8n;
  }
};

const joined = (before: Uint8Array, behind: Uint8Array): Uint8Array<ArrayBuffer> => {
  const bytes = new Uint8Array(before.length + behind.length);
  bytes.set(before);
  bytes.set(behind, before.length);
  return bytes;
};

/**
 * A copy of `original` with up to four things wrong: bits, bytes, numbers, pieces that are gone, there twice, or elsewhere.
 * @param places where half of them are: what is interesting is often a small part of the whole
 */
export const mutated = (
  original: Uint8Array,
  below: Below,
  places: readonly (readonly [from: number, end: number])[] = [],
): Uint8Array => {
  let bytes = Uint8Array.from(original);
  for (let count = 1 + below(4); count > 0; count -= 1) {
    const [from, end] = places.length > 0 && below(2) === 0 ? places[below(places.length)]! : [0, bytes.length];
    const at = Math.max(0, Math.min(from + below(Math.max(1, end - from)), bytes.length - 1));
    const length = 1 + below(8);
    switch (below(7)) {
      case 0:
        bytes[at] ^= 1 << below(8);
        break;
      case 1:
        bytes[at] = extremeBytes[below(extremeBytes.length)]!;
        break;
      case 2:
      case 3:
        putNumber(bytes, at, below);
        break;
      case 4:
        bytes = joined(bytes.subarray(0, at), bytes.subarray(Math.min(at + length, bytes.length)));
        break;
      case 5:
        bytes = joined(bytes.subarray(0, at + length), bytes.subarray(at));
        break;
      default:
        bytes.copyWithin(at, below(bytes.length), bytes.length - below(bytes.length));
    }
    if (bytes.length === 0) {
      return bytes;
    }
  }
  return bytes;
};

/**
 * The same for what is too large to be copied each time: some bytes of `bytes` are others while `read` runs.
 * @param places where they are
 */
export const withMutations = async (
  bytes: Uint8Array,
  below: Below,
  places: readonly (readonly [from: number, end: number])[],
  read: () => Promise<unknown>,
): Promise<void> => {
  const undo: { readonly at: number; readonly old: Uint8Array }[] = [];
  for (let count = 1 + below(6); count > 0; count -= 1) {
    const [from, end] = places[below(places.length)]!;
    const at = from + below(end - from);
    const piece = bytes.subarray(at, Math.min(at + 16, end));
    undo.unshift({ at, old: piece.slice() });
    switch (below(5)) {
      case 0:
        piece[0] ^= 1 << below(8);
        break;
      case 1:
        piece[0] = extremeBytes[below(extremeBytes.length)]!;
        break;
      case 2:
        piece[0] = 0x30 + below(10);
        break;
      case 3:
        piece.set(bytes.subarray(from + below(end - from), end).subarray(0, piece.length));
        break;
      default:
        putNumber(piece, 0, below);
    }
  }
  try {
    await read();
  } finally {
    for (const { at, old } of undo) {
      bytes.set(old, at);
    }
  }
};

/** JSON text with one value in place of another, of a kind that was not expected. */
export const mutatedJson = (text: string, below: Below): string => {
  const pieces = [
    ...['0', '1', '-1', '255', '1e308', '9007199254740991', '0.5', 'null', 'true', '[]', '{}', '""', '[[[[]]]]'],
    ...['"struct"', '"uint64"', '"uint8"', '"int64"', '"buffer"', '"bool"', '"timer"', '"nullptr"', '"tmp"'],
    ...['{"toString": 1}', '{"__proto__": null}', '"__proto__"', '"constructor"', '{"length": 4294967295}', ''],
  ];
  let changed = text;
  for (let count = 1 + below(2); count > 0; count -= 1) {
    // A word with the bracket or the blank in front of it, or a number: keys too, so that fields go missing.
    const values = [...changed.matchAll(/"[^"]*"|-?\d+/g)];
    const chosen = values[below(values.length)];
    if (chosen === undefined) {
      return changed;
    }
    const end = chosen.index + chosen[0].length;
    changed = changed.slice(0, chosen.index) + pieces[below(pieces.length)]! + changed.slice(end);
  }
  return changed;
};

export interface MutationsOptions {
  readonly seed: number;
  /** Codes that must come up: a suite whose mutations never get to the reader proves nothing. */
  readonly codes: readonly string[];
  /** Runs, if a single one takes long. */
  readonly runs?: number;
  /** Whether some mutations must be read without complaint; default yes. */
  readonly somePass?: boolean;
  /** Kinds of errors that are a refusal; default `invalid`, `failed` and `usage`. */
  readonly kinds?: readonly string[];
}

/**
 * Makes mutations and tries them. Each must be read or refused by a RamferryError, in bounded time, and nothing may be
 * kept of it.
 * @param attempt makes one mutation with the given choices, and reads it
 */
export const survives = async (
  attempt: (below: Below, run: number) => unknown,
  { seed, codes, runs = MUTATIONS, somePass = true, kinds = ['invalid', 'failed', 'usage'] }: MutationsOptions,
): Promise<void> => {
  const below = randomChoices(seed);
  const seen = new Map<string, number>();
  let passed = 0;
  const before = process.memoryUsage().rss;
  for (let run = 0; run < runs; run += 1) {
    const cpuMs = startCpuTimer();
    try {
      await attempt(below, run);
      passed += 1;
    } catch (error) {
      assert.ok(error instanceof RamferryError, `run ${run}: ${error instanceof Error ? error.stack : error}`);
      assert.ok(kinds.includes(error.kind), `run ${run}: ${error.kind}, ${error.message}`);
      assert.match(error.message, /^[A-Z"/].*\.$/s, `run ${run}`);
      assert.ok(error.message.length < 2000, `run ${run}: a message of ${error.message.length} characters`);
      seen.set(error.code, (seen.get(error.code) ?? 0) + 1);
    }
    const ms = cpuMs();
    assert.ok(ms < MOST_MS, `run ${run} took ${ms} ms`);
  }
  const kept = process.memoryUsage().rss - before;
  assert.ok(kept < MOST_KEPT_BYTES, `${kept} bytes more than before`);
  assert.ok(!somePass || passed > 0, `none of ${runs} was read`);
  const found = JSON.stringify(Object.fromEntries(seen));
  for (const code of codes) {
    assert.ok(seen.has(code), `no ${code} among ${found}, and ${passed} of ${runs} were read`);
  }
};
