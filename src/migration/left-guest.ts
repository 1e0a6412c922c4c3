// The guest of an engine whose thread has ended in the middle: what was done to the guest is undone from here (TS-34, TS-35), and
// what was written of it and not finished is removed.

import { rmSync } from 'node:fs';
import { closeUserfaultfd } from '../dirty-log/userfaultfd-node.js';
import { RamferryError } from '../memory/errors.js';
import { GuestHold, guestOwner, takeDescriptor, type UndoFailure } from '../source/guest-hold.js';
import { clearSendBitmaps } from '../source/send-bitmap.js';
import { attachGuest, type GuestDescription } from './guests.js';

export interface DeadEngine {
  /** Whether it still had the guest for itself. */
  readonly mayUndo: boolean;
  /** Files that it had begun and not finished. */
  readonly unfinished: readonly string[];
  /** What became of the thread. */
  readonly how: string;
}

/**
 * Undoes what the dead engine did to its guest, and lets the guest run on if it belongs here.
 * @param hold where the engine noted what it did
 * @returns what to tell whoever ordered the migration; never rejects
 */
export async function freeGuest(
  description: GuestDescription,
  hold: SharedArrayBuffer,
  { mayUndo, unfinished, how }: DeadEngine,
): Promise<RamferryError> {
  const failures = mayUndo ? await undo(description, hold) : [];
  return engineDied(how, hold, [...failures, ...unfinished.flatMap(remove)]);
}

/** No failure: one that has got its name in the last instant, or is gone with its folder. */
function remove(file: string): UndoFailure | [] {
  try {
    rmSync(file, { force: true });
    return [];
  } catch (error) {
    return { what: `The unfinished ${file} could not be removed`, error: error as Error };
  }
}

/** A guest that only one thread knows has gone with it. */
async function undo(description: GuestDescription, shared: SharedArrayBuffer): Promise<readonly UndoFailure[]> {
  if (description.kind !== 'workload') {
    return [];
  }
  const descriptor = takeDescriptor(shared);
  try {
    const { guest } = await attachGuest(description);
    const stop = (): void => {
      try {
        guest.protector?.stop();
      } finally {
        if (descriptor !== undefined) {
          closeUserfaultfd(descriptor);
        }
      }
    };
    return await new GuestHold(guest, { stop }, shared).undo(() => clearSendBitmaps(guest.blocks));
  } catch (error) {
    return [{ what: 'It could not be reached', error: error as Error }];
  }
}

const whereItIs = {
  here: 'the guest stays here',
  saved: 'the guest had been saved by then',
  moved: 'the guest had moved to the destination by then, and must not run here any more',
  undecided: 'the destination had everything by then and may run the guest, which therefore stands still here',
} as const;

function engineDied(how: string, hold: SharedArrayBuffer, failures: readonly UndoFailure[]): RamferryError {
  const owner = guestOwner(hold);
  const problems = failures.map(({ what, error }) => ` ${what}: ${error.message}`).join('');
  return new RamferryError(
    'failed',
    'ENGINE_DIED',
    `The migration engine's thread ended unexpectedly (${how}); ${whereItIs[owner]}.${problems}`,
    {
      value: owner,
      ...(owner === 'undecided' && {
        hint: 'look at the destination; only if the guest does not run there, take it back here and resume it',
      }),
      ...(failures[0] !== undefined && { cause: failures[0].error }),
    },
  );
}
