// Finding stale bytes, giving them back, and keeping watch over a file while that matters.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, test } from 'node:test';
import { mappedRamFile } from '../../test/mapped-ram-builder.js';
import { MappedRamSnapshot } from '../format/mapped-ram/snapshot.js';
import type { RamferryError } from '../memory/errors.js';
import { systemFunction } from '../memory/system-library-node.js';
import { FileGuard, fileIdentity } from './file-guard-node.js';
import { openSnapshotFile } from './open-snapshot-file-node.js';
import type { Slices } from './slices-node.js';
import { findStalePages, punchStalePages } from './stale-pages-node.js';

const folder = fs.mkdtempSync(path.join(tmpdir(), 'ramferry-stale-'));
after(() => fs.rmSync(folder, { recursive: true }));

const hasLibrary = systemFunction('int getpid(void)') !== undefined;

const atOnce: Slices = async (_phase, totalBytes, step) => {
  for (let done = 0; done < totalBytes; ) {
    done += step();
  }
};

const PAGES = 700;
const STALE = [0, 5, 6, 255, 256, 257, 300, 699];

const makeFile = (name: string): { file: string; bytes: Uint8Array; pagesOffset: number } => {
  const { bytes, layouts } = mappedRamFile([
    { name: 'other', pages: 64, stale: [3] },
    { name: 'pc.ram', pages: PAGES, present: [1, 2, 31, 32, 63, 299, 301], stale: STALE },
  ]);
  const file = path.join(folder, name);
  fs.writeFileSync(file, bytes);
  return { file, bytes, pagesOffset: layouts[1]!.pagesOffset };
};

const staleIn = async (file: string): Promise<{ offset: number; bytes: number }[]> => {
  const { snapshot, close } = await openSnapshotFile(file);
  const descriptor = fs.openSync(file, 'r');
  try {
    assert.ok(snapshot instanceof MappedRamSnapshot);
    return await findStalePages(descriptor, snapshot, [1], atOnce);
  } finally {
    fs.closeSync(descriptor);
    close();
  }
};

// MR-16: what a mapping shows for an absent page is zero, or the page is found here.
test('the pages whose bit is clear and whose bytes are not zero, as ranges', async () => {
  const { file, pagesOffset } = makeFile('found');
  const ranges = await staleIn(file);
  const expected = [
    [0, 1],
    [5, 2],
    [255, 3],
    [300, 1],
    [699, 1],
  ].map(([page, pages]) => {
    return { offset: pagesOffset + page! * 4096, bytes: pages! * 4096 };
  });
  assert.deepEqual(ranges, expected);
});

test('punching changes the stale pages and nothing else', { skip: !hasLibrary }, async () => {
  const { file, bytes, pagesOffset } = makeFile('punched');
  const guard = FileGuard.take(file);
  guard.release();
  assert.equal(punchStalePages(file, guard.identity, await staleIn(file)), true);
  for (const page of STALE) {
    bytes.fill(0, pagesOffset + page * 4096, pagesOffset + (page + 1) * 4096);
  }
  assert.ok(fs.readFileSync(file).equals(bytes));
  assert.deepEqual(await staleIn(file), []);
});

test('nothing is punched in a file that somebody has open, or that changed meanwhile', {
  skip: !hasLibrary,
}, async () => {
  const { file, bytes } = makeFile('used');
  const ranges = await staleIn(file);
  const reader = fs.openSync(file, 'r');
  const identity = fileIdentity(reader);
  assert.equal(punchStalePages(file, identity, ranges), false);
  fs.closeSync(reader);
  fs.utimesSync(file, 1, 1);
  assert.equal(punchStalePages(file, identity, ranges), false);
  assert.equal(punchStalePages(path.join(folder, 'missing'), identity, ranges), false);
  assert.ok(fs.readFileSync(file).equals(bytes));
});

test('a file that is open for writing is not taken', { skip: !hasLibrary }, () => {
  const { file } = makeFile('written');
  const writer = fs.openSync(file, 'r+');
  assert.throws(() => FileGuard.take(file), {
    ...{ code: 'FILE_IN_USE', file },
    hint: new RegExp(`^It is process ${process.pid} \\(\\S+\\); wait`),
  });
  fs.closeSync(writer);
  FileGuard.take(file).release();
});

test('a writer is announced before it can change anything, and waits', {
  skip: !hasLibrary,
  timeout: 60_000,
}, async () => {
  const { file, bytes } = makeFile('guarded');
  const guard = FileGuard.take(file);
  assert.equal(guard.hasLease, true);
  const told = new Promise<RamferryError>((resolve) => guard.onChange(resolve));
  const writer = spawn('/bin/sh', ['-c', 'echo changed > "$0"', file]);
  const reason = await told;
  assert.equal(reason.code, 'FILE_CHANGED');
  assert.ok(fs.readFileSync(file).equals(bytes));
  assert.equal(writer.exitCode, null);
  guard.release();
  await once(writer, 'exit');
  assert.equal(fs.readFileSync(file, 'utf8'), 'changed\n');
});
