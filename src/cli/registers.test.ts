// `registers` from outside the process.

import assert from 'node:assert/strict';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { after, test } from 'node:test';
import { runCommand } from '../../test/command.js';
import { describedStream } from '../../test/described-stream.js';
import { cpuDevices, linuxKernelCpu } from '../../test/x86-cpu.js';

const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'ramferry-registers-'));
after(() => fs.rmSync(folder, { recursive: true }));

const save = (name: string, bytes: Uint8Array): string => {
  const file = path.join(folder, name);
  fs.writeFileSync(file, bytes);
  return file;
};

const file = save(
  'guest.mig',
  describedStream([
    ...cpuDevices(linuxKernelCpu),
    ...cpuDevices({ 'cr[0]': 0x6000_0010, eip: 0xfff0 }, { instance: 1, halted: true }),
  ]),
);

test('the text: mode, registers, names of bits, segments', async () => {
  const { status, stdout, stderr } = await runCommand('registers', file);
  assert.deepEqual([status, stderr], [0, '']);
  assert.match(stdout, /^vCPU 0: long mode, 4-level paging, CPL 0\n/);
  assert.match(stdout, / {2}rip {2}ffffffff81017a0b\n\n {2}rflags {2}0000000000000246 {2}IF ZF PF\n/);
  assert.match(stdout, /^ {2}cr0 {5}0000000080050033 {2}PG AM WP NE ET MP PE$/m);
  assert.match(stdout, /^ {2}cs {7}0010 {2}0000000000000000 {2}ffffffff {2}00a09b00 {2}DPL 0, code, 64-bit$/m);
  assert.match(stdout, /^vCPU 1: real mode, 16-bit code, paging off, CPL 0, halted$/m);
  assert.ok(Math.max(...stdout.split('\n').map((line) => line.length)) <= 80);
});

test('--cpu, --json', async () => {
  const { stdout } = await runCommand('registers', file, '--cpu', '1', '--json');
  const { machine, cpus } = JSON.parse(stdout) as { machine: string; cpus: Record<string, Record<string, unknown>>[] };
  assert.deepEqual([machine, cpus.length], ['pc-i440fx-10.0', 1]);
  const { cpu, mode, halted, registers, segments, gdt } = cpus[0]!;
  assert.deepEqual([cpu, mode, halted], [1, 'real', true]);
  assert.equal(registers!['rip'], '0x000000000000fff0');
  assert.deepEqual(segments!['tr'], {
    selector: '0x0000',
    base: '0x0000000000000000',
    limit: '0x00000000',
    flags: '0x00000000',
  });
  assert.deepEqual(gdt, { base: '0x0000000000000000', limit: '0x0000' });
});

test('--page-size is the size that the stream is read with', async () => {
  assert.equal((await runCommand('registers', file, '--page-size', '4096')).status, 0);
  const { status, stdout } = await runCommand('registers', file, '--page-size', '8192', '--json');
  const { error } = JSON.parse(stdout) as { error: { code: string; hint: string } };
  assert.equal(status, 3);
  assert.match(error.hint, /Pages of 8192 bytes were asked for|Leave --page-size out/);
});

test('a vCPU that is not there, a file without description', async () => {
  const missing = await runCommand('registers', file, '--cpu', '2');
  assert.deepEqual([missing.status, missing.stderr], [2, 'ramferry: The guest has no vCPU 2.\n  it has 0, 1\n']);
  assert.equal((await runCommand('registers', file, '--cpu', 'x')).status, 2);
  const without = await runCommand('registers', save('without.mig', describedStream(cpuDevices({}), '')), '--json');
  assert.equal(without.status, 1);
  assert.equal((JSON.parse(without.stdout) as { error: { code: string } }).error.code, 'NO_DESCRIPTION');
});
