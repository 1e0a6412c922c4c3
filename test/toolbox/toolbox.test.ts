import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, test } from 'node:test';
import { parts } from './toolbox.js';

const given = process.env['RAMFERRY_TOOLBOX'];
const backports = parts.find(({ name }) => name === 'qemu-backports')!;
const others = parts.filter((part) => part !== backports);

beforeEach(() => {
  process.env['RAMFERRY_TOOLBOX'] = mkdtempSync(join(tmpdir(), 'ramferry-toolbox-'));
});

afterEach(() => {
  rmSync(process.env['RAMFERRY_TOOLBOX']!, { recursive: true });
  process.env['RAMFERRY_TOOLBOX'] = given;
  if (given === undefined) {
    delete process.env['RAMFERRY_TOOLBOX'];
  }
});

const put = (name: string, recipe: string): void => {
  const folder = join(process.env['RAMFERRY_TOOLBOX']!, name);
  mkdirSync(folder);
  writeFileSync(join(folder, 'recipe'), recipe);
};

test('a part is complete by its recipe, whatever version of QEMU it brought', () => {
  assert.equal(backports.isComplete(), false);
  put('.part-qemu-12.0-x', backports.recipe);
  assert.equal(backports.isComplete(), false, 'a folder without a name of its own is nobody');
  put('qemu-12.0', backports.recipe);
  assert.equal(backports.isComplete(), true);
  assert.deepEqual(
    others.map((part) => part.isComplete()),
    others.map(() => false),
  );
});

test('no part is taken for another', () => {
  assert.equal(new Set(parts.map(({ recipe }) => recipe)).size, parts.length);
});

test('a part of an older recipe is made anew', () => {
  put('qemu-11.1', `${backports.recipe}, as it was`);
  assert.equal(backports.isComplete(), false);
});

test('only the backport can be done without, other architectures and debuggers have to be asked for', () => {
  assert.deepEqual(
    parts.filter(({ need }) => need === 'optional'),
    [backports],
  );
  assert.deepEqual(
    parts.filter(({ need }) => need === 'on request').map(({ name }) => name),
    ['qemu-10-others', 'debuggers'],
  );
});

test('a failure is remembered for the run that met it, and no longer', () => {
  assert.equal(backports.failure('1'), undefined);
  backports.noteFailure('1', 'no such suite');
  assert.equal(backports.failure('1'), 'no such suite');
  assert.equal(backports.failure('2'), undefined);
  assert.deepEqual(
    others.map((part) => part.failure('1')),
    others.map(() => undefined),
  );
  backports.forgetFailure();
  assert.equal(backports.failure('1'), undefined);
});
