// The registers of the vCPU that runs the virtio-mem driver, the only state it has outside of guest RAM; its device state.

import { RamferryError } from '../../memory/index.js';

/** Index of each register: whole numbers, kept as float64. */
export const VirtioMemRegister = {
  /** How far the driver has brought up the device: a `DriverPhase`. */
  phase: 0,
  // Of its queue (DriverQueueState); one more than the chain in flight, 0 for none.
  nextUsed: 1,
  notified: 2,
  inFlight: 3,
  // The request in flight: type, first device block, count.
  type: 4,
  first: 5,
  count: 6,
  // Where it fills a device block that was just plugged: one more than the block, 0 for none; the next data page of it.
  filling: 7,
  fillIndex: 8,
  // The next page to check.
  checkBlock: 9,
  checkIndex: 10,
  random: 11,
  /** Last generation given to a page, and the sum of all that are in the tables. */
  generation: 12,
  generationSum: 13,
  // What it has done.
  written: 14,
  checked: 15,
  bad: 16,
  /** Bytes per second that it writes, besides filling; 0 for as fast as possible. */
  rate: 17,
  // Answers by type: ack, nack, busy, error.
  answers: 18,
} as const;

export const DriverPhase = { none: 0, resetting: 1, running: 2 } as const;

const REGISTER_COUNT = 22;

export const VIRTIO_MEM_DRIVER_VERSION = 1;

export const allocateVirtioMemRegisters = (): SharedArrayBuffer => new SharedArrayBuffer(REGISTER_COUNT * 8);

/** Device state: the registers as big-endian float64. */
export const encodeVirtioMemRegisters = (registers: Float64Array): Uint8Array => {
  const view = new DataView(new ArrayBuffer(REGISTER_COUNT * 8));
  for (let index = 0; index < REGISTER_COUNT; index += 1) {
    view.setFloat64(index * 8, registers[index]!);
  }
  return new Uint8Array(view.buffer);
};

/** Throws WORKLOAD_STATE_INVALID for what `encodeVirtioMemRegisters` cannot have written. */
export const decodeVirtioMemRegisters = (body: Uint8Array, registers: Float64Array): void => {
  const view = new DataView(body.buffer, body.byteOffset, body.length);
  for (let index = 0; index < REGISTER_COUNT; index += 1) {
    const value = body.length === REGISTER_COUNT * 8 ? view.getFloat64(index * 8) : Number.NaN;
    if (!(Number.isSafeInteger(value) && value >= 0)) {
      throw new RamferryError(
        'invalid',
        'WORKLOAD_STATE_INVALID',
        `The state of the virtio-mem driver, ${body.length} bytes, has ${value} in register ${index}`,
        { value: String(value) },
      );
    }
    registers[index] = value;
  }
};
