// The state word of a migration. A transition is compare-and-swap: whoever comes second (a cancel racing with the
// completion) finds the state moved on and gives way, so that every migration has exactly one end (PL-3).

/**
 *   none ──▶ setup ──▶ active ──▶ device ──▶ completed
 *              │          │          │
 *              ├──────────┴──────────┴──▶ cancelling ──▶ cancelled
 *              └──────────┴──────────┴──▶ failed
 *
 * `device` is entered at the switchover: the guest is stopped, the rest of RAM and the device state travel.
 * QMP's names; spec/algorithms.md 7.2.
 */
export type MigrationStatus =
  | 'none'
  | 'setup'
  | 'active'
  | 'device'
  | 'completed'
  | 'cancelling'
  | 'cancelled'
  | 'failed';

const successors: Readonly<Record<MigrationStatus, readonly MigrationStatus[]>> = {
  none: ['setup'],
  setup: ['active', 'cancelling', 'failed'],
  active: ['device', 'cancelling', 'failed'],
  device: ['completed', 'cancelling', 'failed'],
  cancelling: ['cancelled'],
  completed: [],
  cancelled: [],
  failed: [],
};

export class MigrationState {
  #value: MigrationStatus = 'none';
  readonly #changed: (status: MigrationStatus) => void;

  constructor(changed: (status: MigrationStatus) => void) {
    this.#changed = changed;
  }

  get value(): MigrationStatus {
    return this.#value;
  }

  /** Whether the migration has ended, one way or another. */
  get ended(): boolean {
    return successors[this.#value].length === 0;
  }

  /** Moves to `next` if that is legal from here; says whether it did. */
  move(next: MigrationStatus): boolean {
    if (!successors[this.#value].includes(next)) {
      return false;
    }
    this.#value = next;
    this.#changed(next);
    return true;
  }
}
