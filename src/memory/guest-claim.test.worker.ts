// A thread that claims a guest again and again, and looks whether anything changes while it has it.

import { parentPort, workerData } from 'node:worker_threads';
import { BitmapMemory } from './bitmap-memory.js';
import type { RamferryError } from './errors.js';
import { ClaimRecord } from './guest-claim.js';
import type { SharedRamBlockList } from './ram-block-list.js';

export interface ClaimantStart {
  readonly shared: SharedRamBlockList;
  /** Whether to end; how many threads run. */
  readonly over: Int32Array;
  /** Claim once, when `over[0]` is set, as one who knows this version; `over[1]` says that it is done. */
  readonly version?: number;
}

export interface ClaimantResult {
  readonly claims: number;
  readonly violations: number;
}

const LOOKS = 200;

const { shared, over, version: known } = workerData as ClaimantStart;
const bitmaps = BitmapMemory.attach(shared.bitmaps);
const record = new ClaimRecord(bitmaps.words, shared.claims);
const result = { claims: 0, violations: 0 };
/** Every holder counts up, looks whether it is alone, and counts down. */
const holders = new Int32Array(bitmaps.memory.buffer, bitmaps.scratch, 1);

/** Whether the list changed by anything but a resize, which breaks the claim. */
const isDisturbed = (version: number, isWhole: () => boolean): boolean => record.version !== version && isWhole();

if (known !== undefined) {
  parentPort?.postMessage('ready');
  Atomics.wait(over, 0, 0);
  record.claim('migration', known);
  Atomics.store(over, 1, 1);
  Atomics.notify(over, 1);
}
Atomics.add(over, 1, 1);
while (Atomics.load(over, 0) === 0) {
  const { version } = record;
  try {
    const claim = record.claim('migration', version);
    result.claims += 1;
    const isWhole = (): boolean => {
      try {
        claim.check(() => undefined);
        return true;
      } catch {
        return false;
      }
    };
    let isBad = Atomics.add(holders, 0, 1) !== 0;
    for (let look = 0; look < LOOKS; look += 1) {
      isBad ||= isDisturbed(version, isWhole);
    }
    Atomics.sub(holders, 0, 1);
    result.violations += isBad ? 1 : 0;
    claim.release();
  } catch (error) {
    const { code } = error as RamferryError;
    result.violations += code === 'GUEST_BUSY' || code === 'BLOCK_LIST_STALE' ? 0 : 1;
  }
}
parentPort?.postMessage(result satisfies ClaimantResult);
