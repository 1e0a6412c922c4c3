// A deterministic scheduler: a test runs real code on one thread and asks, at every point where another agent could
// come between, which agent goes on. `explore` runs the test once for every sequence of answers.

/** One schedule: a sequence of choices, replayed from a prefix and extended by zeros. */
export class Schedule {
  readonly #prefix: readonly number[];
  readonly #pick: ((options: number) => number) | undefined;
  /** What was chosen, and out of how many. */
  readonly choices: number[] = [];
  readonly options: number[] = [];

  constructor(prefix: readonly number[], pick?: (options: number) => number) {
    this.#prefix = prefix;
    this.#pick = pick;
  }

  /** A number in [0, options). */
  choose(options: number): number {
    const choice = this.#prefix[this.choices.length] ?? this.#pick?.(options) ?? 0;
    this.choices.push(choice);
    this.options.push(options);
    return choice;
  }
}

/**
 * Runs `run` for every schedule there is, depth first. Returns how many there were.
 * @throws whatever `run` throws, with the schedule appended to the message
 */
export async function explore(run: (schedule: Schedule) => Promise<void>): Promise<number> {
  let prefix: number[] | undefined = [];
  let runs = 0;
  while (prefix !== undefined) {
    const schedule = new Schedule(prefix);
    await attempt(run, schedule);
    runs += 1;
    prefix = successor(schedule);
  }
  return runs;
}

/** Runs `run` for `count` random schedules. */
export async function sample(run: (schedule: Schedule) => Promise<void>, count: number, seed: number): Promise<void> {
  let state = seed;
  const pick = (options: number): number => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * options);
  };
  for (let index = 0; index < count; index += 1) {
    await attempt(run, new Schedule([], pick));
  }
}

async function attempt(run: (schedule: Schedule) => Promise<void>, schedule: Schedule): Promise<void> {
  try {
    await run(schedule);
  } catch (error) {
    throw new Error(`${(error as Error).message} (schedule ${schedule.choices.join('')})`, { cause: error });
  }
}

/** The next choice sequence in depth-first order, or undefined after the last. */
function successor({ choices, options }: Schedule): number[] | undefined {
  for (let at = choices.length - 1; at >= 0; at -= 1) {
    if ((choices[at] as number) + 1 < (options[at] as number)) {
      return [...choices.slice(0, at), (choices[at] as number) + 1];
    }
  }
  return undefined;
}
