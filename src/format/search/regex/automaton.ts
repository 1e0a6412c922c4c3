// A program run on bytes in time that grows with their number only: a state is the list of steps that are possible at a byte, the
// most wanted first, and is made when it is first met. States that were met are a table; there are never more than fit into it.
//
// Whether a match ends in front of a byte is known when the byte is: it says whether there is a border of a word. So a state knows
// whether a match ended one byte ago.

import { isWordByte } from './parse.js';
import { type RegexProgram, Step } from './program.js';

const MOST_STATES = 4096;

/** In place of a byte, behind the last one. */
const END = 256;

const UNKNOWN = -1;

interface State {
  /** First steps, not yet followed to where they need a byte. */
  readonly steps: readonly number[];
  readonly isAfterWord: boolean;
  /** Whether a match ended in front of the byte that led here. */
  readonly isMatch: boolean;
}

export class Automaton {
  readonly #program: RegexProgram;
  /** Bytes that no step tells apart are one class. */
  readonly #classes = new Uint8Array(END);
  readonly #representatives: readonly number[];
  /** Leftmost-first: what is less wanted than a match is dropped. Otherwise all are followed, for the longest. */
  readonly #isFirst: boolean;
  readonly #width: number;
  #states: State[] = [];
  readonly #numbers = new Map<string, number>();
  /** For each state and class: the next state's row; a row of a state to look at as -2 - row. */
  readonly #table: Int32Array;
  #visited: Int32Array;
  #visit = 0;

  constructor(program: RegexProgram, isFirst: boolean) {
    this.#program = program;
    this.#isFirst = isFirst;
    const signatures = new Map<string, number>();
    const representatives: number[] = [];
    for (let byte = 0; byte < END; byte += 1) {
      const flags = program.sets.map((set) => set[byte]).join('');
      const signature = program.hasBorders ? `${flags} ${isWordByte(byte)}` : flags;
      let number = signatures.get(signature);
      if (number === undefined) {
        number = representatives.push(byte) - 1;
        signatures.set(signature, number);
      }
      this.#classes[byte] = number;
    }
    this.#width = representatives.push(END);
    this.#representatives = representatives;
    this.#table = new Int32Array(MOST_STATES * this.#width);
    this.#visited = new Int32Array(program.ops.length).fill(-1);
  }

  /**
   * Runs from byte `from` up to `end`.
   * @param lookahead how far it goes on behind the first end of a match that it sees
   * @returns where the wanted match ends, -1 if there is none; and how many bytes were looked at
   */
  forward(
    bytes: Uint8Array,
    from: number,
    end: number,
    lookahead: number,
  ): { readonly end: number; readonly looked: number } {
    const isAfterWord = this.#program.hasBorders && from > 0 && isWordByte(bytes[from - 1]!);
    let row = this.#start(isAfterWord);
    let matchEnd = -1;
    let limit = end;
    let at = from;
    const classes = this.#classes;
    const table = this.#table;
    while (at < limit) {
      let next = table[row + classes[bytes[at]!]!]!;
      if (next < 0) {
        next = next === UNKNOWN ? this.#next(row, classes[bytes[at]!]!) : next;
        if (next < 0) {
          next = -2 - next;
          const { isMatch, steps } = this.#states[next / this.#width]!;
          if (isMatch) {
            if (matchEnd < 0) {
              limit = Math.min(end, at + lookahead);
            }
            matchEnd = at;
          }
          if (steps.length === 0) {
            return { end: matchEnd, looked: at - from + 1 };
          }
        }
      }
      row = next;
      at += 1;
    }
    return { end: this.#endsAt(row, bytes, at, at < end) ? at : matchEnd, looked: at - from };
  }

  /** Runs backwards from in front of byte `end` down to `from`; returns where the longest match begins, -1 if there is none. */
  backward(bytes: Uint8Array, end: number, from: number, hasNext: boolean): number {
    let row = this.#start(this.#program.hasBorders && hasNext && isWordByte(bytes[end]!));
    let start = -1;
    for (let at = end - 1; at >= from; at -= 1) {
      let next = this.#table[row + this.#classes[bytes[at]!]!]!;
      if (next < 0) {
        next = next === UNKNOWN ? this.#next(row, this.#classes[bytes[at]!]!) : next;
        if (next < 0) {
          next = -2 - next;
          const { isMatch, steps } = this.#states[next / this.#width]!;
          start = isMatch ? at + 1 : start;
          if (steps.length === 0) {
            return start;
          }
        }
      }
      row = next;
    }
    return this.#endsAt(row, bytes, from - 1, from > 0) ? from : start;
  }

  /** Whether a match ends in front of byte `at`, or of nothing. */
  #endsAt(row: number, bytes: Uint8Array, at: number, isByte: boolean): boolean {
    const next = this.#next(row, isByte ? this.#classes[bytes[at]!]! : this.#width - 1);
    return this.#states[(next < 0 ? -2 - next : next) / this.#width]!.isMatch;
  }

  #start(isAfterWord: boolean): number {
    return this.#rowOf({ steps: [this.#program.start], isAfterWord, isMatch: false });
  }

  #rowOf(state: State): number {
    const key = `${state.isAfterWord ? 1 : 0}${state.isMatch ? 1 : 0} ${state.steps.join()}`;
    let number = this.#numbers.get(key);
    if (number === undefined) {
      if (this.#states.length === MOST_STATES) {
        this.#states = [];
        this.#numbers.clear();
      }
      number = this.#states.push(state) - 1;
      this.#numbers.set(key, number);
      this.#table.fill(UNKNOWN, number * this.#width, (number + 1) * this.#width);
    }
    return number * this.#width;
  }

  /** Makes the transition, and returns it as it is in the table. */
  #next(row: number, byteClass: number): number {
    const states = this.#states;
    const from = states[row / this.#width]!;
    const state = this.#follow(from, this.#representatives[byteClass]!);
    const next = this.#rowOf(state);
    const entry = state.isMatch || state.steps.length === 0 ? -2 - next : next;
    if (this.#states === states) {
      this.#table[row + byteClass] = entry;
    }
    return entry;
  }

  #follow({ steps, isAfterWord }: State, byte: number): State {
    const { sets, ops, x, y, hasBorders } = this.#program;
    const isWord = byte !== END && isWordByte(byte);
    const nextSteps: number[] = [];
    const visited = this.#visited;
    this.#visit += 1;
    const visit = this.#visit;
    const taken = new Set<number>();
    let isMatch = false;
    const stack = steps.toReversed();
    while (stack.length > 0) {
      const step = stack.pop()!;
      if (visited[step] === visit) {
        continue;
      }
      visited[step] = visit;
      const op = ops[step]!;
      if (op === Step.split) {
        stack.push(y[step]!, x[step]!);
      } else if (op === Step.border) {
        if ((isAfterWord !== isWord) === (x[step] === 1)) {
          stack.push(y[step]!);
        }
      } else if (op === Step.match) {
        isMatch = true;
        if (this.#isFirst) {
          break;
        }
      } else if (byte !== END && sets[x[step]!]![byte] === 1 && !taken.has(y[step]!)) {
        taken.add(y[step]!);
        nextSteps.push(y[step]!);
      }
    }
    return { steps: nextSteps, isAfterWord: hasBorders && isWord, isMatch };
  }
}
