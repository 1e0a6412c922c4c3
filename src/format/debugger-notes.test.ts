// What a core says besides memory: the order of its notes, and what becomes of files that have not all of it.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { describedStream } from '../../test/described-stream.js';
import { cpuDevices, linuxKernelCpu } from '../../test/x86-cpu.js';
import { coreCpus, debuggerNotes, isCoreOf64Bits } from './debugger-notes.js';
import { openSnapshot } from './open-snapshot.js';
import type { Snapshot } from './snapshot.js';

const open = (bytes: Uint8Array): Snapshot =>
  openSnapshot((at, target) => target.set(bytes.subarray(at, at + target.length)), bytes.length);

/** Name, type and length of each note, and the description of the last one as text. */
const readNotes = (notes: Uint8Array) => {
  const bytes = Buffer.from(notes);
  const heads: [name: string, type: number, length: number][] = [];
  let last = '';
  for (let at = 0; at < bytes.length; ) {
    const [nameBytes, length, type] = [0, 4, 8].map((field) => bytes.readUInt32LE(at + field)) as [
      number,
      number,
      number,
    ];
    const start = at + 12 + Math.ceil(nameBytes / 4) * 4;
    heads.push([bytes.toString('latin1', at + 12, at + 12 + nameBytes), type, length]);
    last = bytes.toString('latin1', start, start + length);
    at = start + Math.ceil(length / 4) * 4;
  }
  return { heads, last };
};

test("the kernel's text comes behind the registers, in a note of its own, whatever its length", () => {
  const { cpus, problem } = coreCpus(open(describedStream(cpuDevices(linuxKernelCpu))));
  assert.equal(problem, undefined);
  for (const text of ['OSRELEASE=6.1\n', 'OSRELEASE=6.1.0\n', '']) {
    const { heads, last } = readNotes(debuggerNotes(cpus, new TextEncoder().encode(text)));
    assert.deepEqual(heads, [
      ['CORE\0', 1, 336],
      ['QEMU\0', 0, 440],
      ['VMCOREINFO\0', 0, text.length],
    ]);
    assert.equal(last, text);
  }
  assert.deepEqual(readNotes(debuggerNotes(cpus, undefined)).heads.length, 2);
  assert.deepEqual(debuggerNotes([], undefined), new Uint8Array(0));
});

test('a core without registers is taken for one of a 64-bit machine', () => {
  const { cpus, problem } = coreCpus(open(describedStream(cpuDevices(linuxKernelCpu), '')));
  assert.deepEqual([cpus, problem?.code, isCoreOf64Bits(cpus)], [[], 'NO_DESCRIPTION', true]);
  const real = coreCpus(open(describedStream(cpuDevices({ eip: 0xfff0 })))).cpus;
  assert.deepEqual([real.length, isCoreOf64Bits(real)], [1, false]);
});

test('what is no fault of the file is not taken for one', () => {
  const broken = {
    get summary(): never {
      throw new TypeError('a mistake of ours');
    },
    configuration: { machine: 'pc' },
  } as unknown as Snapshot;
  assert.throws(() => coreCpus(broken), TypeError);
});
