// Who relies on memory that may be discarded, and who on memory that may not (spec/algorithms.md 6(b)). Both kinds hold the
// gate for as long as they do, and say who they are, so that a refusal names both.
//
//   holds          disabled   uncoordinated disabled   required   coordinated required
//   asks for
//   disable           yes              yes                no              no            continuous checkpoints: every page is compared
//   disable
//    uncoordinated    yes              yes                no              yes           device assignment: follows a RamDiscardManager
//   require           no               no                 yes             yes           discards without telling anybody
//   require
//    coordinated      no               yes                yes             yes           a block with a RamDiscardManager

import { RamferryError } from './errors.js';

const conflicts = {
  disable: ['require', 'requireCoordinated'],
  disableUncoordinated: ['require'],
  require: ['disable', 'disableUncoordinated'],
  requireCoordinated: ['disable'],
} as const;

type Kind = keyof typeof conflicts;

export class RamDiscardGate {
  readonly #holders: Record<Kind, string[]> = {
    disable: [],
    disableUncoordinated: [],
    require: [],
    requireCoordinated: [],
  };

  /** From here on nothing may be discarded. Returns the function that ends it; throws RAM_DISCARD_REQUIRED. */
  disable(who: string): () => void {
    return this.#hold('disable', who);
  }

  /** Only a RamDiscardManager, which tells its listeners, may discard. Throws RAM_DISCARD_REQUIRED. */
  disableUncoordinated(who: string): () => void {
    return this.#hold('disableUncoordinated', who);
  }

  /** Discards without telling anybody. Throws RAM_DISCARD_DISABLED. */
  require(who: string): () => void {
    return this.#hold('require', who);
  }

  /** Discards through a RamDiscardManager. Throws RAM_DISCARD_DISABLED. */
  requireCoordinated(who: string): () => void {
    return this.#hold('requireCoordinated', who);
  }

  #hold(kind: Kind, who: string): () => void {
    const other = conflicts[kind].flatMap((conflicting) => this.#holders[conflicting])[0];
    if (other !== undefined) {
      const isDisable = kind === 'disable' || kind === 'disableUncoordinated';
      throw new RamferryError(
        'usage',
        isDisable ? 'RAM_DISCARD_REQUIRED' : 'RAM_DISCARD_DISABLED',
        isDisable
          ? `${who} cannot honour discarded memory, which ${other} has.`
          : `${who} needs memory to be discarded, which ${other} cannot honour.`,
        { value: who },
      );
    }
    const holders = this.#holders[kind];
    holders.push(who);
    let held = true;
    return () => {
      if (held) {
        held = false;
        holders.splice(holders.indexOf(who), 1);
      }
    };
  }
}
