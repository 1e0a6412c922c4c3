// What the owner of a guest does with its balloon: QMP's `balloon` and `query-balloon`, and the guest's statistics.

import {
  BalloonConfig,
  BalloonFeature,
  type BalloonShared,
  BalloonStatistic,
  StatisticsWord,
  statisticsValues,
} from './balloon.js';
import { configWords, Interrupt, interruptDriver, loadFeatures, Register, ringDoorbell } from './registers.js';

export class BalloonControl {
  readonly #registers: Int32Array;
  readonly #config: Int32Array;
  readonly #statistics: Int32Array;
  readonly #values: Float64Array;

  constructor(shared: BalloonShared) {
    this.#registers = new Int32Array(shared.virtio.registers);
    this.#config = configWords(shared.virtio);
    this.#statistics = new Int32Array(shared.statistics);
    this.#values = statisticsValues(shared);
  }

  /** Pages that the guest has been asked to give away. The guest does it in its own time, or not. */
  get targetPages(): number {
    return Atomics.load(this.#config, BalloonConfig.targetPages) >>> 0;
  }

  set targetPages(pages: number) {
    Atomics.store(this.#config, BalloonConfig.targetPages, pages);
    interruptDriver(this.#registers, Interrupt.configuration);
  }

  /** Pages that the guest says it has given away. */
  get actualPages(): number {
    return Atomics.load(this.#config, BalloonConfig.actualPages) >>> 0;
  }

  /** What the guest fills free pages with; undefined if it does not say. */
  get poisonValue(): number | undefined {
    const known = (loadFeatures(this.#registers, Register.driverFeatures) & BalloonFeature.pagePoison) !== 0n;
    return known ? Atomics.load(this.#config, BalloonConfig.poisonValue) >>> 0 : undefined;
  }

  /** Asks for new statistics: `reports` counts up when they are there. */
  requestStatistics(): void {
    Atomics.store(this.#statistics, StatisticsWord.wanted, 1);
    ringDoorbell(this.#registers);
  }

  /** How often the guest has reported. */
  get reports(): number {
    return Atomics.load(this.#statistics, StatisticsWord.reports);
  }

  /** By name, what the last report said. */
  statistics(): Partial<Record<keyof typeof BalloonStatistic, number>> {
    const known = Object.entries(BalloonStatistic).filter(([, tag]) => !Number.isNaN(this.#values[tag]));
    return this.reports === 0 ? {} : Object.fromEntries(known.map(([name, tag]) => [name, this.#values[tag]!]));
  }
}
