// The thread of the vCPU that runs the virtio-mem driver. It runs the device as well, as a hypervisor does that handles a vCPU's
// exits in the vCPU's thread, so that a stopped guest has a device at rest. Between asking and answering it can be stopped.

import { parentPort, workerData } from 'node:worker_threads';
import { GUEST_PAGE_SIZE } from '../../../kernels/kernels.js';
import { attachStoreBarrier } from '../../dirty-log/index.js';
import { confineHugePages } from '../../memory/huge-pages-node.js';
import { RamBlockList } from '../../memory/index.js';
import { releaseMemory } from '../../memory/release-memory-node.js';
import { Control, type WorkloadShared } from './control.js';
import { isHeld, RunState, RunWord } from './run-word.js';
import { VirtioMemDriver } from './virtio-mem-driver.js';
import { VirtioMemMachine } from './virtio-mem-machine.js';
import { VirtioMemRegister } from './virtio-mem-registers.js';
import { VirtioMemZone } from './virtio-mem-zone.js';
import type { WriterThreadMessage } from './writer-thread-node.js';

/** Steps between two looks at the clock. */
const BURST_STEPS = 64;
/** How long to sleep while ahead of the rate, and with nothing to do. */
const PACING_MS = 1;
const IDLE_MS = 5;
/** A throttled vCPU has so much time between two forced sleeps. */
const SLICE_MS = 10;
/** Pages that a guest which could not run for a while writes at once at most to make up for it. */
const CATCH_UP_PAGES = 4096;

export interface VirtioMemThreadData {
  readonly shared: WorkloadShared;
  /** Its number among the store barrier's writers. */
  readonly writer: number;
}

const { shared, writer } = workerData as VirtioMemThreadData;
const control = new Int32Array(shared.control);
const runWord = new RunWord(control);
const blocks = RamBlockList.attach(shared.blocks);
const barrier = attachStoreBarrier(shared.barrier, writer, blocks.bitmaps);
const marks = shared.barrierChoice === 'none' ? undefined : barrier;
const machine = new VirtioMemMachine(shared.virtioMem!, blocks, {
  ...(marks !== undefined && { barrier: marks }),
  release: (offset, length) => releaseMemory(machine.region, offset, length),
});
const { device, registers } = machine;
confineHugePages(machine.region);

/** Made when the guest runs: before, its memory may not be there yet. */
let guest: { readonly driver: VirtioMemDriver; readonly zone: VirtioMemZone } | undefined;

const makeGuest = (): NonNullable<typeof guest> => {
  const zone = new VirtioMemZone(machine, marks);
  return { zone, driver: new VirtioMemDriver(machine, (block) => zone.giveUp(block)) };
};

let pagesDue = 0;
let paceStart = performance.now();
let sliceStart = paceStart;

/** Works until told to stop or there is a reason to sleep; returns how long, in milliseconds. */
const runSlice = (): number => {
  guest ??= makeGuest();
  const { driver, zone } = guest;
  for (;;) {
    const now = performance.now();
    const throttle = Atomics.load(control, Control.throttle);
    if (throttle > 0 && now >= sliceStart + SLICE_MS) {
      const sleepMs = (SLICE_MS * throttle) / (100 - throttle);
      sliceStart = paceStart = now + sleepMs;
      return sleepMs;
    }
    const pagesPerMs = registers[VirtioMemRegister.rate]! / GUEST_PAGE_SIZE / 1000;
    pagesDue = Math.min(CATCH_UP_PAGES, pagesDue + Math.max(0, now - paceStart) * pagesPerMs);
    paceStart = Math.max(paceStart, now);
    for (let step = 0; step < BURST_STEPS; step += 1) {
      barrier.safepoint();
      if (!runWord.isRunning) {
        return 0;
      }
      if (machine.wantedBytes !== device.requestedSize) {
        device.requestSize(machine.wantedBytes);
      }
      if (device.service() || driver.step(now) || zone.fill()) {
        continue;
      }
      zone.checkNext();
      if (pagesPerMs > 0 && pagesDue < 1) {
        return PACING_MS;
      }
      pagesDue = Math.max(0, pagesDue - 1);
      if (!zone.churn()) {
        return IDLE_MS;
      }
    }
  }
};

parentPort?.postMessage('parked' satisfies WriterThreadMessage);
for (;;) {
  barrier.unpark();
  const run = runWord.value;
  const sleepMs = run === RunState.running ? runSlice() : Number.POSITIVE_INFINITY;
  barrier.park();
  if (run === RunState.quit) {
    break;
  }
  if (sleepMs > 0) {
    runWord.sleep(run, sleepMs);
  }
  if (isHeld(run)) {
    paceStart = performance.now();
  }
}
