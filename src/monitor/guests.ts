// Which guests there are, for the engine's thread: it gets a description and makes its own view of the guest.

import { openStreamFile } from '../guest/open-stream-file-node.js';
import { SnapshotGuest } from '../guest/snapshot-guest.js';
import type { WorkloadShared } from '../guest/workload/control.js';
import { attachWorkloadGuest } from '../guest/workload/workload-source.js';
import type { SourceGuest } from '../source/guest.js';

export type GuestDescription =
  | { readonly kind: 'workload'; readonly shared: WorkloadShared }
  | { readonly kind: 'stream-file'; readonly file: string };

export function attachGuest(description: GuestDescription): SourceGuest {
  switch (description.kind) {
    case 'workload':
      return attachWorkloadGuest(description.shared);
    case 'stream-file':
      return new SnapshotGuest(openStreamFile(description.file).snapshot, description.file);
  }
}
