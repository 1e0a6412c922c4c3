// The main loop of a writer's thread: when it works, how fast, and where it can be stopped.
//
//   ┌─▶ unpark ─▶ RUN is running? ── yes ─▶ slice of steps, a safepoint between any two ─┐
//   │                  └───────────── no ─────────────────────────────────────────────────┴─▶ park ─▶ sleep on RUN ─┐
//   └──────────────────────────────────────────────────────────────────────────────────────────────────────────────┘
//
// It only ever sleeps while parked, and on the RUN word: neither a stop nor a handshake waits for a sleeper.

import { GUEST_PAGE_SIZE } from '../../../kernels/kernels.js';
import { attachStoreBarrier } from '../../dirty-log/index.js';
import { RamBlockList, type SharedRamBlockList } from '../../memory/index.js';
import { Control, lockWord, registersOf, type WorkloadShared } from './control.js';
import { writableBlocks } from './machine.js';
import { Mutex } from './mutex.js';
import { runStep } from './programs.js';
import { Register } from './registers.js';
import { isHeld, RunState, RunWord } from './run-word.js';
import { WorkloadWriter } from './writer.js';

/** Steps between two looks at the clock. */
const BURST_STEPS = 64;
/** A throttled writer has so much time between two forced sleeps (spec/algorithms.md 14.6). */
const SLICE_MS = 10;
/** How long to sleep while ahead of the rate, and with nothing to do. */
const PACING_MS = 1;
const IDLE_MS = 5;
/** Pages that are checked for each four that are written, and before each sleep. */
const CHECKS_PER_BURST = BURST_STEPS / 4;
/** A writer that could not run for a while does not write more than this much afterwards to make up for it. */
const CATCH_UP_PAGES = 4096;

/** Runs writer number `writer` until the guest quits. `receive` returns the next block list that was posted, if any. */
export function runWriter(shared: WorkloadShared, writer: number, receive: () => SharedRamBlockList | undefined): void {
  const control = new Int32Array(shared.control);
  const runWord = new RunWord(control);
  const blocks = RamBlockList.attach(shared.blocks);
  const barrier = attachStoreBarrier(shared.barrier, writer, blocks.bitmaps);
  const registers = registersOf(shared.registers, writer);
  const machine = new WorkloadWriter({
    writer,
    writerCount: shared.writerCount,
    registers,
    barrier: shared.barrierChoice === 'none' ? undefined : barrier,
    mutex: new Mutex(control, lockWord(shared.writerCount, writer)),
  });
  let published = 0;

  /** Takes over new block lists, acknowledges them, and takes in blocks that every writer has the map of (TS-5). */
  const plugIn = (): void => {
    if (Atomics.load(control, Control.listVersion) !== control[Control.takenOver + writer]) {
      for (let list = receive(); list !== undefined; list = receive()) {
        blocks.update(list);
      }
      Atomics.store(control, Control.takenOver + writer, blocks.version);
      Atomics.notify(control, Control.takenOver + writer);
    }
    const allowed = Atomics.load(control, Control.published);
    if (allowed !== published) {
      published = allowed;
      machine.takeIn(writableBlocks(blocks).slice(0, allowed));
    }
  };

  let paceStart = performance.now();
  let pagesDue = 0;
  let pagesBefore = registers[Register.written]!;

  /** Steps that the rate allows now. */
  const allowance = (now: number): number => {
    const pagesPerMs = registers[Register.rate]! / shared.writerCount / GUEST_PAGE_SIZE / 1000;
    const pagesDone = registers[Register.written]! - pagesBefore;
    pagesDue = Math.min(CATCH_UP_PAGES, pagesDue + Math.max(0, now - paceStart) * pagesPerMs - pagesDone);
    paceStart = Math.max(paceStart, now);
    pagesBefore += pagesDone;
    if (pagesPerMs === 0 || registers[Register.ready] === 0) {
      // What was written before the workload began, or without a limit, is no debt.
      pagesDue = 0;
      return BURST_STEPS;
    }
    return Math.min(BURST_STEPS, Math.floor(pagesDue));
  };

  let sliceStart = performance.now();

  /** Works until told to stop or there is a reason to sleep; returns how long, in milliseconds. */
  const runSlice = (): number => {
    for (;;) {
      plugIn();
      const now = performance.now();
      const throttle = Atomics.load(control, Control.throttle);
      if (throttle > 0 && now >= sliceStart + SLICE_MS) {
        const sleepMs = (SLICE_MS * throttle) / (100 - throttle);
        // What was not written because of the throttle is not owed: a throttled guest is a slower guest.
        sliceStart = paceStart = now + sleepMs;
        return sleepMs;
      }
      const steps = allowance(now);
      for (let i = 0; i < steps; i += 1) {
        barrier.safepoint();
        if (!runWord.isRunning) {
          return 0;
        }
        if (registers[Register.stepsLeft] === 0) {
          return Number.POSITIVE_INFINITY;
        }
        if (!runStep(machine)) {
          // Nothing will change any more: a limit on the steps left is reached as well.
          if (registers[Register.stepsLeft] !== Number.POSITIVE_INFINITY) {
            registers[Register.stepsLeft] = 0;
          }
          machine.checkNext(CHECKS_PER_BURST);
          return IDLE_MS;
        }
        registers[Register.stepsLeft]! -= 1;
        if (i % 4 === 3) {
          machine.checkNext(1);
        }
      }
      if (steps < BURST_STEPS) {
        machine.checkNext(CHECKS_PER_BURST);
        return PACING_MS;
      }
    }
  };

  for (;;) {
    barrier.unpark();
    // Only now: whoever stopped the guest before has seen this writer parked, or sees it run.
    const run = runWord.value;
    const sleepMs = run === RunState.running ? runSlice() : Number.POSITIVE_INFINITY;
    barrier.park();
    if (run === RunState.quit) {
      return;
    }
    if (sleepMs > 0) {
      runWord.sleep(run, sleepMs);
    }
    if (isHeld(run)) {
      // Time spent stopped is not owed, nor are pages of which the state that was loaded meanwhile tells.
      paceStart = performance.now();
      pagesBefore = registers[Register.written]!;
    }
  }
}
