// The Linux kernel in a saved guest, for dumps that are to say where it is.

import type { KernelMemory } from '../../format/linux/kernel-memory.js';
import { kernelAmong, kernelOfText } from '../../format/linux/linux-kernel.js';
import { LinuxScan } from '../../format/linux/memory-scan.js';
import { deviceVmcoreinfo } from '../../format/linux/vmcoreinfo-device.js';
import type { PhysicalMemory } from '../../format/physical-memory.js';
import type { X86Registers } from '../../format/x86/registers.js';
import { inSlices } from '../read-memory-file.js';
import type { Conversion } from './conversion.js';

export interface FoundKernel {
  /** Undefined if no kernel is there. */
  readonly kernel: KernelMemory | undefined;
  /** The text that goes into a dump: the one that QEMU's device knows, whatever it is, as QEMU does; else the kernel's. */
  readonly vmcoreinfo: Uint8Array | undefined;
}

/** The kernel that QEMU's vmcoreinfo device knows of; without one, all memory is searched. */
export const findKernel = async (
  { snapshot, surroundings }: Conversion,
  memory: PhysicalMemory,
  cpus: readonly X86Registers[],
): Promise<FoundKernel> => {
  const note = deviceVmcoreinfo(snapshot.summary, memory);
  const known = note && kernelOfText(note, memory, cpus);
  if (known !== undefined) {
    return { kernel: known, vmcoreinfo: note };
  }
  const scan = new LinuxScan(snapshot);
  await inSlices(surroundings, 'searching', scan.totalBytes, () => scan.advance());
  const kernel = kernelAmong(scan.vmcoreinfos, memory, cpus);
  return { kernel, vmcoreinfo: note ?? (kernel && Buffer.from(kernel.info.text, 'latin1')) };
};
