// Pages that are compared with the digest of their file before anybody gets them, in both formats: a flipped bit in a page, in
// the bitmap, in the device state.

import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { after, test } from 'node:test';
import { RunningCommand, runCommand } from '../../test/command.js';
import { patternPage, StreamBuilder, type TestRecord, testDevice } from '../../test/streams.js';
import type { Snapshot } from '../format/snapshot.js';
import { pageIndex } from '../memory/units.js';
import { CheckedSnapshot, withDigest } from './checked-snapshot.js';
import { devicesOf, type SavedSidecar } from './digest-sidecar-node.js';
import { openSnapshotFile } from './open-snapshot-file-node.js';
import { SavedMebibytes } from './saved-mebibytes.js';
import { inTurns } from './slices-node.js';

const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'ramferry-checked-'));
after(() => fs.rmSync(folder, { recursive: true }));

const PAGE = 4096;
const MIB_PAGES = 256;
const PAGES = 3 * MIB_PAGES + 16;

/** A guest of three MiB and a bit; the second MiB is zero, of the others every second page. */
const input = path.join(folder, 'input.mig');
const records = Array.from({ length: PAGES }, (_, index): TestRecord => {
  const isZero = index % 2 === 1 || Math.floor(index / MIB_PAGES) === 1;
  return isZero
    ? { block: 'pc.ram', page: index, kind: 'zero' }
    : { block: 'pc.ram', page: index, kind: 'normal', content: patternPage(index + 1) };
});
fs.writeFileSync(
  input,
  new StreamBuilder()
    .header()
    .ramStart([{ name: 'pc.ram', usedLength: PAGES * PAGE }])
    .end(records)
    .devices([testDevice('cpu', 500)]).bytes,
);

const formats = ['stream', 'mapped-ram'] as const;

/** A copy with its digest; `damage` gets its bytes. */
const saved = async (format: (typeof formats)[number], damage?: (bytes: Buffer) => void): Promise<string> => {
  const file = path.join(folder, `${format}-${count++}`);
  assert.equal((await runCommand('convert', input, file, '--to', format)).status, 0);
  if (damage !== undefined) {
    const bytes = fs.readFileSync(file);
    damage(bytes);
    fs.writeFileSync(file, bytes);
  }
  return file;
};
let count = 0;

const withChecked = async (file: string, body: (checked: CheckedSnapshot) => void | Promise<void>): Promise<void> => {
  const opened = await openSnapshotFile(file);
  try {
    const { checked, snapshot } = withDigest(opened.snapshot, opened.container);
    assert.equal(checked, snapshot);
    await body(checked!);
  } finally {
    opened.close();
  }
};

const read = (checked: CheckedSnapshot, page: number, pages: number): Buffer => {
  const target = Buffer.alloc(pages * PAGE);
  checked.readPages(0, pageIndex(page), pages, target);
  return target;
};

const checkAll = (checked: CheckedSnapshot): Promise<void> =>
  checked.checkAll(async (_phase, totalBytes, step) => {
    let done = 0;
    while (done < totalBytes) {
      done += step();
    }
    assert.equal(done, totalBytes);
  });

const flipPage = (page: number) => (bytes: Buffer) => {
  const at = bytes.indexOf(patternPage(page + 1));
  assert.ok(at > 0);
  bytes[at + 1234]! ^= 4;
};

for (const format of formats) {
  test(`${format}: what is whole is given out as it is, across MiBs and at the end`, async () => {
    const file = await saved(format);
    await withChecked(file, async (checked) => {
      const original = Buffer.concat(
        records.map((record) => (record.kind === 'normal' ? Buffer.from(record.content!) : Buffer.alloc(PAGE))),
      );
      for (const [page, pages] of [
        [0, 1],
        [MIB_PAGES - 1, 2],
        [PAGES - 20, 20],
        [0, PAGES],
      ] as const) {
        const expected = original.subarray(page * PAGE, (page + pages) * PAGE);
        assert.ok(read(checked, page, pages).equals(expected), `${page}+${pages}`);
      }
      await checkAll(checked);
    });
  });

  test(`${format}: a flipped bit is found before anybody gets a page of its MiB, and no other is withheld`, async () => {
    const bad = 2 * MIB_PAGES + 10;
    const file = await saved(format, flipPage(bad));
    await withChecked(file, async (checked) => {
      const mismatch = { code: 'DIGEST_MISMATCH', kind: 'failed', file };
      read(checked, 0, 2 * MIB_PAGES);
      // Also at its other end, and again.
      assert.throws(() => read(checked, 3 * MIB_PAGES - 1, 1), mismatch);
      assert.throws(() => read(checked, bad, 1), mismatch);
      read(checked, 3 * MIB_PAGES, 16);
      await assert.rejects(checkAll(checked), mismatch);
    });
    // It is quick to look at all of this one: it does not even start.
    await withChecked(file, (checked) =>
      assert.rejects(checked.checkIfQuick(inTurns(undefined)), { code: 'DIGEST_MISMATCH' }),
    );
  });
}

test('a page that a damaged bitmap calls zero is read, and so found', async () => {
  const file = await saved('mapped-ram', (bytes) => {
    // The bitmap has the even pages of the first MiB: 0x55, 32 times.
    const at = bytes.indexOf(Buffer.alloc(32, 0x55));
    assert.ok(at > 0);
    bytes[at]! &= ~1;
  });
  await withChecked(file, (checked) => {
    const bitmap = new Uint8Array(Math.ceil(PAGES / 8));
    checked.presentBitmap(0, bitmap);
    assert.equal(bitmap[0]! & 1, 1, 'whoever goes by the bitmap asks for the page');
    assert.equal(bitmap[MIB_PAGES / 8], 0, 'a MiB of zeros stays one');
    assert.equal(bitmap.at(-1), 0xff);
    assert.throws(() => read(checked, 0, 1), { code: 'DIGEST_MISMATCH' });
  });
});

test('device state that is not what was saved is found at once; a digest of another file is said to be that', async () => {
  const damaged = await saved('mapped-ram', (bytes) => {
    const at = bytes.indexOf(Buffer.from(testDevice('cpu', 500).body.subarray(100, 140)));
    assert.ok(at > 0);
    bytes[at]! ^= 1;
  });
  const opened = await openSnapshotFile(damaged);
  assert.throws(() => withDigest(opened.snapshot, opened.container), {
    code: 'DIGEST_MISMATCH',
    message: /device state/,
  });
  opened.close();
  const file = await saved('stream');
  fs.appendFileSync(file, 'x');
  const other = await openSnapshotFile(file);
  const { checked, notChecked } = withDigest(other.snapshot, other.container);
  assert.deepEqual([checked, /is of another file/.test(notChecked ?? '')], [undefined, true]);
  other.close();
});

test('a named pipe in the place of the digest is none, and nobody waits for its other end', async () => {
  const file = await saved('stream');
  fs.rmSync(`${file}.digest`);
  execFileSync('mkfifo', [`${file}.digest`]);
  // In a process of its own: who waits for a pipe cannot be interrupted.
  const command = new RunningCommand(['verify', file]);
  const patience = setTimeout(() => command.child.kill('SIGKILL'), 20_000);
  const { status, stdout } = await command.ended;
  clearTimeout(patience);
  assert.equal(status, 0);
  assert.match(stdout, /is no digest/);
});

/** A guest of which nothing is stored, with a digest that says the same; counts the pages that are looked at for stored ones. */
const emptyGuest = (usedLength: number, mebibytes = SavedMebibytes.none, storesZeros = false) => {
  const pageCount = usedLength / PAGE;
  const looked = { pages: 0, reads: 0 };
  const tail = { early: new Uint8Array(0), sections: new Uint8Array(0), description: '' };
  const snapshot = {
    setup: { targetPageSize: PAGE, totalBytes: usedLength, blocks: [{ index: 0, name: 'pc.ram', usedLength }] },
    summary: { tail, devices: [] },
    counts: () => ({ presentPages: 0, zeroPages: 0, absentPages: pageCount }),
    nextPresent: (_block: number, from: number, end = pageCount) => {
      looked.pages += end - from;
      return storesZeros ? from : end;
    },
    readPages: (_block: number, _from: number, _count: number, target: Uint8Array) => {
      looked.reads += 1;
      target.fill(0);
    },
  } as unknown as Snapshot;
  const sidecar = { devices: devicesOf(tail), blocks: [{ name: 'pc.ram', mebibytes }] } as unknown as SavedSidecar;
  return { checked: new CheckedSnapshot(snapshot, 'guest', { path: 'guest.digest', sidecar }), looked, pageCount };
};

test('a large and empty guest is looked over once, and not from every MiB of it to its end', async () => {
  const { checked, looked, pageCount } = emptyGuest(2 ** 33);
  await checkAll(checked);
  assert.deepEqual(looked, { pages: pageCount, reads: 0 });
});

test('before the start as much is read as is quick: no guest with content in many MiBs, no more of one that stores zeros', async () => {
  const strewn = emptyGuest(
    2 ** 30,
    new SavedMebibytes(
      Float64Array.from({ length: 129 }, (_, n) => n),
      new Uint32Array(258),
    ),
  );
  await strewn.checked.checkIfQuick(inTurns(undefined));
  assert.deepEqual(strewn.looked, { pages: 0, reads: 0 });
  const stored = emptyGuest(2 ** 30, SavedMebibytes.none, true);
  await stored.checked.checkIfQuick(inTurns(undefined));
  assert.equal(stored.looked.reads, 128);
});

test('the check before the start leaves turns to others, and ends when its user has had enough', async () => {
  const { checked, looked, pageCount } = emptyGuest(2 ** 44);
  const controller = new AbortController();
  setImmediate(() => controller.abort(new Error('enough')));
  await assert.rejects(checked.checkIfQuick(inTurns(controller.signal)), /enough/);
  assert.ok(looked.pages > 0 && looked.pages < pageCount, `${looked.pages} pages`);
});
