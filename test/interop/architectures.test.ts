// Every architecture that Debian's QEMUs save, every page size, machine types from 2.0 on. Slow suite: their QEMUs are a part of the
// toolbox that has to be asked for. What the same machines left behind is in test/recorded, and read in every run.

import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { fillToolbox } from '../toolbox/toolbox.js';
import { interopTest, type Lab } from './lab.js';
import { canSave, type Machine, type MachineFormat, machines, type SavedMachine, saveMachine } from './machines.js';
import { Ramferry } from './ramferry.js';

interface Inspected {
  readonly format: string;
  readonly machine: string;
  readonly targetPageSize: number;
  readonly complete: boolean;
  readonly warnings: readonly string[];
  readonly blocks: readonly { readonly name: string; readonly sha256: string }[];
}

interface Difference {
  readonly blocks: readonly { readonly name: string; readonly differing: number }[];
}

const sha256 = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex');

/** Runs a verb that has to end with `status`, and returns the document it prints. */
const answer = async <Document>(lab: Lab, status: number, ...verb: readonly string[]): Promise<Document> => {
  const exit = await Ramferry.run(lab, ...verb, '--json', '--quiet');
  assert.equal(exit.status, status, `${verb.join(' ')}: ${exit.stdout}\n${exit.stderr}`);
  return JSON.parse(exit.stdout) as Document;
};

const checkFile = async (
  lab: Lab,
  machine: Machine,
  format: MachineFormat,
  { file, machine: type, block, content }: SavedMachine,
): Promise<void> => {
  const raw = lab.path(`${format}.raw`);
  const [shown, { valid }] = await Promise.all([
    answer<Inspected>(lab, 0, 'inspect', file, '--digest'),
    answer<{ valid: boolean }>(lab, 0, 'verify', file),
    answer(lab, 0, 'convert', file, raw, '--to', 'raw', '--block', block),
  ]);
  assert.deepEqual(
    [shown.machine, shown.format, shown.complete, shown.targetPageSize],
    [type, format, true, machine.pageSize],
  );
  assert.equal(shown.blocks.find(({ name }) => name === block)?.sha256, sha256(content));
  if (machine.warning === undefined) {
    assert.deepEqual(shown.warnings, []);
  } else {
    assert.match(shown.warnings.join('\n'), machine.warning);
  }
  assert.equal(valid, true);
  assert.equal(sha256(readFileSync(raw)), sha256(content));
};

/** How many pages differ. */
const pagesThatDiffer = (a: Buffer, b: Buffer, pageSize: number): number => {
  let count = 0;
  for (let at = 0; at < a.length; at += pageSize) {
    count += a.subarray(at, at + pageSize).equals(b.subarray(at, at + pageSize)) ? 0 : 1;
  }
  return count;
};

const checkMachine = async (lab: Lab, machine: Machine): Promise<void> => {
  const stream = await saveMachine(lab, machine, 'stream', 3);
  await checkFile(lab, machine, 'stream', stream);
  const format = canSave(machine, 'mapped-ram') ? 'mapped-ram' : 'stream';
  const changed = await saveMachine(lab, machine, format, 4);
  await checkFile(lab, machine, format, changed);
  const { blocks } = await answer<Difference>(lab, 1, 'diff', stream.file, changed.file);
  const expected = pagesThatDiffer(stream.content, changed.content, machine.pageSize);
  assert.ok(expected > 0);
  assert.equal(blocks.find(({ name }) => name === stream.block)?.differing, expected);
};

/** Why the machines cannot be had. */
const missing = (): string | undefined =>
  process.env['RAMFERRY_SLOW'] === '1'
    ? fillToolbox(['qemu-10-others']).get('qemu-10-others')
    : 'RAMFERRY_SLOW=1 is not set';

const reason = missing();
for (const machine of machines) {
  const name = `${machine.name}: its stream and its mapped-ram file hold its memory`;
  if (reason === undefined) {
    interopTest(name, (lab) => checkMachine(lab, machine), [machine.release ?? '10']);
  } else {
    test(name, { skip: reason }, () => {});
  }
}
