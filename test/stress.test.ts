// Random schedules against workload guests whose threads write all the time: they are migrated and saved in every way, to
// destinations and to others, while their owner pauses, resumes, cancels, plugs, resizes and changes parameters, engines die and
// links break. Whatever happens, afterwards exactly one guest does what its owner wants, with all of its memory, and nobody has
// left anything behind on it.
//
//   RAMFERRY_STRESS_SEED=SEED         plays that schedule alone
//   RAMFERRY_STRESS_SCHEDULES=COUNT   plays so many; else some dozens, with RAMFERRY_SLOW=1 two thousand

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { Course } from './stress/course.js';
import { watchEngines } from './stress/engine-threads.js';
import { guestKinds, StressGuest } from './stress/stress-guest.js';

const { RAMFERRY_SLOW, RAMFERRY_STRESS_SEED, RAMFERRY_STRESS_SCHEDULES } = process.env;
const SCHEDULES = Number(RAMFERRY_STRESS_SCHEDULES ?? (RAMFERRY_SLOW === '1' ? 2000 : 30));
/** Another run is another two thousand schedules; those of every `npm test` are the same. */
const FIRST_SEED = RAMFERRY_SLOW === '1' ? Date.now() % 1_000_000_000 : 1;
/** Two thousand take the better part of an hour on two busy cores: so often something is heard of them. */
const PROGRESS_EVERY = 50;
/** Faults that are told before the rest is given up. */
const FAULTS_MAX = 10;

const folder = mkdtempSync(join(tmpdir(), 'ramferry-stress-'));
after(() => rmSync(folder, { recursive: true, force: true }));

watchEngines();

/** Longer than anything in a schedule waits by itself. */
const SCHEDULE_MS = 90_000;

const withinTime = async <Value>(work: Promise<Value>): Promise<Value> => {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error('it hangs')), SCHEDULE_MS);
  });
  try {
    return await Promise.race([work, late]);
  } finally {
    clearTimeout(timer);
  }
};

const seeds =
  RAMFERRY_STRESS_SEED === undefined
    ? Array.from({ length: SCHEDULES }, (_, index) => FIRST_SEED + index)
    : RAMFERRY_STRESS_SEED.split(',').map(Number);

test(`${seeds.length} random schedules: one guest runs, whole, and nobody has left anything on it`, {
  timeout: 60_000 + seeds.length * 5000,
}, async (t) => {
  const guests = new Map<number, StressGuest>();
  t.after(async () => {
    for (const { guest } of guests.values()) {
      await guest.shutdown();
    }
  });
  const outcomes = new Map<string, number>();
  const faults: string[] = [];
  let compared = 0;
  for (const [turn, seed] of seeds.entries()) {
    if (turn > 0 && turn % PROGRESS_EVERY === 0) {
      process.stderr.write(`stress: ${turn} of ${seeds.length} schedules played, ${faults.length} went wrong\n`);
    }
    const kind = seed % guestKinds.length;
    const stress = guests.get(kind) ?? (await StressGuest.start(kind, seed));
    guests.set(kind, stress);
    await stress.resume();
    const course = new Course(stress, seed, folder);
    try {
      const { what, status, isGone, wasCompared } = await withinTime(course.play());
      const outcome = `${what} ${status}`;
      outcomes.set(outcome, (outcomes.get(outcome) ?? 0) + 1);
      compared += wasCompared ? 1 : 0;
      if (isGone) {
        await stress.guest.shutdown();
        guests.delete(kind);
      } else {
        // The others wait without a processor.
        await stress.guest.stop();
      }
    } catch (error) {
      faults.push(`RAMFERRY_STRESS_SEED=${seed} ${(error as Error).message}\n    ${course.story}`);
      process.stderr.write(`stress: ${faults.at(-1)}\n`);
      // Whatever is wrong with it must not be the next schedule's fault.
      await stress.guest.shutdown();
      guests.delete(kind);
      if (faults.length === FAULTS_MAX) {
        break;
      }
    }
  }
  t.diagnostic(`${compared} compared; ${JSON.stringify(Object.fromEntries([...outcomes].toSorted()))}`);
  if (faults.length > 0) {
    throw new Error(`${faults.length} schedules went wrong, from seed ${seeds[0]} on:\n${faults.join('\n')}`);
  }
});
