// A whole file system that is small, not only /dev/full: what is written there in part is gone again, and the message
// names the file as it was asked for.

import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { after, before, test } from 'node:test';
import { runCommand } from '../../test/command.js';
import { describedTail } from '../../test/described-stream.js';
import { clockDevice } from '../../test/pc-memory.js';
import { patternPage, StreamBuilder } from '../../test/streams.js';

const base = fs.mkdtempSync(path.join(os.tmpdir(), 'ramferry-full-'));
const disk = path.join(base, 'disk');
const input = path.join(base, 'in.mig');
let isMounted = false;

const PAGES = 512;

before(() => {
  fs.mkdirSync(disk);
  const pages = Array.from({ length: PAGES }, (_, page) => ({
    block: 'pc.ram',
    page,
    kind: 'normal' as const,
    content: patternPage(page),
  }));
  const { bytes } = new StreamBuilder()
    .header()
    .ramStart([{ name: 'pc.ram', usedLength: PAGES * 4096 }])
    .part(pages)
    .end([])
    .tail(describedTail([clockDevice(PAGES * 4096)]));
  fs.writeFileSync(input, bytes);
  try {
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', disk], { stdio: 'ignore' });
    isMounted = true;
  } catch {
    // Not root, or in a container: each test says that it is skipped.
  }
});

after(() => {
  if (isMounted) {
    execFileSync('umount', [disk]);
  }
  fs.rmSync(base, { recursive: true });
});

for (const [name, args] of [
  ['convert --to raw', ['convert', input, 'OUT', '--to', 'raw']],
  ['convert --to raw --block', ['convert', input, 'OUT', '--to', 'raw', '--block', 'pc.ram']],
  ['convert --to elf', ['convert', input, 'OUT', '--to', 'elf']],
  ['convert --to mapped-ram', ['convert', input, 'OUT', '--to', 'mapped-ram']],
  ['convert --to stream', ['convert', input, 'OUT', '--to', 'stream']],
  ['receive', ['receive', `file:${input}`, 'OUT']],
  ['receive --to mapped-ram', ['receive', `file:${input}`, 'OUT', '--to', 'mapped-ram']],
] as const) {
  test(`${name} onto a disk that gets full: NO_SPACE, the path by its name, nothing left`, async (context) => {
    if (!isMounted) {
      context.skip('no file system can be mounted here');
      return;
    }
    const out = path.join(disk, 'out');
    const { status, stdout } = await runCommand(...args.map((arg) => (arg === 'OUT' ? out : arg)), '--json');
    const { error } = JSON.parse(stdout) as { error: { code: string; file: string; message: string } };
    assert.deepEqual([status, error.code], [1, 'NO_SPACE']);
    assert.ok(error.file.startsWith(out) && error.message.includes(out), JSON.stringify(error));
    assert.deepEqual(fs.readdirSync(disk), []);
  });
}
