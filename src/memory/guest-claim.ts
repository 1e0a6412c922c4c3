// One guest, one migration. Two engines of one guest would share its send bitmaps, its dirty log and its protection, and each
// would take out what the other needs. So whoever moves, saves or loads a guest claims it first, and only one can. The claim is
// a word in the shared memory of the guest's blocks, since the two may be in different threads, each with a copy of the list.
//
//     bit    30 … 6    5 … 3     2          1 … 0
//            serial    purpose   changing   held · broken · sealed        0 = nobody has it
//
//   claim      0 ─▶ held                 by whoever starts something; waits for a change of the list to end
//   change     0 ─▶ changing ─▶ 0        by the list's owner, for a plug and an unplug; refused while claimed
//   break      held ─▶ broken            by the list's owner, for a resize: what goes on has to fail (DM-23)
//   seal       held ─▶ sealed            by the claim's holder, once a resize would come too late; refused from then on
//   release    ─▶ 0                      by the holder, or from outside when the holder's thread is dead

import { RamferryError } from './errors.js';

/** What somebody claims a guest for. The number is in the word: 0 stands for nobody. */
export const ClaimPurpose = {
  migration: 1,
  backgroundSnapshot: 2,
  save: 3,
  incoming: 4,
} as const;
export type ClaimPurpose = keyof typeof ClaimPurpose;

const names: Readonly<Record<ClaimPurpose, string>> = {
  migration: 'a migration',
  backgroundSnapshot: 'a background snapshot',
  save: 'a save',
  incoming: 'an incoming migration',
};

/** Bits of bitmap memory for the record: a cache line. */
export const CLAIM_RECORD_BITS = 512;

/** The record's words. */
const Word = { claim: 0, version: 1, serial: 2, resizedBlock: 3 } as const;

const BROKEN = 1;
const SEALED = 2;
const CHANGING = 4;
const PURPOSE_SHIFT = 3;
const SERIAL_SHIFT = 6;
const SERIAL_MASK = 2 ** 25 - 1;
/** What two words of the same claim have in common. */
const IDENTITY = ~(BROKEN | SEALED | CHANGING);

/** How long a change of the list may take while somebody waits to claim it: large blocks are allocated in milliseconds. */
const CHANGE_TIMEOUT_MS = 10_000;

/** The claim word of a guest and the version of its block list, in shared memory. */
export class ClaimRecord {
  readonly #words: Int32Array;
  readonly #at: number;

  /** `address`: `CLAIM_RECORD_BITS` bits in the bitmap memory whose words these are. */
  constructor(words: Int32Array, address: number) {
    this.#words = words;
    this.#at = address >>> 2;
  }

  /** The version of the owner's list, in every thread. */
  get version(): number {
    return Atomics.load(this.#words, this.#at + Word.version);
  }

  /** Only for the owner of the list, while it changes the list. */
  set version(version: number) {
    Atomics.store(this.#words, this.#at + Word.version, version);
  }

  /** Of the claim that there is; 0 if there is none. */
  get token(): number {
    return this.#load() & IDENTITY;
  }

  /** What the guest is claimed for; undefined if it is not. */
  get purpose(): ClaimPurpose | undefined {
    return purposeOf(this.#load());
  }

  /**
   * Claims the guest for whoever knows the list in `version`.
   * @throws RamferryError `GUEST_BUSY` if somebody else has it, `BLOCK_LIST_STALE` if the list is another one by now
   */
  claim(purpose: ClaimPurpose, version: number): GuestClaim {
    const serial = Atomics.add(this.#words, this.#at + Word.serial, 1) & SERIAL_MASK;
    const token = (serial << SERIAL_SHIFT) | (ClaimPurpose[purpose] << PURPOSE_SHIFT);
    for (;;) {
      const seen = this.#load();
      if (seen === CHANGING) {
        this.#awaitChange();
      } else if (seen !== 0) {
        throw busy(`${capitalized(names[purpose])} of this guest cannot start`, seen);
      } else if (this.#replace(0, token)) {
        break;
      }
    }
    const claim = new GuestClaim(this, token);
    // After the claim: nothing changes the list any more.
    if (this.version !== version) {
      claim.release();
      throw staleList(version, this.version);
    }
    return claim;
  }

  /**
   * The claim that `token` stands for, in another thread.
   * @throws RamferryError `CLAIM_LOST` if it was released
   */
  adopt(token: number): GuestClaim {
    const claim = new GuestClaim(this, token);
    if (token === 0 || !claim.isHeld) {
      throw claimLost();
    }
    return claim;
  }

  /**
   * Keeps everybody from claiming the guest until `endChange`. Only for the owner of the list.
   * @throws RamferryError `GUEST_BUSY`, which says that `what` cannot be
   */
  beginChange(what: string): void {
    for (let seen = this.#load(); !this.#replace(0, CHANGING); seen = this.#load()) {
      if (seen !== 0) {
        throw busy(what, seen);
      }
    }
  }

  /** The same for a resize, which breaks the claim that there may be (DM-23). */
  beginResize(blockId: number, what: string): void {
    Atomics.store(this.#words, this.#at + Word.resizedBlock, blockId);
    for (let seen = this.#load(); ; seen = this.#load()) {
      refuseResize(seen, what);
      if (this.#replace(seen, seen === 0 ? CHANGING : seen | BROKEN | CHANGING)) {
        return;
      }
    }
  }

  /** @throws RamferryError `GUEST_BUSY` where a resize would be refused at this moment */
  checkResizable(what: string): void {
    refuseResize(this.#load(), what);
  }

  /** The list is whole again. */
  endChange(): void {
    Atomics.and(this.#words, this.#at + Word.claim, ~CHANGING);
    Atomics.notify(this.#words, this.#at + Word.claim);
  }

  /** The claim's state now; undefined if it was released. */
  stateOf(token: number): 'held' | 'broken' | 'sealed' | undefined {
    const seen = this.#load();
    if ((seen & IDENTITY) !== token) {
      return undefined;
    }
    return (seen & BROKEN) !== 0 ? 'broken' : (seen & SEALED) !== 0 ? 'sealed' : 'held';
  }

  /** `RamBlock.id` of the block whose resize broke the claim. */
  get resizedBlock(): number {
    return Atomics.load(this.#words, this.#at + Word.resizedBlock);
  }

  /** Makes a resize come too late. False if one has come, or the claim is gone. */
  seal(token: number): boolean {
    return this.#replace(token, token | SEALED) || this.stateOf(token) === 'sealed';
  }

  /** Gives the guest free if it is claimed by `token`. Returns whether it was. */
  release(token: number): boolean {
    for (;;) {
      const seen = this.#load();
      if (token === 0 || (seen & IDENTITY) !== token) {
        return false;
      }
      // A resize that broke the claim may still be under way.
      if (this.#replace(seen, seen & CHANGING)) {
        return true;
      }
    }
  }

  #load(): number {
    return Atomics.load(this.#words, this.#at + Word.claim);
  }

  #replace(seen: number, next: number): boolean {
    return Atomics.compareExchange(this.#words, this.#at + Word.claim, seen, next) === seen;
  }

  #awaitChange(): void {
    if (Atomics.wait(this.#words, this.#at + Word.claim, CHANGING, CHANGE_TIMEOUT_MS) === 'timed-out') {
      throw new RamferryError(
        'failed',
        'BLOCK_LIST_STUCK',
        `A change of the guest's list of RAM blocks did not end within ${CHANGE_TIMEOUT_MS} ms.`,
        { value: CHANGE_TIMEOUT_MS, hint: 'the thread that owns the list may have died in the middle of it' },
      );
    }
  }
}

/** A guest that somebody has for themselves until `release`. */
export class GuestClaim {
  /** Stands for the claim in other threads (`RamBlockList.adoptClaim`); structured-cloneable. */
  readonly token: number;
  readonly #record: ClaimRecord;

  constructor(record: ClaimRecord, token: number) {
    this.#record = record;
    this.token = token;
  }

  /** Whether it was not released, here or from outside. */
  get isHeld(): boolean {
    return this.#record.stateOf(this.token) !== undefined;
  }

  /**
   * To be called wherever the list may have changed since the last call.
   * @param blockName finds the name of a block by its id
   * @throws RamferryError `GEOMETRY_CHANGED` after a resize, `CLAIM_LOST` after a release from outside
   */
  check(blockName: (id: number) => string | undefined): void {
    const state = this.#record.stateOf(this.token);
    if (state === undefined) {
      throw claimLost();
    }
    if (state === 'broken') {
      const name = blockName(this.#record.resizedBlock);
      throw geometryChanged(name === undefined ? 'A RAM block was resized' : `RAM block ${name} was resized`, name);
    }
  }

  /** From here on resizes are refused: the guest stands still, and what of it is sent is final. Throws what `check` does. */
  seal(blockName: (id: number) => string | undefined): void {
    if (!this.#record.seal(this.token)) {
      this.check(blockName);
    }
  }

  /**
   * The guest is free again. Any thread may call it, as often as it likes: whoever finds the holder's thread dead does so after
   * undoing what that did to the guest.
   */
  release(): void {
    this.#record.release(this.token);
  }
}

/** What changed a guest's list of blocks under somebody who relies on it. `what`: the sentence so far. */
export const geometryChanged = (what: string, block: string | undefined): RamferryError =>
  new RamferryError('failed', 'GEOMETRY_CHANGED', `${what} during the migration.`, {
    ...(block !== undefined && { value: block }),
    hint: 'start the migration anew',
  });

const purposeOf = (word: number): ClaimPurpose | undefined => {
  const number = (word >>> PURPOSE_SHIFT) & 7;
  return (Object.keys(ClaimPurpose) as ClaimPurpose[]).find((purpose) => ClaimPurpose[purpose] === number);
};

/** A guest that is being loaded has the lengths that its source announced. */
const refuseResize = (word: number, what: string): void => {
  if ((word & (SEALED | CHANGING)) !== 0 || purposeOf(word) === 'incoming') {
    throw busy(what, word);
  }
};

const busy = (what: string, word: number): RamferryError => {
  const purpose = purposeOf(word);
  return purpose === undefined
    ? new RamferryError('usage', 'GUEST_BUSY', `${what} while the guest's list of RAM blocks is being changed.`, {
        hint: 'do it after the change, not in an observer of it',
      })
    : new RamferryError('usage', 'GUEST_BUSY', `${what} while ${names[purpose]} of the guest is under way.`, {
        value: names[purpose],
        hint: `wait until ${names[purpose].replace(/^an? /, 'the ')} has ended, or cancel it`,
      });
};

const staleList = (known: number, current: number): RamferryError =>
  new RamferryError(
    'usage',
    'BLOCK_LIST_STALE',
    `The description of the guest's RAM blocks is of version ${known}, and the list has version ${current} by now.`,
    { value: known, hint: 'take a new description with share(), after the last plug or unplug' },
  );

const claimLost = (): RamferryError =>
  new RamferryError(
    'failed',
    'CLAIM_LOST',
    'The claim on this guest was released from outside, as if its thread had died.',
  );

const capitalized = (text: string): string => text.charAt(0).toUpperCase() + text.slice(1);
