// Which guests there are, for the engine's thread: it gets a description and makes its own view of the guest.

import { openSnapshotFile } from '../guest/open-snapshot-file-node.js';
import { SnapshotGuest } from '../guest/snapshot-guest.js';
import type { WorkloadShared } from '../guest/workload/control.js';
import { attachWorkloadGuest } from '../guest/workload/workload-source.js';
import { type ClaimPurpose, ClaimRecord, type GuestClaim } from '../memory/guest-claim.js';
import type { SourceGuest } from '../source/guest.js';
import { refusePinnedDevices } from './postcopy-obstacles.js';

export type GuestDescription =
  /** `wantsHints`: whether its balloon, if it has one, is asked for free pages. Default true. */
  | { readonly kind: 'workload'; readonly shared: WorkloadShared; readonly wantsHints?: boolean }
  | { readonly kind: 'snapshot-file'; readonly file: string };

/**
 * @param postcopy whether the guest shall run at its destination before its memory is there
 * @throws RamferryError `POSTCOPY_OBSTACLE` if that would harm it
 */
export async function attachGuest(description: GuestDescription, postcopy = false): Promise<SourceGuest> {
  switch (description.kind) {
    case 'workload':
      return attachWorkloadGuest(description.shared, description.wantsHints);
    case 'snapshot-file': {
      const { file } = description;
      const { snapshot } = await openSnapshotFile(file);
      if (postcopy) {
        refusePinnedDevices(snapshot.summary.devices, file);
      }
      return new SnapshotGuest(snapshot, file);
    }
  }
}

/**
 * Claims the guest for an engine in another thread, which gets the claim's token; from here it can be released whatever becomes
 * of that thread. Undefined where no other engine can have the guest: each opens a file for itself.
 * @throws RamferryError `GUEST_BUSY` if somebody else migrates, saves or loads it; `BLOCK_LIST_STALE` if the description is old
 */
export function claimGuest(description: GuestDescription, purpose: ClaimPurpose): GuestClaim | undefined {
  if (description.kind !== 'workload') {
    return undefined;
  }
  const { bitmaps, claims, version } = description.shared.blocks;
  return new ClaimRecord(new Int32Array(bitmaps.buffer), claims).claim(purpose, version);
}
