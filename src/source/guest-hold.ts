// What an engine does to its guest, and how all of it is undone: by the engine when it ends, by another thread when the engine's
// has died. For that it is noted in shared memory, before it is done: what is noted and was not done after all, does no harm to undo.

import type { WriteProtector } from '../dirty-log/write-protector.js';
import type { RamDiscardManager } from '../memory/ram-discard-manager.js';
import type { SourceGuest } from './guest.js';

/** Whose the guest is. */
const owners = [
  /** It belongs here: it runs on, whatever becomes of the migration. */
  'here',
  /** It was saved, and stays stopped. */
  'saved',
  /** It runs at the destination, or may, and must not run here any more. */
  'moved',
  /** The destination has everything, or nearly, and may run it; until it answers, only the engine can decide (ending.ts). */
  'undecided',
] as const;
export type GuestOwner = (typeof owners)[number];

/** Words of the shared memory. */
const Word = {
  owner: 0,
  isStopped: 1,
  isThrottled: 2,
  isHinted: 3,
  isLogged: 4,
  isProtected: 5,
  frozen: 6,
  descriptor: 7,
} as const;

const WORDS = Object.keys(Word).length;

/** What could not be undone, and why. */
export interface UndoFailure {
  readonly what: string;
  readonly error: Error;
}

/** The shared memory of a `GuestHold`; structured-cloneable. */
export const allocateGuestHold = (): SharedArrayBuffer => new SharedArrayBuffer(WORDS * 4);

/** Whose the guest is that this memory is about. */
export const guestOwner = (shared: SharedArrayBuffer): GuestOwner =>
  owners[Atomics.load(new Int32Array(shared), Word.owner)];

/** Whether something is noted that was not undone. */
export const isGuestHeld = (shared: SharedArrayBuffer): boolean =>
  new Int32Array(shared).subarray(Word.isStopped).some((word) => word !== 0);

/** Notes the file descriptor by which the kernel protects the guest's pages; undefined before it is closed. */
export const noteDescriptor = (shared: SharedArrayBuffer, descriptor: number | undefined): void => {
  Atomics.store(new Int32Array(shared), Word.descriptor, (descriptor ?? -1) + 1);
};

/** Takes over the descriptor that was noted. */
export const takeDescriptor = (shared: SharedArrayBuffer): number | undefined => {
  const noted = Atomics.exchange(new Int32Array(shared), Word.descriptor, 0);
  return noted === 0 ? undefined : noted - 1;
};

/** One engine's hold on its guest. */
export class GuestHold {
  readonly #guest: SourceGuest;
  readonly #protector: Pick<WriteProtector, 'stop'> | undefined;
  readonly #words: Int32Array;
  #willRun = false;
  /** Those of the guest as it was in the beginning: the first `frozen` are frozen. */
  readonly #discardManagers: readonly RamDiscardManager[];

  /** @param shared where another thread finds what this one has done; default: nowhere */
  constructor(guest: SourceGuest, protector?: Pick<WriteProtector, 'stop'>, shared?: SharedArrayBuffer) {
    this.#guest = guest;
    this.#protector = protector;
    this.#words = shared === undefined ? new Int32Array(WORDS) : new Int32Array(shared);
    this.#discardManagers = guest.blocks.blocks.flatMap(({ discardManager }) => discardManager ?? []);
  }

  /** Whether the guest is here no longer: nothing resumes it. */
  get isGone(): boolean {
    return this.#owner === 'saved' || this.#owner === 'moved';
  }

  /** Whether the guest stands still because it may run at the destination. */
  get isUndecided(): boolean {
    return this.#owner === 'undecided' && this.#willRun;
  }

  /** Whether the guest is stopped and runs on if the migration is given up. */
  get willRun(): boolean {
    return !this.isGone && this.#willRun;
  }

  /** Keeps what is discarded as it is (RD-11). */
  freezeDiscards(): void {
    for (const manager of this.#discardManagers) {
      this.#set(Word.frozen, this.#get(Word.frozen) + 1);
      try {
        manager.freeze();
      } catch (error) {
        this.#set(Word.frozen, this.#get(Word.frozen) - 1);
        throw error;
      }
    }
  }

  /** Hints are going to be asked for. */
  takeHints(): void {
    this.#set(Word.isHinted, 1);
  }

  /** From here on the guest's writes are recorded, where it can write. */
  startLog(): void {
    const { log, blocks } = this.#guest;
    if (log !== undefined) {
      this.#set(Word.isLogged, 1);
      log.start();
      blocks.dirty.migrationTracking = true;
    }
  }

  throttle(percentage: number): void {
    this.#set(Word.isThrottled, 1);
    this.#guest.throttle?.(percentage);
  }

  /** Pages are going to be protected. */
  protect(): void {
    this.#set(Word.isProtected, 1);
  }

  async stop(): Promise<void> {
    this.#set(Word.isStopped, 1);
    this.#willRun = this.#guest.isRunning();
    await this.#guest.stop();
  }

  /** Takes back `stop`, if that was ordered. */
  async resume(): Promise<void> {
    if (this.#get(Word.isStopped) !== 0) {
      await this.#guest.resume();
      this.#set(Word.isStopped, 0);
    }
  }

  /** The last of it is about to leave: should the engine die now, nobody can say any more where the guest runs. */
  offer(): void {
    if (!this.isGone) {
      this.#set(Word.owner, owners.indexOf('undecided'));
    }
  }

  /** Takes back `offer`: the engine has decided that the guest stays. */
  withdraw(): void {
    if (this.#owner === 'undecided') {
      this.#set(Word.owner, owners.indexOf('here'));
    }
  }

  /**
   * The point of no return: from here on nothing resumes the guest here (PC-11).
   * @param hasMoved whether it runs at the destination; else it was saved, and its owner may let it run on
   */
  giveAway(hasMoved: boolean): void {
    if (this.isGone) {
      return;
    }
    this.#set(Word.owner, owners.indexOf(hasMoved ? 'moved' : 'saved'));
    try {
      this.#leave();
      // Its owner may take it back at once, which nothing shall undo.
      this.#set(Word.isStopped, 0);
    } catch {
      // `undo` tries again, and says why not.
    }
  }

  #leave(): void {
    this.#guest.leave?.(this.#owner !== 'saved');
  }

  /**
   * Undoes all of it, and lets a guest that belongs here run on; one that is undecided stands still, or it might run twice. Every
   * step is tried, whatever becomes of those before it; returns what failed. In another thread than the engine's: only once that
   * has ended.
   * @param forget drops what the engine itself keeps of the guest
   */
  async undo(forget?: () => void): Promise<readonly UndoFailure[]> {
    const { hints, log, blocks } = this.#guest;
    const steps: readonly (readonly [what: string, word: number | undefined, undo: () => void | Promise<void>])[] = [
      ['Its bitmaps could not be cleared', undefined, () => forget?.()],
      ['The protection of its pages could not be lifted', Word.isProtected, () => this.#protector?.stop()],
      ['It could not be unthrottled', Word.isThrottled, () => this.#guest.throttle?.(0)],
      ['Its free page hints could not be ended', Word.isHinted, () => hints?.done()],
      ['The recording of its writes could not be stopped', Word.isLogged, () => log?.stop()],
      [
        'The tracking of its writes could not be stopped',
        Word.isLogged,
        () => {
          blocks.dirty.migrationTracking = false;
        },
      ],
      ['Its discarded memory could not be thawed', Word.frozen, () => this.#thawDiscards()],
      [
        'It could not be resumed and stands still',
        Word.isStopped,
        () => (this.#owner === 'here' ? this.#guest.resume() : this.#leave()),
      ],
    ];
    const failures: UndoFailure[] = [];
    for (const [what, word, undo] of steps) {
      if (word !== undefined && this.#get(word) === 0) {
        continue;
      }
      try {
        await undo();
      } catch (error) {
        failures.push({ what, error: error instanceof Error ? error : new Error(String(error)) });
      }
    }
    this.#words.fill(0, Word.isStopped, Word.descriptor);
    return failures;
  }

  #thawDiscards(): void {
    for (const manager of this.#discardManagers.slice(0, this.#get(Word.frozen))) {
      // The last one may have been noted only.
      if (manager.isFrozen) {
        manager.thaw();
      }
    }
  }

  get #owner(): GuestOwner {
    return owners[this.#get(Word.owner)];
  }

  #get(word: number): number {
    return Atomics.load(this.#words, word);
  }

  #set(word: number, value: number): void {
    Atomics.store(this.#words, word, value);
  }
}
