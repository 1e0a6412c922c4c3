// QEMU's vmcoreinfo device: the guest's driver writes into it where in memory the kernel has its VMCOREINFO, as an ELF note.

import { be32, be64 } from '../bytes.js';
import type { PhysicalMemory } from '../physical-memory.js';
import { DescribedDevices } from '../stream/device-fields.js';
import type { StreamSummary } from '../stream/stream-handler.js';
import { parseVmcoreinfo, VMCOREINFO_LIMIT, type Vmcoreinfo } from './vmcoreinfo.js';

/** Whether there is one, formats of the host and of the guest, size, address: big-endian like all of QEMU's. */
const SECTION_BYTES = 17;
const FORMAT_ELF = 1;
const NOTE_HEADER_BYTES = 12;

/** Where the note is in guest memory. */
export interface VmcoreinfoNote {
  readonly address: number;
  readonly bytes: number;
}

/** The note that the saved device knows of; undefined if the guest has no such device, or no driver for it. */
export const vmcoreinfoNote = (summary: StreamSummary): VmcoreinfoNote | undefined => {
  const devices = new DescribedDevices(summary);
  const [section] = devices.named('vmcoreinfo');
  const body = section && devices.body(section);
  if (body === undefined || body.length < SECTION_BYTES || body[0] !== 1 || body[3]! * 256 + body[4]! !== FORMAT_ELF) {
    return undefined;
  }
  const bytes = be32(body, 5);
  const address = be64(body, 9);
  return bytes > NOTE_HEADER_BYTES && Number.isSafeInteger(address) ? { address, bytes } : undefined;
};

/** VMCOREINFO out of the note; undefined if there is no such note. */
export const readVmcoreinfoNote = (
  memory: PhysicalMemory,
  { address, bytes }: VmcoreinfoNote,
): Vmcoreinfo | undefined => {
  const note = new Uint8Array(Math.min(bytes, NOTE_HEADER_BYTES + 64 + VMCOREINFO_LIMIT));
  if (!memory.tryRead(address, note)) {
    return undefined;
  }
  const view = new DataView(note.buffer);
  const start = NOTE_HEADER_BYTES + Math.ceil(view.getUint32(0, true) / 4) * 4;
  const end = start + view.getUint32(4, true);
  return end > note.length ? undefined : parseVmcoreinfo(note.subarray(start, end));
};
