import assert from 'node:assert/strict';
import { chmodSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, test } from 'node:test';
import { findQemu } from './find-qemu.js';

const environment = { ...process.env };
let folder = '';

/** A program that claims to be a QEMU of that version; returns its path. */
const fakeQemu = (place: string, version: string): string => {
  mkdirSync(join(folder, place), { recursive: true });
  const program = join(folder, place, 'qemu-system-x86_64');
  writeFileSync(program, `#!/bin/sh\necho "QEMU emulator version ${version} (Debian 1:x)"\n`);
  chmodSync(program, 0o755);
  return program;
};

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'ramferry-find-'));
  process.env['PATH'] = [join(folder, 'empty'), join(folder, 'bin')].join(':');
  delete process.env['RAMFERRY_QEMU'];
});

afterEach(() => {
  Object.assign(process.env, environment);
  if (environment['RAMFERRY_QEMU'] === undefined) {
    delete process.env['RAMFERRY_QEMU'];
  }
  rmSync(folder, { recursive: true });
});

test('RAMFERRY_QEMU comes before PATH, PATH before the others', async () => {
  assert.equal(await findQemu(), undefined);
  const others = [join(folder, 'missing'), fakeQemu('other', '10.0.13'), fakeQemu('third', '11.1.3')];
  const find = async (): Promise<string | undefined> => (await findQemu(undefined, others))?.program;
  assert.deepEqual(await findQemu(undefined, others), {
    program: others[1],
    version: { major: 10, minor: 0, micro: 13 },
  });
  const onPath = fakeQemu('bin', '8.2.2');
  assert.equal(await find(), onPath);
  const chosen = fakeQemu('own', '9.1.0');
  process.env['RAMFERRY_QEMU'] = chosen;
  assert.equal(await find(), chosen);
});

test('the first whose version is accepted is taken', async () => {
  fakeQemu('bin', '7.2.22');
  const newer = fakeQemu('other', '10.0.13');
  assert.equal((await findQemu(({ major }) => major >= 10, [newer]))?.program, newer);
  assert.equal(await findQemu(({ major }) => major >= 11, [newer]), undefined);
});

test('a RAMFERRY_QEMU that cannot be run is an error, not a reason to take another', async () => {
  fakeQemu('bin', '10.0.13');
  process.env['RAMFERRY_QEMU'] = join(folder, 'missing');
  await assert.rejects(findQemu(), { code: 'QEMU_NOT_RUNNABLE', file: join(folder, 'missing') });
});
