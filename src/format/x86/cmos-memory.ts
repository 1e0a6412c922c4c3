// How much RAM the firmware of a PC is told about, by the CMOS memory of its clock. QEMU fills it in whenever a machine starts, and
// it is saved with the clock; where RAM is split below and above 4 GiB is in there, whatever the option that split it.

import { DescribedDevices } from '../stream/device-fields.js';
import type { StreamSummary } from '../stream/stream-handler.js';

const SECTION = 'mc146818rtc';
const CMOS_BYTES = 128;

const MIB = 2 ** 20;

/** What sizes are rounded down to. */
export const CMOS_UNIT = 64 * 1024;

/** Sizes above 4 GiB are counted modulo this. */
export const CMOS_HIGH_MODULUS = CMOS_UNIT * 2 ** 24;

/** RAM as CMOS has it. */
export interface CmosMemory {
  /** Below 4 GiB, rounded down to whole 64 KiB. */
  readonly low: number;
  /** From 4 GiB on, rounded down to whole 64 KiB, modulo 1 TiB. */
  readonly high: number;
}

/**
 * What the saved clock says; undefined if the machine has none.
 * @throws RamferryError `invalid` if the clock's section is not what the VM description says
 */
export const cmosMemory = (summary: StreamSummary): CmosMemory | undefined => {
  const bytes = cmosBytes(summary);
  if (bytes === undefined || bytes.length < CMOS_BYTES) {
    return undefined;
  }
  const above16 = (bytes[0x34] + bytes[0x35] * 0x100) * CMOS_UNIT;
  // With no more than 16 MiB there is nothing above, and how much there is between 1 and 16 MiB is counted in KiB.
  const low = above16 > 0 ? 16 * MIB + above16 : MIB + (bytes[0x17] + bytes[0x18] * 0x100) * 1024;
  const high = (bytes[0x5b] + bytes[0x5c] * 0x100 + bytes[0x5d] * 0x1_0000) * CMOS_UNIT;
  return { low: low - (low % CMOS_UNIT), high };
};

const cmosBytes = (summary: StreamSummary): Uint8Array | undefined => {
  const devices = new DescribedDevices(summary);
  const section = devices.named(SECTION)[0];
  if (section === undefined) {
    return undefined;
  }
  // Where nothing describes it: it has been what the section begins with in every version.
  return devices.isDescribed
    ? devices.fields(section).fields.bytes('cmos_data')
    : devices.body(section).subarray(0, CMOS_BYTES);
};
