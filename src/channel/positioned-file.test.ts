// Positioned files by themselves. Whole saves into them, full disks included: src/migration/mapped-ram.test.ts.

import assert from 'node:assert/strict';
import fs from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { openPositionedFile, type PositionedFileOptions } from './positioned-file-node.js';

const PAGE = 4096;
const folder = fs.mkdtempSync(join(tmpdir(), 'ramferry-positioned-'));
after(() => fs.rmSync(folder, { recursive: true }));
const path = join(folder, 'file');

const modes: PositionedFileOptions[] = [
  {},
  { channels: 1 },
  { channels: 4 },
  { directIo: true },
  { channels: 3, directIo: true },
];

// MR-11: with a barrier in between, the later version of a page is the one that stays
for (const options of modes) {
  test(`pages from several memories, written again after a barrier, ${JSON.stringify(options)}`, async () => {
    const memories = [1, 2].map((pages) => {
      const memory = new WebAssembly.Memory({ initial: pages * 16, maximum: pages * 16, shared: true });
      return new Uint8Array(memory.buffer);
    });
    const file = await openPositionedFile(path, options);
    for (let version = 1; version <= 20; version += 1) {
      file.barrier();
      // Writer threads come up meanwhile; until then this one writes.
      await delay(10);
      memories.forEach((memory, index) => {
        for (let at = 0; at < memory.length; at += PAGE) {
          new Int32Array(memory.buffer, at, PAGE / 4).fill(version * 1000 + at / PAGE);
          file.writePages(memory, at, PAGE, 2 ** 20 * (index + 1) + at);
        }
      });
    }
    assert.ok(file.pendingBytes >= 0);
    file.barrier();
    assert.equal(file.pendingBytes, 0);
    file.write(new Uint8Array([1, 2, 3]), 5);
    await file.commit();
    const content = fs.readFileSync(path);
    assert.deepEqual([...content.subarray(0, 9)], [0, 0, 0, 0, 0, 1, 2, 3, 0]);
    memories.forEach((memory, index) => {
      assert.ok(
        content
          .subarray(2 ** 20 * (index + 1))
          .subarray(0, memory.length)
          .equals(memory),
      );
    });
  });
}

// MR-19
test('a system that writes less than it was given is given the rest; one that writes nothing fails the file', async (t) => {
  const pages = new Uint8Array(3 * PAGE).map((_, index) => index % 251);
  const file = await openPositionedFile(path);
  const { writeSync } = fs;
  let most = 1000;
  t.mock.method(
    fs,
    'writeSync',
    (descriptor: number, bytes: Uint8Array, at: number, length: number, position: number): number =>
      most === 0 ? 0 : writeSync(descriptor, bytes, at, Math.min(length, most), position),
  );
  file.write(pages.subarray(0, 2500), 0);
  file.writePages(pages, PAGE, 2 * PAGE, PAGE);
  most = 0;
  assert.throws(() => file.write(pages, 2 ** 20), { code: 'NO_SPACE' });
  assert.throws(() => file.writePages(pages, 0, PAGE, 2 ** 20), { code: 'NO_SPACE' });
  most = 1000;
  await file.commit();
  const content = fs.readFileSync(path);
  assert.equal(content.length, 3 * PAGE);
  assert.deepEqual([...content.subarray(0, 2500)], [...pages.subarray(0, 2500)]);
  assert.ok(content.subarray(PAGE).equals(pages.subarray(PAGE)));
});

// MR-13
test('what is with the writer threads when the file is committed is in it', async () => {
  const bytes = 2 ** 21;
  const memory = new Uint8Array(new SharedArrayBuffer(8 * bytes));
  for (let at = 0; at < memory.length; at += PAGE) {
    memory[at] = 1 + ((at / PAGE) % 251);
  }
  const file = await openPositionedFile(path, { channels: 1 });
  // The thread is there when something waits for it; until then this one writes.
  for (let position = 0; file.pendingBytes === 0; position += PAGE) {
    assert.ok(position < 2 ** 24);
    await delay(1);
    file.writePages(memory, 0, PAGE, 2 ** 25 + position);
  }
  file.barrier();
  for (let at = 0; at < memory.length; at += bytes) {
    file.writePages(memory, at, bytes, at);
  }
  assert.ok(file.pendingBytes > 0);
  await file.commit();
  assert.ok(fs.readFileSync(path).subarray(0, memory.length).equals(memory));
});

test('aborted with writes under way: nothing is left, and nothing works any more', async () => {
  const memory = new Uint8Array(new SharedArrayBuffer(2 ** 20));
  fs.rmSync(path, { force: true });
  const file = await openPositionedFile(path, { channels: 2 });
  await delay(200);
  for (let position = 0; position < 2 ** 25; position += 2 ** 20) {
    file.writePages(memory, 0, memory.length, position);
  }
  file.abort();
  file.abort();
  assert.deepEqual(fs.readdirSync(folder), []);
  assert.throws(() => file.writePages(memory, 0, PAGE, 0), { code: 'CHANNEL_DESTROYED' });
  assert.throws(() => file.write(memory, 0), { code: 'CHANNEL_DESTROYED' });
  await assert.rejects(file.commit(), { code: 'CHANNEL_DESTROYED' });
});

test('the disk writes in the background; what it cannot write fails the file, although no later sync says so', async (t) => {
  // Aligned, for direct I/O.
  const memory = new Uint8Array(new WebAssembly.Memory({ initial: 256, maximum: 256, shared: true }).buffer);
  for (const options of [{}, { channels: 1 }, { directIo: true }]) {
    const errors: (NodeJS.ErrnoException | null)[] = [null, Object.assign(new Error('EIO'), { code: 'EIO' })];
    const syncs = t.mock.method(fs, 'fdatasync', (_descriptor: number, done: (error: Error | null) => void) => {
      const error = errors.shift() ?? null;
      setImmediate(() => done(error));
    });
    const file = await openPositionedFile(path, options);
    const give = async (from: number, to: number): Promise<void> => {
      for (let position = from; position < to; position += memory.length) {
        file.writePages(memory, 0, memory.length, position);
        await new Promise((resolve) => setImmediate(resolve));
      }
    };
    await give(0, 2 ** 26);
    const isDirect = 'directIo' in options;
    assert.equal(syncs.mock.callCount(), isDirect ? 0 : 2);
    syncs.mock.restore();
    if (isDirect) {
      file.abort();
    } else {
      await assert.rejects(give(2 ** 26, 2 ** 27), { code: 'IO_ERROR' });
      await assert.rejects(file.commit(), { code: 'IO_ERROR' });
      file.abort();
    }
    assert.deepEqual(fs.readdirSync(folder), []);
  }
});

const hasKoffi = ((): boolean => {
  try {
    createRequire(import.meta.url).resolve('koffi');
    return true;
  } catch {
    return false;
  }
})();

test('a hole reads as zeros and has no blocks', { skip: !hasKoffi && 'koffi is not installed' }, async () => {
  const file = await openPositionedFile(path);
  file.writePages(new Uint8Array(2 ** 20).fill(7), 0, 2 ** 20, 2 ** 20);
  file.punchHole(2 ** 20, 2 ** 19);
  const page = new Uint8Array(PAGE);
  file.read(page, 2 ** 20);
  assert.ok(page.every((byte) => byte === 0));
  file.read(page, 2 ** 20 + 2 ** 19);
  assert.ok(page.every((byte) => byte === 7));
  assert.throws(() => file.read(page, 2 ** 21), { code: 'IO_ERROR' });
  await file.commit();
  const { size, blocks } = fs.statSync(path);
  assert.deepEqual([size, blocks * 512], [2 ** 21, 2 ** 19]);
});
