// The kernel's own table of its symbols, which VMCOREINFO tells the place of since Linux 6.0. Names are strings of tokens:
//
//   kallsyms_names         for each symbol a length, then as many bytes, each the number of a token
//   kallsyms_token_index   where in the token table the token with that number begins
//   kallsyms_token_table   tokens, each up to its NUL; the first character of a name is the symbol's type
//   kallsyms_offsets       for each symbol its address, relative to kallsyms_relative_base

import { latin1 } from '../bytes.js';
import type { KernelMemory } from './kernel-memory.js';

/** Debian's kernels have 150,000 symbols. */
const SYMBOL_LIMIT = 2 ** 22;
const TOKENS = 256;
const TOKEN_TABLE_LIMIT = 64 * 1024;
/** Bytes of names read at once; a name has 2 + 16,383 at the most. */
const WINDOW_BYTES = 256 * 1024;
const MOST_NAME_BYTES = 2 + 0x3fff;
/** Bytes of all names; Debian's kernels have 3 MB. Page tables can map one page a million times. */
const NAMES_LIMIT_BYTES = 64 * 2 ** 20;

/** Tables, by the names that both the kernel and VMCOREINFO have for them. */
const PARTS = ['names', 'num_syms', 'token_table', 'token_index', 'offsets', 'relative_base'] as const;
type Part = (typeof PARTS)[number];

/** Addresses of symbols by name; those that the kernel does not have are missing. Empty if the kernel's table cannot be used. */
export const findSymbols = (kernel: KernelMemory, names: ReadonlySet<string>): Map<string, bigint> => {
  const places = PARTS.map((part) => [part, kernel.info.symbol(`kallsyms_${part}`)] as const);
  if (places.some(([, address]) => address === undefined)) {
    return new Map();
  }
  const at = Object.fromEntries(places) as Record<Part, bigint>;
  const count = kernel.tryUint32(at.num_syms) ?? 0;
  const base = kernel.tryWord(at.relative_base);
  const tokens = readTokens(kernel, at.token_table, at.token_index);
  if (count > SYMBOL_LIMIT || base === undefined || tokens === undefined) {
    return new Map();
  }
  // A symbol that VMCOREINFO has shows how offsets are meant.
  const known = kernel.info.symbol('init_uts_ns') === undefined ? '_stext' : 'init_uts_ns';
  const indexes = symbolIndexes(kernel, { address: at.names, count, tokens, wanted: new Set([...names, known]) });
  const knownIndex = indexes.get(known);
  const offsetAt = (index: number): number | undefined => kernel.tryUint32(at.offsets + BigInt(4 * index));
  const knownOffset = knownIndex === undefined ? undefined : offsetAt(knownIndex);
  const rule =
    knownOffset === undefined
      ? undefined
      : addressRules.find((each) => each(base, knownOffset) === kernel.info.symbol(known));
  if (rule === undefined) {
    return new Map();
  }
  const found = new Map<string, bigint>();
  for (const [name, index] of indexes) {
    const offset = offsetAt(index);
    if (names.has(name) && offset !== undefined) {
      found.set(name, rule(base, offset));
    }
  }
  return found;
};

/** How an offset becomes an address: relative to the base, or so for negative ones only (CONFIG_KALLSYMS_ABSOLUTE_PERCPU). */
const addressRules: readonly ((base: bigint, offset: number) => bigint)[] = [
  (base, offset) => BigInt.asUintN(64, base + BigInt(offset)),
  (base, offset) => (offset >= 2 ** 31 ? BigInt.asUintN(64, base - 1n - BigInt(offset - 2 ** 32)) : BigInt(offset)),
];

const readTokens = (kernel: KernelMemory, table: bigint, indexAddress: bigint): string[] | undefined => {
  const index = kernel.tryView(indexAddress, TOKENS * 2);
  if (index === undefined) {
    return undefined;
  }
  const last = index.getUint16((TOKENS - 1) * 2, true);
  const bytes = new Uint8Array(Math.min(last + 256, TOKEN_TABLE_LIMIT));
  if (!kernel.tryRead(table, bytes)) {
    return undefined;
  }
  return Array.from({ length: TOKENS }, (_, token) => {
    const start = index.getUint16(token * 2, true);
    const end = bytes.indexOf(0, start);
    // The longest tokens of real kernels have some 20 characters.
    return latin1(bytes, start, Math.min(end === -1 ? bytes.length : end, start + 128));
  });
};

interface Names {
  readonly address: bigint;
  readonly count: number;
  readonly tokens: readonly string[];
  readonly wanted: ReadonlySet<string>;
}

/** The numbers of the wanted symbols. */
const symbolIndexes = (kernel: KernelMemory, { address, count, tokens, wanted }: Names): Map<string, number> => {
  const found = new Map<string, number>();
  const longest = Math.max(...[...wanted].map((name) => name.length)) + 1;
  const window = new Uint8Array(WINDOW_BYTES);
  let start = 0;
  let at = WINDOW_BYTES;
  for (let index = 0; index < count && found.size < wanted.size; index += 1) {
    if (at + MOST_NAME_BYTES > WINDOW_BYTES) {
      start += index === 0 ? 0 : at;
      at = 0;
      if (start > NAMES_LIMIT_BYTES || !kernel.tryRead(address + BigInt(start), window)) {
        return found;
      }
    }
    let length = window[at]!;
    at += 1;
    if (length >= 0x80) {
      // From 6.1 on a name may be longer: the length is in two bytes, the lower 7 bits first.
      length = (length & 0x7f) | (window[at]! << 7);
      at += 1;
    }
    let name = '';
    for (let token = 0; token < length && name.length <= longest; token += 1) {
      name += tokens[window[at + token]!]!;
    }
    at += length;
    const symbol = name.slice(1);
    if (wanted.has(symbol) && !found.has(symbol)) {
      found.set(symbol, index);
    }
  }
  return found;
};
