// Which guests there are, for the engine's thread: it gets a description and makes its own view of the guest.

import type { WorkloadShared } from '../guest/workload/control.js';
import { attachWorkloadGuest } from '../guest/workload/workload-source.js';
import { type ClaimPurpose, ClaimRecord, type GuestClaim } from '../memory/guest-claim.js';
import { withDigest } from '../memory-file/checked-snapshot.js';
import { openSnapshotFile } from '../memory-file/open-snapshot-file-node.js';
import { decideRun } from '../memory-file/run-decision.js';
import { inTurns } from '../memory-file/slices-node.js';
import { SnapshotGuest } from '../memory-file/snapshot-guest.js';
import type { SourceGuest } from '../source/guest.js';
import { refusePinnedDevices } from './postcopy-obstacles.js';

export type GuestDescription =
  /** `wantsHints`: whether its balloon, if it has one, is asked for free pages. Default true. */
  | { readonly kind: 'workload'; readonly shared: WorkloadShared; readonly wantsHints?: boolean }
  | {
      readonly kind: 'snapshot-file';
      readonly file: string;
      /** It is to run at its destination, also if it was saved while paused. Default false. */
      readonly run?: boolean;
      /** What is read of it is compared with the digest of its file, where that has one. Default false. */
      readonly checksDigest?: boolean;
    };

/** What is known of a guest before it moves. */
export interface GuestFacts {
  /** Whether it is to run at its destination. */
  readonly runs: boolean;
  /** The state it was saved in; undefined for one that is not QEMU's. */
  readonly savedAs: string | undefined;
  /** What its user should know, as sentences. */
  readonly notes: readonly string[];
}

export interface AttachedGuest {
  readonly guest: SourceGuest;
  /** Undefined for a guest of ours: it goes on as it is. */
  readonly facts: GuestFacts | undefined;
}

/**
 * @param postcopy whether the guest shall run at its destination before its memory is there
 * @param signal ends the check of a file's digest
 * @throws RamferryError `POSTCOPY_OBSTACLE` if that would harm it
 */
export async function attachGuest(
  description: GuestDescription,
  postcopy = false,
  signal?: AbortSignal,
): Promise<AttachedGuest> {
  switch (description.kind) {
    case 'workload':
      return { guest: attachWorkloadGuest(description.shared, description.wantsHints), facts: undefined };
    case 'snapshot-file': {
      const { file, run = false, checksDigest = false } = description;
      const opened = await openSnapshotFile(file);
      const { summary } = opened.snapshot;
      const decision = decideRun(summary, opened.container.libvirt, run);
      if (postcopy && decision.runs) {
        refusePinnedDevices(summary, file);
      }
      const { snapshot, checked, notChecked } = checksDigest
        ? withDigest(opened.snapshot, opened.container)
        : { snapshot: opened.snapshot, checked: undefined, notChecked: undefined };
      await checked?.checkIfQuick(inTurns(signal));
      return {
        guest: new SnapshotGuest(snapshot, file, { runState: decision.rewritten }),
        facts: { ...decision, notes: notChecked === undefined ? [] : [`warning: ${notChecked}`] },
      };
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
