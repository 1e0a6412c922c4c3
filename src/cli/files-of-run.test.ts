// Every verb that reads and writes files refuses to write into what it reads, through the same check.

import assert from 'node:assert/strict';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { after, test } from 'node:test';
import { RunningCommand } from '../../test/command.js';
import { richStream } from '../../test/streams.js';
import { RamferryError } from '../memory/errors.js';
import { refuseToWriteInputs } from './files-of-run.js';

const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'ramferry-apart-'));
after(() => fs.rmSync(folder, { recursive: true }));

const { bytes } = richStream();
const file = path.join(folder, 'guest.mig');
fs.writeFileSync(file, bytes);
const opened = fs.openSync(file, 'r+');
after(() => fs.closeSync(opened));
/** What another process calls a descriptor of this one. */
const other = `/proc/${process.pid}/fd/${opened}`;

const refused = async (...args: readonly string[]): Promise<void> => {
  const { status, stdout } = await new RunningCommand([args[0]!, '--json', ...args.slice(1)]).ended;
  const { error } = JSON.parse(stdout) as { error: { code: string; message: string } };
  assert.deepEqual([status, error.code], [2, 'OUTPUT_IS_INPUT'], args.join(' '));
  assert.ok(fs.readFileSync(file).equals(Buffer.from(bytes)), args.join(' '));
};

test('receive does not save a stream over itself', async () => {
  await refused('receive', `file:${file}`, file);
  await refused('receive', `file:${file}`, other, '--to', 'mapped-ram');
});

test('serve and clone do not remember demands in what they serve', async () => {
  fs.linkSync(file, `${file}.demand`);
  await refused('serve', file, 'unix:/nobody/is/here');
  await refused('clone', file, '--', 'qemu-system-x86_64');
  fs.rmSync(`${file}.demand`);
});

test('what keeps no bytes is no input that could be lost, and what is not there none either', () => {
  refuseToWriteInputs({
    reads: ['/dev/null', path.join(folder, 'none')],
    writes: ['/dev/null', path.join(folder, 'none')],
  });
  assert.throws(
    () => refuseToWriteInputs({ reads: [file], writes: ['/dev/null', other] }),
    (error) => error instanceof RamferryError && error.message.includes(other) && error.message.includes(file),
  );
});
