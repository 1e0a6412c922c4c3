// Chooses who keeps the guest's pages as they are during a background snapshot.

import { UserfaultfdProtector } from '../dirty-log/write-protect-userfaultfd-node.js';
import type { WriteProtector } from '../dirty-log/write-protector.js';
import { RamferryError } from '../memory/errors.js';
import type { SourceGuest } from '../source/guest.js';
import { noteDescriptor } from '../source/guest-hold.js';
import type { BackgroundSnapshotOptions } from './source-messages.js';

/** Throws PROTECTOR_MISSING if the guest's threads cannot be asked and shall be. */
export const openProtector = (
  guest: SourceGuest,
  { protector }: BackgroundSnapshotOptions,
  hold: SharedArrayBuffer,
): WriteProtector => {
  const own = guest.protector;
  if (protector === 'userfaultfd' || (protector === undefined && own === undefined)) {
    return new UserfaultfdProtector(guest.blocks, {
      onDescriptor: (descriptor) => noteDescriptor(hold, descriptor),
    });
  }
  if (own === undefined) {
    throw new RamferryError(
      'usage',
      'PROTECTOR_MISSING',
      "This guest's stores pass no barrier that could protect pages.",
      {
        value: 'store-barrier',
        hint: "protector: 'userfaultfd'",
      },
    );
  }
  return own;
};
