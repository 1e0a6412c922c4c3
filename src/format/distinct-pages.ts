// How many different pages there are, in bounded memory: a hash table of digests that, once it is full, goes on with a
// sample of them.
//
//   digest ── word 0 ─▶ slot      word 3 ─▶ kept while its lowest `shift` bits are 0
//
//   shift 0: all of them, exact         shift 1: half of them, counts twice       shift 2: a quarter …
//
// A digest is kept or not whenever its page comes, so what is left is a fair sample of the *different* pages, however
// often each comes (what the literature calls adaptive sampling).

import { DIGEST_WORDS } from './page-content.js';

const FIRST_SLOTS = 2 ** 12;

/** 28 bytes a slot: 118 MB, and twice that for a moment while it is thinned out. */
const MOST_SLOTS = 2 ** 22;

/** A table this full has few collisions. */
const FULLEST = 0.75;

/** A content that several pages have. */
export interface RepeatedPage {
  /** Number of the first page that has it, as given to `add`. */
  readonly first: number;
  readonly copies: number;
}

/** Counts different pages, by group and in all. */
export class DistinctPages {
  /** Different pages that are in the table, by the group of the first page that had each. */
  readonly #ofGroup: Float64Array;
  readonly #mostSlots: number;
  #slots = FIRST_SLOTS;
  #used = 0;
  #shift = 0;
  #digests = new Int32Array(DIGEST_WORDS * FIRST_SLOTS);
  /** 0 for a slot that is free. */
  #copies = new Uint32Array(FIRST_SLOTS);
  #first = new Float64Array(FIRST_SLOTS);
  readonly #groupOf: (page: number) => number;

  /**
   * @param groups number of groups
   * @param groupOf group of a page number
   * @param mostSlots bounds the memory; a power of two
   */
  constructor(groups: number, groupOf: (page: number) => number, mostSlots = MOST_SLOTS) {
    this.#ofGroup = new Float64Array(groups);
    this.#groupOf = groupOf;
    this.#mostSlots = mostSlots;
  }

  /** Whether the counts are exact, as far as digests tell pages apart; otherwise they are estimates. */
  get isExact(): boolean {
    return this.#shift === 0;
  }

  /** Different pages, each counted in the group in which it came first. */
  distinct(group: number): number {
    return this.#ofGroup[group] * 2 ** this.#shift;
  }

  /** @param page its number: ascending, so that the first of several is the one that came first */
  add(digest: Int32Array, page: number): void {
    if (!this.#isSampled(digest[3])) {
      return;
    }
    const slot = this.#slotOf(digest, 0);
    if (this.#copies[slot] === 0) {
      this.#put(slot, digest, 0, 1, page);
      this.#ofGroup[this.#groupOf(page)] += 1;
      if (this.#used > FULLEST * this.#slots) {
        this.#rebuild();
      }
    } else if (this.#copies[slot] < 0xffff_ffff) {
      this.#copies[slot] += 1;
    }
  }

  /** The contents that most pages have, at most `count`, in descending order; none unless counts are exact. */
  mostRepeated(count: number): RepeatedPage[] {
    const most: RepeatedPage[] = [];
    if (!this.isExact) {
      return most;
    }
    for (let slot = 0; slot < this.#slots; slot += 1) {
      const copies = this.#copies[slot];
      if (copies < 2 || (most.length === count && copies <= most[count - 1].copies)) {
        continue;
      }
      const place = most.findIndex((other) => other.copies < copies);
      most.splice(place === -1 ? most.length : place, 0, { first: this.#first[slot], copies });
      most.length = Math.min(most.length, count);
    }
    return most;
  }

  #isSampled(word: number): boolean {
    return (word & (2 ** this.#shift - 1)) === 0;
  }

  /** Where the digest is, or a free slot for it. */
  #slotOf(digests: Int32Array, at: number): number {
    const mask = this.#slots - 1;
    for (let slot = digests[at] & mask; ; slot = (slot + 1) & mask) {
      const own = slot * DIGEST_WORDS;
      if (
        this.#copies[slot] === 0 ||
        (this.#digests[own] === digests[at] &&
          this.#digests[own + 1] === digests[at + 1] &&
          this.#digests[own + 2] === digests[at + 2] &&
          this.#digests[own + 3] === digests[at + 3])
      ) {
        return slot;
      }
    }
  }

  #put(slot: number, digests: Int32Array, at: number, copies: number, first: number): void {
    for (let word = 0; word < DIGEST_WORDS; word += 1) {
      this.#digests[slot * DIGEST_WORDS + word] = digests[at + word];
    }
    this.#copies[slot] = copies;
    this.#first[slot] = first;
    this.#used += 1;
  }

  /** Makes the table larger, or drops half of it. */
  #rebuild(): void {
    const [slots, digests, copies, first] = [this.#slots, this.#digests, this.#copies, this.#first];
    if (slots < this.#mostSlots) {
      this.#slots = 2 * slots;
    } else {
      this.#shift += 1;
    }
    this.#used = 0;
    this.#digests = new Int32Array(DIGEST_WORDS * this.#slots);
    this.#copies = new Uint32Array(this.#slots);
    this.#first = new Float64Array(this.#slots);
    for (let slot = 0; slot < slots; slot += 1) {
      if (copies[slot] === 0) {
        continue;
      }
      const at = slot * DIGEST_WORDS;
      if (this.#isSampled(digests[at + 3])) {
        this.#put(this.#slotOf(digests, at), digests, at, copies[slot], first[slot]);
      } else {
        this.#ofGroup[this.#groupOf(first[slot])] -= 1;
      }
    }
  }
}
