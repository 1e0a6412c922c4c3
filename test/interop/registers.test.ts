// Registers of saved guests against those that QEMU itself shows of the same guest, stopped: `info registers`.

import assert from 'node:assert/strict';
import { type CorpusKind, corpusDestination, corpusStream, startFromCorpus } from './corpus.js';
import { interopTest, type Lab, type LabGuest } from './lab.js';
import { Ramferry } from './ramferry.js';
import { ALL_RELEASES } from './releases.js';

type Values = Readonly<Record<string, bigint>>;

interface Cpu {
  readonly cpu: number;
  readonly halted: boolean;
  readonly cpl: number;
  readonly smm: boolean;
  readonly mode: string;
  readonly registers: Readonly<Record<string, string>>;
  readonly segments: Readonly<Record<string, Readonly<Record<string, string>>>>;
  readonly gdt: Readonly<Record<string, string>>;
  readonly idt: Readonly<Record<string, string>>;
}

/** What QEMU prints of each vCPU: `CR3=…` as `cr3`, and of a segment `ES =selector base limit flags` as four values. */
const infoRegisters = async (guest: LabGuest): Promise<Values[]> => {
  const text = String(await guest.qmp.execute('human-monitor-command', { 'command-line': 'info registers -a' }));
  return text
    .split(/^CPU#\d+/m)
    .slice(1)
    .map((cpu) => {
      const values: Record<string, bigint> = {};
      const put = (name: string, value: string): void => {
        values[name.toLowerCase()] = BigInt(`0x${value}`);
      };
      for (const [, name, selector, base, limit, flags] of cpu.matchAll(
        /^([A-Z]+) *=([0-9a-f]{4}) ([0-9a-f]+) ([0-9a-f]{8}) ([0-9a-f]{8})/gm,
      )) {
        put(`${name}.selector`, selector!);
        put(`${name}.base`, base!);
        put(`${name}.limit`, limit!);
        put(`${name}.flags`, flags!);
      }
      for (const [, name, base, limit] of cpu.matchAll(/^([GI]DT)= +([0-9a-f]+) ([0-9a-f]{8})/gm)) {
        put(`${name}.base`, base!);
        put(`${name}.limit`, limit!);
      }
      for (const [, name, value] of cpu.matchAll(/\b([A-Z][A-Z0-9]+) ?=([0-9a-f]+)(?=\s|$)/g)) {
        put(name!, value!);
      }
      return values;
    });
};

/** Ours by QEMU's names. It prints 32 bits of what has no more in the mode of the vCPU. */
const expectedOf = (cpu: Cpu, shown: Values): Values => {
  const isLong = 'rip' in shown;
  const width = isLong ? 64 : 32;
  const narrow = (text: string, bits: number): bigint => BigInt.asUintN(bits, BigInt(text));
  const values: Record<string, bigint> = {
    cpl: BigInt(cpu.cpl),
    hlt: cpu.halted ? 1n : 0n,
    smm: cpu.smm ? 1n : 0n,
  };
  for (const [name, text] of Object.entries(cpu.registers)) {
    const qemuName = name === 'rflags' ? 'rfl' : name;
    if (isLong || !/^r\d/.test(name)) {
      values[isLong ? qemuName : qemuName.replace(/^r/, 'e')] = narrow(
        text,
        name === 'efer' || /^dr/.test(name) ? 64 : width,
      );
    }
  }
  for (const [name, { selector, base, limit, flags }] of Object.entries(cpu.segments)) {
    values[`${name}.selector`] = BigInt(selector!);
    values[`${name}.base`] = narrow(base!, width);
    values[`${name}.limit`] = BigInt(limit!);
    values[`${name}.flags`] = BigInt(flags!) & 0xff_ff00n;
  }
  for (const name of ['gdt', 'idt'] as const) {
    values[`${name}.base`] = narrow(cpu[name]['base']!, width);
    values[`${name}.limit`] = BigInt(cpu[name]['limit']!);
  }
  return values;
};

/** What `info registers` does not print. */
const UNSHOWN = ['star', 'lstar', 'cstar', 'fmask', 'kernelGsBase', 'estar', 'dr4', 'dr5'];

const compare = async (lab: Lab, guest: LabGuest, file: string): Promise<Cpu[]> => {
  const shown = await infoRegisters(guest);
  const { status, stdout, stderr } = await Ramferry.run(lab, 'registers', file, '--json');
  assert.equal(status, 0, `${stdout}\n${stderr}`);
  const { cpus } = JSON.parse(stdout) as { cpus: Cpu[] };
  assert.equal(cpus.length, shown.length);
  for (const [index, values] of shown.entries()) {
    const expected = Object.entries(expectedOf(cpus[index]!, values)).filter(([name]) => !UNSHOWN.includes(name));
    const hex = (value: bigint | undefined): string => (value === undefined ? 'not shown' : value.toString(16));
    assert.deepEqual(
      expected.map(([name]) => `${name} ${hex(values[name])}`),
      expected.map(([name, value]) => `${name} ${hex(value)}`),
      `vCPU ${index}`,
    );
    assert.ok(expected.length > 55);
  }
  return cpus;
};

/** The saved guest in a QEMU that has loaded it and does not run. */
const loaded = async (lab: Lab, kind: CorpusKind): Promise<{ guest: LabGuest; file: string }> => {
  const { file } = await corpusStream(lab, kind);
  const guest = await corpusDestination(lab, kind);
  await guest.stop();
  await guest.loadStream(file);
  return { guest, file };
};

interopTest(
  'registers: those of a guest that ran and was stopped, in long mode, are the ones that QEMU shows',
  async (lab) => {
    const guest = await startFromCorpus(lab, 'plain');
    await guest.stop();
    const file = lab.path('stopped.mig');
    await guest.saveStream(file);
    const [cpu] = await compare(lab, guest, file);
    // A kernel that runs has all of them.
    assert.deepEqual([cpu!.mode, cpu!.registers['cr3'] !== '0x0000000000000000'], ['long', true]);
  },
  ALL_RELEASES,
);

interopTest(
  'registers: two vCPUs after a reset, in real mode',
  async (lab) => {
    const { guest, file } = await loaded(lab, 'devices');
    const cpus = await compare(lab, guest, file);
    assert.deepEqual(
      cpus.map(({ cpu, mode, halted }) => [cpu, mode, halted]),
      [
        [0, 'real', false],
        [1, 'real', true],
      ],
    );
  },
  ALL_RELEASES,
);
