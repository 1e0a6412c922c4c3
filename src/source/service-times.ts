// How long page requests waited, as quantiles, in constant memory however many there are.

/** Buckets for each doubling: quantiles are exact to 9 %. */
const PER_OCTAVE = 8;
/** From a microsecond to an hour. */
const OCTAVES = 32;
const SHORTEST_MS = 0.001;

export interface ServiceTimeReport {
  readonly p50: number;
  readonly p99: number;
  readonly max: number;
}

export class ServiceTimes {
  readonly #buckets = new Uint32Array(PER_OCTAVE * OCTAVES);
  #count = 0;
  #max = 0;

  add(milliseconds: number): void {
    const bucket = Math.floor(Math.log2(Math.max(milliseconds, SHORTEST_MS) / SHORTEST_MS) * PER_OCTAVE);
    this.#buckets[Math.min(bucket, this.#buckets.length - 1)] += 1;
    this.#count += 1;
    this.#max = Math.max(this.#max, milliseconds);
  }

  /** Milliseconds; undefined if there were none. */
  report(): ServiceTimeReport | undefined {
    return this.#count === 0
      ? undefined
      : { p50: this.#quantile(0.5), p99: this.#quantile(0.99), max: round(this.#max) };
  }

  #quantile(share: number): number {
    let below = 0;
    const bucket = this.#buckets.findIndex((count) => (below += count) >= share * this.#count);
    return round(Math.min(this.#max, SHORTEST_MS * 2 ** ((bucket + 1) / PER_OCTAVE)));
  }
}

const round = (milliseconds: number): number => Number(milliseconds.toPrecision(3));
