// What a core for debuggers has besides memory, and what is told about it.

import { coreCpus } from '../../format/debugger-notes.js';
import type { PhysicalMemory } from '../../format/physical-memory.js';
import type { X86Registers } from '../../format/x86/registers.js';
import type { RamferryError } from '../../memory/errors.js';
import type { Conversion, WrittenCore } from './conversion.js';
import { type FoundKernel, findKernel } from './find-kernel.js';

export interface CoreDetails extends FoundKernel {
  readonly cpus: readonly X86Registers[];
  /** Why there are none. */
  readonly problem: RamferryError | undefined;
  readonly written: WrittenCore;
}

/** Reads what the file has of it; what it has not is told, and is no error: there is still memory. */
export const coreDetails = async (conversion: Conversion, memory: PhysicalMemory): Promise<CoreDetails> => {
  const { snapshot } = conversion;
  const { cpus, problem } = coreCpus(snapshot);
  const { kernel, vmcoreinfo } = await findKernel(conversion, memory, cpus);
  const missing = [
    ...(problem === undefined ? [] : [`No registers: ${problem.message}`]),
    ...cpus
      .filter(({ smm }) => smm)
      .map(({ cpu }) => `vCPU ${cpu} ran in system management mode: its registers are the firmware's.`),
    ...cpus
      .filter(({ nested }) => nested)
      .map(({ cpu }) => `vCPU ${cpu} ran a guest of its own: its registers are that guest's.`),
  ];
  return {
    cpus,
    problem,
    kernel,
    vmcoreinfo,
    written: {
      cpus: cpus.map(({ cpu, mode }) => ({ cpu, mode })),
      vmcoreinfoBytes: vmcoreinfo?.length ?? 0,
      notes: missing,
    },
  };
};
