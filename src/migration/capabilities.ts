// Which options of a migration exclude each other, under the names of QEMU's capabilities (spec/algorithms.md 12.2).

import { RamferryError } from '../memory/errors.js';

/** What of a migration's options turns a capability on. */
interface Capabilities {
  readonly backgroundSnapshot?: unknown;
  readonly returnPath?: boolean;
  readonly mappedRam?: { readonly channels?: number };
  readonly postcopy?: { readonly preempt?: boolean; readonly releaseRam?: boolean; readonly recovers?: boolean };
  readonly parameters?: { readonly autoConverge?: boolean };
}

/** Throws CAPABILITY_CONFLICT, which names both. */
export const checkCapabilities = (options: Capabilities): void => {
  const { backgroundSnapshot, returnPath = false, mappedRam, postcopy, parameters } = options;
  const { preempt = false, releaseRam = false, recovers = false } = postcopy ?? {};
  if (backgroundSnapshot !== undefined) {
    refuseWith('background-snapshot', [
      ['return-path', returnPath],
      ['release-ram', releaseRam],
      ['postcopy-ram', postcopy !== undefined],
      ['multifd', (mappedRam?.channels ?? 0) > 0],
      ['auto-converge', parameters?.autoConverge ?? false],
    ]);
  }
  if (mappedRam !== undefined) {
    // Who writes at positions has nobody who asks for pages.
    refuseWith('mapped-ram', [['postcopy-ram', postcopy !== undefined]]);
  }
  if (releaseRam) {
    // With a preempt channel a batch may be under way while others follow, and only the last one is known page by page.
    refuseWith('release-ram', [
      ['postcopy-preempt', preempt],
      // RC-8
      ['a resumed postcopy', recovers],
    ]);
  }
};

const refuseWith = (capability: string, others: readonly (readonly [name: string, isSet: boolean])[]): void => {
  for (const [name, isSet] of others) {
    if (isSet) {
      throw new RamferryError(
        'usage',
        'CAPABILITY_CONFLICT',
        `Capabilities ${capability} and ${name} exclude each other.`,
        { value: name },
      );
    }
  }
};
