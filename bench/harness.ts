// The benchmark harness. A group is a module bench/NAME.ts that exports `group`; bench/main.ts lists the groups.
//
// A benchmark is a pair of functions that do the same work and return a figure each: ours and a peer's. They run
// alternately, so that a busy moment of the machine or a change of its clock hits both; the medians are compared.
//
//   warm-up (3): ours, peer, ours, peer, … │ run 1: ours, peer │ run 2: peer, ours │ run 3: ours, peer │ … │ medians
//
// The warm-up is for the compilers: a wasm loop starts in baseline code, at 75 to 100 % of its later speed, and only a
// later call enters the optimized code.

/** One run: prepares, measures the work alone, and returns the figure in the benchmark's unit. */
export type Measure = () => number | Promise<number>;

export interface Benchmark {
  readonly name: string;
  /** What the figures count, e.g. `ms` or `GB/s`. */
  readonly unit: string;
  readonly better: 'lower' | 'higher';
  readonly ours: Measure;
  /** Who the peer is, and its measure; without one, why there is none. */
  readonly peer: { readonly name: string; readonly measure: Measure } | { readonly missing: string };
  /** Runs that count. */
  readonly runs?: number;
  /** Runs before them. */
  readonly warmUpRuns?: number;
}

export interface BenchmarkGroup {
  readonly name: string;
  /** Prepares memories, peers and processes, hands over the benchmarks one by one, and cleans up in `finally`. */
  run(): AsyncIterable<Benchmark>;
}

/** A row of the JSON (DESIGN section 5): medians; `ratio` above 1 where we are better; null without a peer. */
export interface BenchmarkRow {
  readonly group: string;
  readonly name: string;
  readonly unit: string;
  readonly ours: number;
  readonly peerName: string;
  readonly peer: number | null;
  readonly ratio: number | null;
  readonly runs: number;
}

const DEFAULT_RUNS = 9;
const DEFAULT_WARM_UP_RUNS = 3;

const median = (values: readonly number[]): number => {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
};

/** Runs one benchmark. */
export const measure = async (group: string, benchmark: Benchmark): Promise<BenchmarkRow> => {
  const { name, unit, better, ours, peer, runs = DEFAULT_RUNS, warmUpRuns = DEFAULT_WARM_UP_RUNS } = benchmark;
  const theirs = 'missing' in peer ? undefined : peer.measure;
  const figures = { ours: [] as number[], peer: [] as number[] };
  for (let run = 1 - warmUpRuns; run <= runs; run++) {
    // Whoever comes second finds the caches as the other left them; take turns.
    const order = run % 2 === 0 ? (['ours', 'peer'] as const) : (['peer', 'ours'] as const);
    for (const side of order) {
      const figure = await (side === 'ours' ? ours() : theirs?.());
      if (figure !== undefined && run > 0) {
        figures[side].push(figure);
      }
    }
  }
  const ourFigure = median(figures.ours);
  const peerFigure = theirs === undefined ? null : median(figures.peer);
  const ratio = peerFigure === null ? null : better === 'higher' ? ourFigure / peerFigure : peerFigure / ourFigure;
  const peerName = 'missing' in peer ? peer.missing : peer.name;
  return { group, name, unit, ours: ourFigure, peerName, peer: peerFigure, ratio, runs };
};

const COLUMNS = ['group', 'benchmark', 'unit', 'ours', 'peer', 'ratio', 'peer is'] as const;

/** Three significant digits, without an exponent. */
const figureText = (value: number | null): string =>
  value === null ? '-' : value >= 100 ? value.toFixed(0) : value.toFixed(value >= 10 ? 1 : value >= 1 ? 2 : 3);

/** A row while the others are measured. */
export const figures = ({ ours, peer, unit, peerName }: BenchmarkRow): string =>
  `${figureText(ours)} ${unit}${peer === null ? '' : `, ${peerName} ${figureText(peer)} ${unit}`}`;

/** The rows as an aligned table, figures to the right. Rows in which the peer is better are marked. */
export const table = (rows: readonly BenchmarkRow[]): string => {
  const cells = rows.map((row) => [
    row.group,
    row.name,
    row.unit,
    figureText(row.ours),
    figureText(row.peer),
    row.ratio === null ? '-' : `${row.ratio.toFixed(2)}${row.ratio < 1 ? ' <' : '  '}`,
    row.peerName,
  ]);
  const widths = COLUMNS.map((title, column) => Math.max(title.length, ...cells.map((cell) => cell[column]!.length)));
  const line = (cell: readonly string[]): string =>
    cell
      .map((text, column) =>
        column >= 3 && column <= 5 ? text.padStart(widths[column]!) : text.padEnd(widths[column]!),
      )
      .join('  ')
      .trimEnd();
  return [line(COLUMNS), line(widths.map((width) => '-'.repeat(width))), ...cells.map(line)].join('\n');
};
