// Free runs of a linear space, best fit. Three spaces are handed out by it: the flat ram address space (spec/algorithms.md
// 4(b)), the bytes of guest RAM segments, and the bytes of the bitmap memory. Units are the caller's.

interface Run {
  start: number;
  length: number;
}

export class RunAllocator {
  /** Ascending, never touching each other except at a boundary. */
  readonly #runs: Run[] = [];
  readonly #boundary: number;

  /** Runs on both sides of a multiple of `boundary` are never joined, so nothing that is handed out crosses one. */
  constructor(boundary = Number.POSITIVE_INFINITY) {
    this.#boundary = boundary;
  }

  /** Takes the start of the shortest run that is long enough, the lowest of equals (DM-28); undefined if there is none. */
  allocate(length: number): number | undefined {
    let best: Run | undefined;
    for (const run of this.#runs) {
      if (run.length >= length && (best === undefined || run.length < best.length)) {
        best = run;
      }
    }
    if (best === undefined) {
      return undefined;
    }
    const start = best.start;
    best.start += length;
    best.length -= length;
    if (best.length === 0) {
      this.#runs.splice(this.#runs.indexOf(best), 1);
    }
    return start;
  }

  /** Makes [start, start + length) free, joining it with its free neighbours. */
  free(start: number, length: number): void {
    const end = start + length;
    let index = this.#runs.findIndex((run) => run.start >= end);
    index = index < 0 ? this.#runs.length : index;
    const before = this.#runs[index - 1];
    const after = this.#runs[index];
    const run = { start, length };
    let replaced = 0;
    if (after !== undefined && after.start === end && end % this.#boundary !== 0) {
      run.length += after.length;
      replaced += 1;
    }
    if (before !== undefined && before.start + before.length === start && start % this.#boundary !== 0) {
      run.start = before.start;
      run.length += before.length;
      replaced += 1;
      index -= 1;
    }
    this.#runs.splice(index, replaced, run);
  }

  /** Takes [start, start + length) out of the space if that is exactly one free run; says whether it was. */
  withdraw(start: number, length: number): boolean {
    const index = this.#runs.findIndex((run) => run.start === start && run.length === length);
    if (index >= 0) {
      this.#runs.splice(index, 1);
    }
    return index >= 0;
  }
}
