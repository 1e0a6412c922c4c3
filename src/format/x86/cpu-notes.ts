// The notes with the registers of a vCPU, as QEMU's dump-guest-memory writes them for x86: what every debugger knows
// (NT_PRSTATUS), and QEMU's own with segments and control registers, which crash and drgn read.

import { elfNote } from '../elf-note.js';
import { LittleEndianWriter } from '../little-endian-writer.js';
import type { DescriptorTable, GeneralRegister, Segment, SegmentRegister, X86Registers } from './registers.js';

const NT_PRSTATUS = 1;
const QEMU_TYPE = 0;
const QEMU_VERSION = 1;
const EFER_LONG_ACTIVE = 1n << 10n;

/** `struct elf_prstatus` of Linux, of which only the process id and the registers are filled in. */
const PRSTATUS = {
  64: { bytes: 336, idAt: 32, registersAt: 112 },
  32: { bytes: 144, idAt: 24, registersAt: 72 },
} as const;

/** Bytes of QEMU's structure, which says how long it is. */
const QEMU_STATE_BYTES = 440;

/**
 * Whether a guest is taken for a 64-bit one, which its first vCPU decides: whatever it runs at the moment, its kernel has 64
 * bits.
 */
export const is64BitGuest = ([first]: readonly X86Registers[]): boolean =>
  first !== undefined && (first.efer & EFER_LONG_ACTIVE) !== 0n;

/** The notes of all vCPUs, in QEMU's order: those of one kind after those of the other. */
export const cpuNotes = (cpus: readonly X86Registers[]): Uint8Array[] => {
  const bits = is64BitGuest(cpus) ? 64 : 32;
  return [
    ...cpus.map((cpu) => elfNote('CORE', NT_PRSTATUS, prstatus(cpu, bits))),
    ...cpus.map((cpu) => elfNote('QEMU', QEMU_TYPE, qemuState(cpu))),
  ];
};

const prstatus = (cpu: X86Registers, bits: 32 | 64): Uint8Array => {
  const { bytes, idAt, registersAt } = PRSTATUS[bits];
  const out = new LittleEndianWriter(bytes);
  // Threads of a debugger: ids of processes begin at 1.
  out
    .skip(idAt)
    .u32(cpu.cpu + 1)
    .skip(registersAt - idAt - 4);
  if (bits === 64) {
    putRegisters64(out, cpu);
  } else {
    putRegisters32(out, cpu);
  }
  return out.skip(bytes - out.written.length).written;
};

/** `struct user_regs_struct` of x86-64. */
const putRegisters64 = (out: LittleEndianWriter, { general, rip, rflags, segments }: X86Registers): void => {
  const put = (...names: GeneralRegister[]): void => {
    for (const name of names) {
      out.u64(general[name]);
    }
  };
  const selector = (name: SegmentRegister): LittleEndianWriter => out.u64(segments[name].selector);
  put('r15', 'r14', 'r13', 'r12', 'rbp', 'rbx', 'r11', 'r10');
  put('r9', 'r8', 'rax', 'rcx', 'rdx', 'rsi', 'rdi');
  out.u64(0); // No system call is in the middle of being restarted.
  out.u64(rip);
  selector('cs').u64(rflags);
  put('rsp');
  selector('ss').u64(segments.fs.base).u64(segments.gs.base);
  for (const name of ['ds', 'es', 'fs', 'gs'] as const) {
    selector(name);
  }
};

/** `struct user_regs_struct` of i386. */
const putRegisters32 = (out: LittleEndianWriter, { general, rip, rflags, segments }: X86Registers): void => {
  const put = (value: bigint): LittleEndianWriter => out.u32(Number(BigInt.asUintN(32, value)));
  const selector = (name: SegmentRegister): LittleEndianWriter => out.u32(segments[name].selector & 0xffff);
  for (const name of ['rbx', 'rcx', 'rdx', 'rsi', 'rdi', 'rbp', 'rax'] as const) {
    put(general[name]);
  }
  for (const name of ['ds', 'es', 'fs', 'gs'] as const) {
    selector(name);
  }
  out.u32(0);
  put(rip);
  selector('cs');
  put(rflags);
  put(general.rsp);
  selector('ss');
};

const qemuState = (cpu: X86Registers): Uint8Array => {
  const { general, rip, rflags, segments, ldt, tr, gdt, idt } = cpu;
  const out = new LittleEndianWriter(QEMU_STATE_BYTES);
  out.u32(QEMU_VERSION).u32(QEMU_STATE_BYTES);
  const order = ['rax', 'rbx', 'rcx', 'rdx', 'rsi', 'rdi', 'rsp', 'rbp'] as const;
  for (const name of [...order, 'r8', 'r9', 'r10', 'r11', 'r12', 'r13', 'r14', 'r15'] as const) {
    out.u64(general[name]);
  }
  out.u64(rip).u64(rflags);
  const table = ({ base, limit }: DescriptorTable): Segment => ({ selector: 0, base, limit, flags: 0 });
  const { cs, ds, es, fs, gs, ss } = segments;
  for (const { selector, limit, flags, base } of [cs, ds, es, fs, gs, ss, ldt, tr, table(gdt), table(idt)]) {
    out.u32(selector).u32(limit).u32(flags).u32(0).u64(base);
  }
  out.u64(cpu.cr0).u64(0).u64(cpu.cr2).u64(cpu.cr3).u64(cpu.cr4);
  return out.u64(cpu.kernelGsBase).written;
};
