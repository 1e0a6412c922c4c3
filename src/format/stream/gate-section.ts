// A guest is held at a destination by a page of its memory that one of its devices needs while it is loaded, and that is not
// sent: QEMU waits for it before it gets to the order to run, which is what takes the guest's disks.

import { be32 } from '../bytes.js';
import { type DeviceSection, FOOTER_BYTES } from './device-sections.js';
import { bodyPositions, type DeviceTail } from './device-tail.js';
import type { StreamSummary } from './stream-handler.js';

/** Device state whose last section waits for memory. */
export interface GatedSections {
  /** Everything that comes in front of the gate. */
  readonly devices: DeviceTail;
  /** The FULL section that is loaded last. */
  readonly gate: Uint8Array;
}

/**
 * Of an x86 guest that SeaBIOS started, accelerated or not: QEMU patches the option ROM in the guest's memory, and so reads it. If
 * the memory is taken away instead, it finds no ROM there and refuses the device.
 */
const VAPIC = 'kvm-tpr-opt';
/** The section ends with five words; the first says what became of the ROM, 0 that the guest has none. */
const VAPIC_STATE_FROM_END = 20;

/** Takes out of device state the section that can hold the guest; undefined if none is known to. */
export const splitGate = ({ tail, devices }: Pick<StreamSummary, 'tail' | 'devices'>): GatedSections | undefined => {
  const positions = bodyPositions(devices, tail);
  const endOf = (index: number): number => positions[index]! + devices[index]!.bytes - tail.early.length;
  const index = devices.findIndex(
    (device, index) =>
      device.name === VAPIC &&
      device.bytes >= VAPIC_STATE_FROM_END &&
      be32(tail.sections, endOf(index) - VAPIC_STATE_FROM_END) !== 0,
  );
  if (index < 0) {
    return undefined;
  }
  const end = endOf(index) + FOOTER_BYTES;
  const start = endOf(index) - devices[index]!.bytes - headerBytes(devices[index]!);
  const sections = new Uint8Array(tail.sections.length - (end - start));
  sections.set(tail.sections.subarray(0, start));
  sections.set(tail.sections.subarray(end), start);
  return { devices: { ...tail, sections }, gate: tail.sections.slice(start, end) };
};

/** Type, id, name with its length, instance, version. */
const headerBytes = ({ name }: DeviceSection): number => 1 + 4 + 1 + name.length + 4 + 4;
