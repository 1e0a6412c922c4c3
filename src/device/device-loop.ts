// The main loop of a device's thread, whatever started the thread.
//
//   ┌─▶ unpark ─▶ guest runs? ── yes ─▶ service ─┐
//   │                └── no ─────────────────────┴─▶ park ─▶ sleep: on the doorbell, or until the guest runs ─┐
//   └─────────────────────────────────────────────────────────────────────────────────────────────────────────┘
//
// A device stores to guest memory, so its thread is one of the dirty log's writers: a stopped guest is one whose devices have
// parked too, and then no hint is taken and no store comes after the last sync (G-7).

import { FULL_RING_MS } from './hint-receiver.js';
import type { VirtioDevice } from './virtio-device.js';

export const GuestRunState = { stopped: 0, running: 1, quit: 2 } as const;
export type GuestRunState = (typeof GuestRunState)[keyof typeof GuestRunState];

/** The guest as a device's thread sees it. */
export interface DeviceThread {
  /** The thread's end of the dirty log: a `StoreBarrierWriter`. */
  readonly barrier: { park(): void; unpark(): void };
  /** Looked at after each `unpark`. */
  runState(): GuestRunState;
  /** Returns when the state may have changed from `stopped`. */
  sleepStopped(): void;
}

/** Serves the device until the guest quits. Ring the device's doorbell then. */
export function runDevice(
  device: { readonly virtio: VirtioDevice; service(): boolean },
  { barrier, runState, sleepStopped }: DeviceThread,
): void {
  for (;;) {
    barrier.unpark();
    const state = runState();
    // Before looking for work: what is announced meanwhile must end the sleep.
    const { doorbell } = device.virtio;
    const again = state === GuestRunState.running && device.service();
    barrier.park();
    if (state === GuestRunState.quit) {
      return;
    }
    if (state === GuestRunState.stopped) {
      sleepStopped();
    } else if (!again) {
      device.virtio.sleep(doorbell, FULL_RING_MS);
    }
  }
}
