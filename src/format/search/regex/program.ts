// An expression as a program of small steps, for the automaton; forwards, or backwards to find where a match began.

import { type ByteSet, type RegexNode, regexError, setOf } from './parse.js';

export const Step = {
  /** Takes a byte of the set `x`, and goes on with `y`. */
  bytes: 0,
  /** Goes on with `x`, or, less gladly, with `y`. */
  split: 1,
  /** Goes on with `y` where there is (`x` is 1) or is not (0) a border of a word. */
  border: 2,
  match: 3,
} as const;

/** Most steps. Time and memory grow with them. */
const MOST_STEPS = 5000;

export class RegexProgram {
  readonly sets: ByteSet[] = [];
  readonly ops: number[] = [];
  readonly x: number[] = [];
  readonly y: number[] = [];
  readonly start: number;
  readonly hasBorders: boolean;

  /**
   * @param isSearch begins anywhere, or only at the place where it is started
   * @throws RamferryError `usage`, `INVALID_REGEX`, if the expression is too large
   */
  constructor(node: RegexNode, { isSearch, isReverse }: { readonly isSearch: boolean; readonly isReverse: boolean }) {
    const match = this.#add(Step.match, 0, 0);
    const body = this.#compile(node, match, isReverse);
    this.hasBorders = this.ops.includes(Step.border);
    if (!isSearch) {
      this.start = body;
      return;
    }
    this.start = this.#add(Step.split, body, 0);
    this.y[this.start] = this.#add(Step.bytes, this.#set(setOf(() => true)), this.start);
  }

  #add(op: number, x: number, y: number): number {
    if (this.ops.length >= MOST_STEPS) {
      throw regexError(
        `The expression has more than ${MOST_STEPS} steps, repeats counted as often as they repeat.`,
        '',
      );
    }
    this.ops.push(op);
    this.x.push(x);
    this.y.push(y);
    return this.ops.length - 1;
  }

  #set(set: ByteSet): number {
    const index = this.sets.findIndex((each) => each.every((isIn, byte) => isIn === set[byte]));
    return index >= 0 ? index : this.sets.push(set) - 1;
  }

  /** Adds the steps of a node in front of `next`; returns the first of them. */
  #compile(node: RegexNode, next: number, isReverse: boolean): number {
    switch (node.kind) {
      case 'bytes':
        return this.#add(Step.bytes, this.#set(node.set), next);
      case 'border':
        return this.#add(Step.border, node.isBorder ? 1 : 0, next);
      case 'sequence': {
        const parts = isReverse ? node.parts : node.parts.toReversed();
        return parts.reduce((after, part) => this.#compile(part, after, isReverse), next);
      }
      case 'choice':
        return node.parts
          .map((part) => this.#compile(part, next, isReverse))
          .reduceRight((other, part) => this.#add(Step.split, part, other));
      case 'repeat':
        return this.#repeat(node, next, isReverse);
    }
  }

  #repeat({ part, least, most, lazy }: RegexNode & { kind: 'repeat' }, next: number, isReverse: boolean): number {
    let after = next;
    if (most === Number.POSITIVE_INFINITY) {
      const loop = this.#add(Step.split, 0, 0);
      this.#turn(loop, this.#compile(part, loop, isReverse), next, lazy);
      after = loop;
    } else {
      for (let count = least; count < most; count += 1) {
        const split = this.#add(Step.split, 0, 0);
        this.#turn(split, this.#compile(part, after, isReverse), next, lazy);
        after = split;
      }
    }
    for (let count = 0; count < least; count += 1) {
      const before = this.ops.length;
      after = this.#compile(part, after, isReverse);
      if (this.ops.length === before) {
        break; // Nothing, however often: groups of it in each other would be compiled a million times.
      }
    }
    return after;
  }

  #turn(split: number, again: number, next: number, lazy: boolean): void {
    this.x[split] = lazy ? next : again;
    this.y[split] = lazy ? again : next;
  }
}

/** Fewest and most bytes of a match. */
export const lengthsOf = (node: RegexNode): { readonly least: number; readonly most: number } => {
  switch (node.kind) {
    case 'bytes':
      return { least: 1, most: 1 };
    case 'border':
      return { least: 0, most: 0 };
    case 'sequence':
      return node.parts
        .map(lengthsOf)
        .reduce((a, b) => ({ least: a.least + b.least, most: a.most + b.most }), { least: 0, most: 0 });
    case 'choice':
      return node.parts
        .map(lengthsOf)
        .reduce((a, b) => ({ least: Math.min(a.least, b.least), most: Math.max(a.most, b.most) }));
    case 'repeat': {
      const { least, most } = lengthsOf(node.part);
      return { least: least * node.least, most: most === 0 || node.most === 0 ? 0 : most * node.most };
    }
  }
};

/** Bytes that every match has in a row, each a masked byte; and how many bytes of the match may be before them. */
export interface RequiredBytes {
  readonly values: Uint8Array;
  readonly masks: Uint8Array;
  readonly before: number;
}

/** The longest such row that is easily seen; undefined if there is none. */
export const requiredBytes = (node: RegexNode): RequiredBytes | undefined => {
  const parts: RegexNode[] = [];
  flatten(node, parts);
  let best: RequiredBytes | undefined;
  let before = 0;
  let row: { readonly value: number; readonly mask: number }[] = [];
  let rowBefore = 0;
  const finish = (): void => {
    if (row.length > (best?.values.length ?? 0)) {
      const values = Uint8Array.from(row, ({ value }) => value);
      best = { values, masks: Uint8Array.from(row, ({ mask }) => mask), before: rowBefore };
    }
    row = [];
  };
  for (const part of parts) {
    const byte = part.kind === 'bytes' ? maskedByte(part.set) : undefined;
    if (byte === undefined) {
      if (part.kind !== 'border') {
        finish();
      }
    } else {
      rowBefore = row.length === 0 ? before : rowBefore;
      row.push(byte);
    }
    before += lengthsOf(part).most;
  }
  finish();
  return best;
};

/** What follows each other in every match, sequences within sequences and repeats that come at least once included. */
const flatten = (node: RegexNode, parts: RegexNode[]): void => {
  if (node.kind === 'sequence') {
    for (const part of node.parts) {
      flatten(part, parts);
    }
  } else if (node.kind === 'repeat' && node.least > 0 && node.least <= 64) {
    for (let count = 0; count < node.least; count += 1) {
      const before = parts.length;
      flatten(node.part, parts);
      if (parts.length === before) {
        break;
      }
    }
    if (node.most > node.least) {
      parts.push({ ...node, least: 0, most: node.most - node.least });
    }
  } else {
    parts.push(node);
  }
};

/** A set of one byte, or of two that differ in one bit. */
const maskedByte = (set: ByteSet): { readonly value: number; readonly mask: number } | undefined => {
  const bytes = [...set.keys()].filter((byte) => set[byte] === 1);
  const [first, second] = bytes;
  if (first === undefined || bytes.length > 2) {
    return undefined;
  }
  const difference = second === undefined ? 0 : first ^ second;
  return (difference & (difference - 1)) !== 0 ? undefined : { value: first & ~difference, mask: 0xff & ~difference };
};
