import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { toolboxFolder, toolboxPrograms } from './toolbox.js';

test('the QEMUs of the toolbox, the newest first, by their numbers and not by their letters', () => {
  const folder = mkdtempSync(join(tmpdir(), 'ramferry-toolbox-'));
  const before = process.env['RAMFERRY_TOOLBOX'];
  process.env['RAMFERRY_TOOLBOX'] = folder;
  try {
    for (const name of ['qemu-7.2', 'qemu-11.1', 'qemu-11.12', 'qemu-10', '.part-qemu-13', 'qemu-img', 'guest']) {
      mkdirSync(join(folder, name));
    }
    const expected = ['qemu-11.12', 'qemu-11.1', 'qemu-10', 'qemu-7.2'];
    assert.deepEqual(
      toolboxPrograms(),
      expected.map((name) => join(folder, name, 'qemu-system-x86_64')),
    );
    process.env['RAMFERRY_TOOLBOX'] = join(folder, 'none');
    assert.deepEqual(toolboxPrograms(), []);
    delete process.env['RAMFERRY_TOOLBOX'];
    assert.match(toolboxFolder(), /[/\\]\.toolbox$/);
  } finally {
    if (before === undefined) {
      delete process.env['RAMFERRY_TOOLBOX'];
    } else {
      process.env['RAMFERRY_TOOLBOX'] = before;
    }
    rmSync(folder, { recursive: true });
  }
});
