// The notes of a core: registers of the vCPUs and the kernel's VMCOREINFO, as far as a memory file has them.

import { RamferryError } from '../memory/errors.js';
import { elfNote } from './elf-note.js';
import type { Snapshot } from './snapshot.js';
import { cpuNotes, is64BitGuest } from './x86/cpu-notes.js';
import { type X86Registers, x86Registers } from './x86/registers.js';

const VMCOREINFO_TYPE = 0;

/** What is known of a guest's vCPUs. */
export interface CoreCpus {
  /** Empty if the file has no registers. */
  readonly cpus: readonly X86Registers[];
  /** Why there are none. */
  readonly problem?: RamferryError;
}

/** A file that has no registers, or damaged ones, still has memory. */
export const coreCpus = ({ summary, configuration }: Snapshot): CoreCpus => {
  try {
    return { cpus: x86Registers(summary, configuration.machine) };
  } catch (error) {
    if (error instanceof RamferryError) {
      return { cpus: [], problem: error };
    }
    throw error;
  }
};

/** Whether the core is one of a 64-bit machine, as it is also taken for without registers. */
export const isCoreOf64Bits = (cpus: readonly X86Registers[]): boolean => cpus.length === 0 || is64BitGuest(cpus);

/**
 * The notes, one behind the other, as dump-guest-memory writes them.
 * @param vmcoreinfo the kernel's text, `deviceVmcoreinfo(…)`
 */
export const debuggerNotes = (cpus: readonly X86Registers[], vmcoreinfo: Uint8Array | undefined): Uint8Array => {
  const notes = cpuNotes(cpus);
  if (vmcoreinfo !== undefined) {
    notes.push(elfNote('VMCOREINFO', VMCOREINFO_TYPE, vmcoreinfo));
  }
  const bytes = new Uint8Array(notes.reduce((sum, note) => sum + note.length, 0));
  let at = 0;
  for (const note of notes) {
    bytes.set(note, at);
    at += note.length;
  }
  return bytes;
};
