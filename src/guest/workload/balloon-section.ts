// The device section of a guest's balloon driver. That of the device is QEMU's (src/format/virtio).

import { RamferryError } from '../../memory/index.js';
import { DRIVER_REGISTER_COUNT } from './balloon-driver.js';

export const DRIVER_SECTION = 'workload-balloon-driver';
export const DRIVER_VERSION = 1;

/** The driver's registers, big-endian. */
export function encodeDriver(registers: Float64Array): Uint8Array {
  const body = new Uint8Array(DRIVER_REGISTER_COUNT * 8);
  const view = new DataView(body.buffer);
  for (const [index, value] of registers.entries()) {
    view.setFloat64(index * 8, value);
  }
  return body;
}

/** Loads them. Throws WORKLOAD_STATE_INVALID for what `encodeDriver` cannot have written. */
export function decodeDriver(body: Uint8Array, registers: Float64Array): void {
  const view = new DataView(body.buffer, body.byteOffset, body.length);
  const values = Array.from({ length: Math.floor(body.length / 8) }, (_, index) => view.getFloat64(index * 8));
  if (
    body.length !== DRIVER_REGISTER_COUNT * 8 ||
    !values.every((value) => Number.isSafeInteger(value) && value >= 0)
  ) {
    throw new RamferryError(
      'invalid',
      'WORKLOAD_STATE_INVALID',
      `The state of a balloon driver has ${body.length} bytes that are no registers`,
      { value: body.length },
    );
  }
  registers.set(values);
}
