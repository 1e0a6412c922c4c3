// Which options of a migration exclude each other, under the names of QEMU's capabilities (spec/algorithms.md 12.2).

import { RamferryError } from '../memory/errors.js';

/** What of a migration's options turns a capability on. */
interface Capabilities {
  readonly backgroundSnapshot?: unknown;
  readonly returnPath?: boolean;
  readonly mappedRam?: { readonly channels?: number };
  readonly postcopy?: unknown;
  readonly parameters?: { readonly autoConverge?: boolean };
}

/** Throws CAPABILITY_CONFLICT, which names both. */
export const checkCapabilities = (options: Capabilities): void => {
  if (options.backgroundSnapshot === undefined) {
    return;
  }
  const { returnPath = false, mappedRam, postcopy, parameters } = options;
  const conflicting: readonly (readonly [name: string, isSet: boolean])[] = [
    ['return-path', returnPath],
    ['postcopy-ram', postcopy !== undefined],
    ['multifd', (mappedRam?.channels ?? 0) > 0],
    ['auto-converge', parameters?.autoConverge ?? false],
  ];
  for (const [name, isSet] of conflicting) {
    if (isSet) {
      throw new RamferryError(
        'usage',
        'CAPABILITY_CONFLICT',
        `Capabilities background-snapshot and ${name} exclude each other.`,
        { value: name },
      );
    }
  }
};
