// The state word of a migration. A transition is compare-and-swap: whoever comes second (a cancel racing with the
// completion) finds the state moved on and gives way, so that every migration has exactly one end (PL-3).

/**
 *   none ──▶ setup ──▶ active ──▶ device ──▶ completed
 *              │          │          │
 *              ├──────────┴──────────┴──▶ cancelling ──▶ cancelled
 *              └──────────┴──────────┴──▶ failed
 *
 * `device` is entered at the switchover: the guest is stopped, the rest of RAM and the device state travel. `completed` is entered
 * at the moment of the destination's confirmation, and never left: no cancel, failure or late message resumes the guest here
 * after it, while the rest is cleaned up. In postcopy the
 * rest of RAM follows later; neither side alone is a complete guest then, so a broken link pauses and does not fail:
 *
 *   device ──▶ postcopy-active ──▶ completed
 *                 │   ▲
 *                 ▼   └──── postcopy-recover ◀── postcopy-recover-setup
 *              postcopy-paused ◀──┴────────────────────┘  ▲
 *                     └───────────────────────────────────┘    (each of these four also ──▶ failed: given up)
 *
 * A source that comes new to an interrupted postcopy goes from `setup` to `postcopy-recover`.
 * QMP's names; spec/algorithms.md 7.2.
 */
export type MigrationStatus =
  | 'none'
  | 'setup'
  | 'active'
  | 'device'
  | 'postcopy-active'
  | 'postcopy-paused'
  | 'postcopy-recover-setup'
  | 'postcopy-recover'
  | 'completed'
  | 'cancelling'
  | 'cancelled'
  | 'failed';

const successors: Readonly<Record<MigrationStatus, readonly MigrationStatus[]>> = {
  none: ['setup'],
  setup: ['active', 'postcopy-recover', 'cancelling', 'failed'],
  active: ['device', 'cancelling', 'failed'],
  device: ['completed', 'postcopy-active', 'cancelling', 'failed'],
  'postcopy-active': ['completed', 'postcopy-paused', 'failed'],
  'postcopy-paused': ['postcopy-recover-setup', 'failed'],
  'postcopy-recover-setup': ['postcopy-recover', 'postcopy-paused', 'failed'],
  'postcopy-recover': ['postcopy-active', 'postcopy-paused', 'failed'],
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

  /** Whether `next` is legal from here. */
  canMove(next: MigrationStatus): boolean {
    return successors[this.#value].includes(next);
  }

  /** Moves to `next` if that is legal from here; says whether it did. */
  move(next: MigrationStatus): boolean {
    if (!this.canMove(next)) {
      return false;
    }
    this.#value = next;
    this.#changed(next);
    return true;
  }
}
