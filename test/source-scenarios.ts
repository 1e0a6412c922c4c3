// What the guest and the engine of src/source/schedules.test.ts do, of which every interleaving is tried; and faults of an engine that
// have to be found so.

import type { StoreBarrierVariant } from '../src/dirty-log/store-barrier.js';

/** A whole word of the bitmaps, so that the kernels' aligned path runs. */
export const PAGES = 64;
export const FREE_PAGE = 2;

export interface Scenario {
  /** For each guest thread the pages it writes, in order. */
  readonly writes: readonly (readonly (number | 'hint')[])[];
  readonly variant: StoreBarrierVariant;
  /** Switch over while pages are still dirty, instead of when none is. */
  readonly early: boolean;
  readonly eagerClear?: boolean;
  readonly hints?: 'acknowledged' | 'unacknowledged';
  readonly mutant?:
    | 'clear after read'
    | 'mark before store'
    | 'counter ignores clean bits'
    | 'sync counts old bits'
    | 'stale hints are applied'
    | 'hints are asked for before the log is cleared'
    | 'marks are dropped though the guest does not wait';
}

export const scenarios: readonly Scenario[] = [
  { writes: [[0], [1]], variant: 'unconditional', early: true },
  { writes: [[0], [0]], variant: 'unconditional', early: true },
  { writes: [[0], [1]], variant: 'unconditional', early: false },
  { writes: [[0], [1]], variant: 'filtered', early: true },
  { writes: [[0, 0]], variant: 'filtered', early: false },
  { writes: [[0, 0]], variant: 'unconditional', early: false },
  { writes: [[0], [1]], variant: 'unconditional', early: true, eagerClear: true },
];

/** Free page hints: FH-5, FH-7, FH-8, FH-14, FH-29 */
export const hintScenarios: readonly Scenario[] = [
  { hints: 'unacknowledged', writes: [[FREE_PAGE, 'hint', FREE_PAGE]], variant: 'unconditional', early: true },
  { hints: 'unacknowledged', writes: [[FREE_PAGE, 'hint', FREE_PAGE]], variant: 'filtered', early: true },
  { hints: 'acknowledged', writes: [[FREE_PAGE, 'hint', FREE_PAGE]], variant: 'unconditional', early: true },
  { hints: 'acknowledged', writes: [[FREE_PAGE, 'hint', FREE_PAGE]], variant: 'filtered', early: true },
  {
    hints: 'unacknowledged',
    writes: [[FREE_PAGE, 'hint', FREE_PAGE]],
    variant: 'unconditional',
    early: true,
    eagerClear: true,
  },
];

export const nameOf = ({ writes, variant, early, eagerClear, hints }: Scenario): string =>
  `threads writing pages ${writes.map((pages) => pages.join('+')).join(' and ')}, ${variant} marks, ${
    early ? 'early switchover' : 'until nothing is dirty'
  }${eagerClear === true ? ', eager clearing' : ''}${hints === undefined ? '' : `, ${hints} hints`}`;

const hinting = { writes: [[0], [FREE_PAGE, 'hint', FREE_PAGE]], variant: 'unconditional', early: false } as const;

export const mutants: readonly Scenario[] = [
  { mutant: 'stale hints are applied', hints: 'unacknowledged', ...hinting },
  { mutant: 'hints are asked for before the log is cleared', hints: 'unacknowledged', ...hinting },
  { mutant: 'marks are dropped though the guest does not wait', hints: 'unacknowledged', ...hinting },
  { mutant: 'clear after read', writes: [[0], [0]], variant: 'unconditional', early: false },
  { mutant: 'mark before store', writes: [[0], [1]], variant: 'unconditional', early: false },
  { mutant: 'counter ignores clean bits', writes: [[0], [1]], variant: 'unconditional', early: false },
  { mutant: 'sync counts old bits', writes: [[0], [0]], variant: 'unconditional', early: true },
];
