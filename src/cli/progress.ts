// What goes to stderr while a verb runs: one live line on a terminal, plain lines elsewhere.

import { formatBytes, formatDuration, formatPercent, formatRate } from './format.js';
import { messageText, oneLine } from './safe-text.js';

/** Everything but the phase is shown as far as it is known. */
export interface ProgressState {
  /** What is being done, in a word or two; QEMU's migration status where there is one. */
  readonly phase: string;
  readonly totalBytes?: number | undefined;
  readonly remainingBytes?: number | undefined;
  /** Bytes of guest memory that get done per second. */
  readonly bytesPerSecond?: number | undefined;
  /** The same over the last seconds: what an estimate goes by. */
  readonly averageBytesPerSecond?: number | undefined;
  /** It goes on when somebody else wants it to: nobody can say when it ends. */
  readonly isWaiting?: boolean | undefined;
  readonly iteration?: number | undefined;
  /** Bytes per second that the guest dirties meanwhile. */
  readonly dirtyBytesPerSecond?: number | undefined;
}

export interface ProgressOptions {
  readonly stream: { write(text: string): unknown; readonly columns?: number | undefined };
  readonly mode: 'bar' | 'lines' | 'none';
  /** Milliseconds of a monotonic clock. */
  readonly now: () => number;
}

const REDRAW_MS = 100;
const LINE_MS = 1000;

/** Work that is over sooner needs no progress. A line stays where it is written, so it takes more to be worth one. */
const SHORT_BAR_MS = 300;
const SHORT_LINE_MS = 3000;

const DEFAULT_COLUMNS = 80;
const MIN_BAR = 10;
const MAX_BAR = 30;

const ERASE_LINE = '\r\x1b[K';

/** Time until nothing remains, in milliseconds; undefined if it is dirtied as fast as it is sent, or others decide when. */
export const estimateMs = ({
  remainingBytes,
  bytesPerSecond,
  averageBytesPerSecond = bytesPerSecond,
  dirtyBytesPerSecond,
  isWaiting,
}: ProgressState): number | undefined => {
  const gain = (averageBytesPerSecond ?? 0) - (dirtyBytesPerSecond ?? 0);
  return remainingBytes === undefined || gain <= 0 || isWaiting === true ? undefined : (remainingBytes / gain) * 1000;
};

/** Figures with the rank by which they go when the line is too narrow: 0 stays longest. */
const figures = (state: ProgressState): [text: string, rank: number][] => {
  const { totalBytes, remainingBytes, bytesPerSecond, iteration, dirtyBytesPerSecond } = state;
  const eta = estimateMs(state);
  const list: ([string, number] | undefined | false)[] = [
    totalBytes !== undefined &&
      remainingBytes !== undefined &&
      totalBytes > 0 && [formatPercent(1 - remainingBytes / totalBytes), 0],
    bytesPerSecond !== undefined && [formatRate(bytesPerSecond), 1],
    remainingBytes !== undefined && [`${formatBytes(remainingBytes)} left`, 3],
    iteration !== undefined && [`iteration ${iteration}`, 4],
    dirtyBytesPerSecond !== undefined && [`dirtying ${formatRate(dirtyBytesPerSecond)}`, 5],
    eta !== undefined && [`ETA ${formatDuration(eta)}`, 2],
  ];
  return list.filter((figure) => Array.isArray(figure));
};

/** All that is known, as one line. */
export const progressLine = (state: ProgressState): string =>
  [state.phase, ...figures(state).map(([text]) => text)].join(', ');

/** The live line, at most `columns` characters long. */
export const progressBar = (state: ProgressState, columns: number): string => {
  const { totalBytes = 0, remainingBytes } = state;
  const hasBar = totalBytes > 0 && remainingBytes !== undefined;
  let shown = figures(state);
  const join = (bar: string): string =>
    [state.phase, ...(bar === '' ? [] : [bar]), ...shown.map(([text]) => text)].join('  ');
  const room = (): number => columns - join('').length - '  []'.length;
  while (shown.length > 1 && room() < (hasBar ? MIN_BAR : -'  []'.length)) {
    const leastImportant = Math.max(...shown.map(([, rank]) => rank));
    shown = shown.filter(([, rank]) => rank !== leastImportant);
  }
  const cells = Math.min(MAX_BAR, room());
  if (!hasBar || cells < MIN_BAR) {
    return join('').slice(0, columns);
  }
  const full = Math.floor(Math.max(0, Math.min(1, 1 - remainingBytes / totalBytes)) * cells);
  return join(`[${'#'.repeat(full)}${'-'.repeat(cells - full)}]`);
};

/** How long a rate counts: in a moment in which little gets done, nobody should read of hours. */
const AVERAGE_MS = 3000;

/** The rate of a phase, recent moments counting most. */
class AverageRate {
  #phase = '';
  #at = 0;
  #average: number | undefined;

  add({ phase, bytesPerSecond }: ProgressState, now: number): number | undefined {
    if (phase !== this.#phase || this.#average === undefined || bytesPerSecond === undefined) {
      this.#average = bytesPerSecond;
    } else {
      this.#average += (bytesPerSecond - this.#average) * (1 - Math.exp((this.#at - now) / AVERAGE_MS));
    }
    this.#phase = phase;
    this.#at = now;
    // Nothing at all gets done: it waits.
    return bytesPerSecond === 0 ? 0 : this.#average;
  }
}

export class Progress {
  readonly #options: ProgressOptions;
  #shownAt = Number.NEGATIVE_INFINITY;
  #shownPhase = '';
  #barIsShown = false;
  readonly #rate = new AverageRate();

  constructor(options: ProgressOptions) {
    this.#options = options;
  }

  /** For work of which nobody knows how long it takes: `update` is called after that time. */
  get shortWorkMs(): number {
    return this.#options.mode === 'bar' ? SHORT_BAR_MS : SHORT_LINE_MS;
  }

  /** May be called as often as one likes. */
  update(latest: ProgressState): void {
    const { mode, now, stream } = this.#options;
    const state = { ...latest, averageBytesPerSecond: this.#rate.add(latest, now()) };
    const interval = mode === 'bar' ? REDRAW_MS : LINE_MS;
    if (mode === 'none' || (state.phase === this.#shownPhase && now() - this.#shownAt < interval)) {
      return;
    }
    this.#shownAt = now();
    this.#shownPhase = state.phase;
    if (mode === 'bar') {
      // The last column stays free: some terminals wrap when it is written.
      stream.write(ERASE_LINE + oneLine(progressBar(state, (stream.columns ?? DEFAULT_COLUMNS) - 1)));
      this.#barIsShown = true;
    } else {
      stream.write(`${oneLine(progressLine(state))}\n`);
    }
  }

  /** A line that stays: `listening on …`, a warning. Not progress, so `--quiet` leaves it. */
  note(text: string): void {
    this.finish();
    this.#options.stream.write(`${messageText(text)}\n`);
  }

  /** Removes the live line. */
  finish(): void {
    if (this.#barIsShown) {
      this.#barIsShown = false;
      this.#options.stream.write(ERASE_LINE);
    }
  }
}
