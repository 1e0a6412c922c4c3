// VMCOREINFO of a guest whose machine has the vmcoreinfo device: its Linux has told QEMU where the note is, for dumps.

import { latin1 } from '../bytes.js';
import type { PhysicalMemory } from '../physical-memory.js';
import { DescribedDevices } from '../stream/device-fields.js';
import type { StreamSummary } from '../stream/stream-handler.js';
import { VMCOREINFO_LIMIT } from './vmcoreinfo.js';

/** The section is what the guest has written to the device. QEMU never gave it other fields, so that no description is needed. */
const SECTION_BYTES = 17;
const FORMAT_ELF = 1;

/** Header of the ELF note, and its name, padded. */
const HEADER_BYTES = 12;
const NAME = 'VMCOREINFO\0\0';

/** The text of the note that the guest has told its device; undefined if it has none, or what is there is no such note. */
export const deviceVmcoreinfo = (summary: StreamSummary, memory: PhysicalMemory): Uint8Array | undefined => {
  const devices = new DescribedDevices(summary);
  const [section] = devices.named('vmcoreinfo');
  const body = section && devices.body(section);
  if (body === undefined || body.length !== SECTION_BYTES) {
    return undefined;
  }
  const view = new DataView(body.buffer, body.byteOffset, body.length);
  const hasNote = view.getUint8(0) !== 0 && view.getUint16(3) === FORMAT_ELF;
  return hasNote ? readNote(memory, Number(view.getBigUint64(9))) : undefined;
};

const readNote = (memory: PhysicalMemory, address: number): Uint8Array | undefined => {
  const head = new Uint8Array(HEADER_BYTES + NAME.length);
  if (!memory.tryRead(address, head)) {
    return undefined;
  }
  const textBytes = new DataView(head.buffer).getUint32(4, true);
  if (latin1(head, HEADER_BYTES, head.length) !== NAME || textBytes > VMCOREINFO_LIMIT) {
    return undefined;
  }
  const text = new Uint8Array(textBytes);
  return memory.tryRead(address + head.length, text) ? text : undefined;
};
