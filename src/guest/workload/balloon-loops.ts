// The main loops of the two threads that a guest with a balloon has besides its writers. Both store to guest RAM, so both
// are writers of the dirty log, and parked when the guest is stopped.

import { BalloonDevice, GuestMemory, GuestRunState, runDevice } from '../../device/index.js';
import { attachStoreBarrier, type StoreBarrierWriter } from '../../dirty-log/index.js';
import { RamBlockList } from '../../memory/index.js';
import { BalloonDriver, type BalloonZone, DriverRegister, driverRegisters } from './balloon-driver.js';
import { BalloonThread, lockWord, type SharedBalloon, type WorkloadShared } from './control.js';
import { addressOf, KERNEL_BLOCK, memoryRegions, writableBlocks } from './machine.js';
import { Mutex } from './mutex.js';
import { PageAllocator } from './page-allocator.js';
import { Region } from './region.js';
import { hasOption } from './registers.js';
import { isHeld, RunState, RunWord } from './run-word.js';

/** Should a wake-up be missing, it is made up for soon. */
const SLEEP_MS = 100;

/** What both have: the guest's memory, and their end of the dirty log. */
const attach = (shared: WorkloadShared, thread: number) => {
  const blocks = RamBlockList.attach(shared.blocks);
  const barrier = attachStoreBarrier(shared.barrier, shared.writerCount + thread, blocks.bitmaps);
  const tracker = shared.barrierChoice === 'none' ? undefined : barrier;
  const memory = new GuestMemory(memoryRegions(blocks), tracker ?? { markRange: () => {} });
  return { blocks, barrier, tracker, memory, runWord: new RunWord(new Int32Array(shared.control)) };
};

/** Returns when the guest runs, quits, or is held by somebody else than before. */
const sleepWhileHeld = (runWord: RunWord): void => {
  const { value } = runWord;
  if (isHeld(value)) {
    runWord.sleep(value);
  }
};

/** Runs the device until the guest quits. */
export function runBalloonDevice(shared: WorkloadShared, balloon: SharedBalloon): void {
  const { barrier, memory, runWord } = attach(shared, BalloonThread.device);
  runDevice(new BalloonDevice(balloon.device, memory), {
    barrier,
    runState: () => {
      const { value } = runWord;
      return isHeld(value)
        ? GuestRunState.stopped
        : value === RunState.quit
          ? GuestRunState.quit
          : GuestRunState.running;
    },
    sleepStopped: () => sleepWhileHeld(runWord),
  });
}

/** Runs the driver until the guest quits. Memory that is plugged later is not reported. */
export function runBalloonDriver(shared: WorkloadShared, balloon: SharedBalloon): void {
  const { blocks, barrier, tracker, memory, runWord } = attach(shared, BalloonThread.driver);
  const registers = driverRegisters(balloon.driver);
  // Only a guest that runs knows its options, and whether its driver was attached elsewhere.
  let driver: BalloonDriver | undefined;
  for (;;) {
    barrier.unpark();
    const run = runWord.value;
    if (run === RunState.running) {
      driver ??= new BalloonDriver({
        device: balloon.device.virtio,
        registers,
        memory,
        kernelAddress: addressOf(blocks.find(KERNEL_BLOCK)!),
        zones: zonesOf(shared, blocks, registers, tracker),
        pagePoison: hasOption(registers[DriverRegister.options]!, 'pagePoison'),
      });
      while (runWord.isRunning && driver.service()) {
        barrier.safepoint();
      }
    }
    barrier.park();
    if (run === RunState.quit) {
      return;
    }
    if (runWord.isRunning) {
      driver?.virtio.sleep(SLEEP_MS);
    } else {
      sleepWhileHeld(runWord);
    }
  }
}

/** The allocators of all writers, in the order of the addresses they hand out. */
const zonesOf = (
  shared: WorkloadShared,
  blocks: RamBlockList,
  registers: Float64Array,
  barrier: StoreBarrierWriter | undefined,
): BalloonZone[] => {
  const options = registers[DriverRegister.options]!;
  const pageOptions = { initOnAlloc: hasOption(options, 'initOnAlloc'), pagePoison: hasOption(options, 'pagePoison') };
  const control = new Int32Array(shared.control);
  return writableBlocks(blocks)
    .flatMap((block) =>
      Array.from({ length: shared.writerCount }, (_, writer) => {
        const region = new Region(block, writer, shared.writerCount);
        const mutex = new Mutex(control, lockWord(shared.writerCount, writer));
        return {
          allocator: new PageAllocator(region, pageOptions, mutex, barrier),
          address: addressOf(block) + region.firstDataPage * 4096,
          pages: region.dataPages,
        };
      }),
    )
    .filter(({ pages }) => pages > 0)
    .sort((one, other) => one.address - other.address);
};
