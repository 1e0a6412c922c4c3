// The Linux kernel in a saved guest, for dumps that are to say where it is.

import { vcpusOf } from '../../format/linux/kernel-answer.js';
import type { KernelMemory } from '../../format/linux/kernel-memory.js';
import { kernelOfDevice, kernelOfScan } from '../../format/linux/linux-kernel.js';
import { LinuxScan } from '../../format/linux/memory-scan.js';
import type { PhysicalMemory } from '../../format/physical-memory.js';
import { inSlices } from '../read-memory-file.js';
import type { Conversion } from './conversion.js';

/** The kernel that QEMU's vmcoreinfo device knows of; without one, all memory is searched. */
export const findKernel = async (
  { snapshot, surroundings }: Conversion,
  memory: PhysicalMemory,
): Promise<KernelMemory | undefined> => {
  const vcpus = vcpusOf(snapshot);
  const known = kernelOfDevice(snapshot, memory, vcpus);
  if (known !== undefined) {
    return known.memory;
  }
  const scan = new LinuxScan(snapshot);
  await inSlices(surroundings, 'searching', scan.totalBytes, () => scan.advance());
  return kernelOfScan(scan.vmcoreinfos, memory, vcpus)?.memory;
};
