// Which guests there are, for the engine's thread: it gets a description and makes its own view of the guest.

import { openSnapshotFile } from '../guest/open-snapshot-file-node.js';
import { SnapshotGuest } from '../guest/snapshot-guest.js';
import type { WorkloadShared } from '../guest/workload/control.js';
import { attachWorkloadGuest } from '../guest/workload/workload-source.js';
import type { SourceGuest } from '../source/guest.js';

export type GuestDescription =
  /** `wantsHints`: whether its balloon, if it has one, is asked for free pages. Default true. */
  | { readonly kind: 'workload'; readonly shared: WorkloadShared; readonly wantsHints?: boolean }
  | { readonly kind: 'snapshot-file'; readonly file: string };

export async function attachGuest(description: GuestDescription): Promise<SourceGuest> {
  switch (description.kind) {
    case 'workload':
      return attachWorkloadGuest(description.shared, description.wantsHints);
    case 'snapshot-file':
      return new SnapshotGuest((await openSnapshotFile(description.file)).snapshot, description.file);
  }
}
