// A guest with a region of 2 GiB of which 64 MiB are plugged (RAMFERRY_SLOW=1: 64 GiB, 2 GiB), migrated to another process, and
// saved while it runs: neither side holds more than what is plugged, and no page that is not.

import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { openSnapshotFile } from '../src/memory-file/open-snapshot-file-node.js';
import { Migration } from '../src/migration/migration.js';
import { residentBytes, residentDiscardedPages } from './residency.js';
import { MIB, SparseDestination, sparseOptions, startSparseGuest } from './sparse-guest.js';

const [REGION, PLUGGED] = process.env['RAMFERRY_SLOW'] === undefined ? [2048 * MIB, 64 * MIB] : [2 ** 36, 2 ** 31];

/** Node with its threads and what this test needs, and a bit for each page in seven bitmaps: 300 MiB at 64 GiB. */
const LIMIT = PLUGGED + 300 * MIB;

// RD-1, RD-4, RD-15, BS-7
test(`a region of ${REGION / MIB} MiB of which ${PLUGGED / MIB} are plugged: resident on either side is what is plugged`, async (context) => {
  const options = sparseOptions(REGION, PLUGGED);
  const source = await startSparseGuest(options);
  const destination = await SparseDestination.start(options);
  const folder = mkdtempSync(join(tmpdir(), 'ramferry-sparse-'));
  context.after(() => {
    destination.close();
    rmSync(folder, { recursive: true });
  });
  const checkHere = (when: string): void => {
    const resident = residentBytes();
    context.diagnostic(`${when}: ${(resident / MIB).toFixed(0)} MiB resident at the source`);
    assert.ok(resident < LIMIT, `${resident} bytes resident ${when}`);
    const discarded = residentDiscardedPages(source.virtioMem!.block);
    assert.ok(discarded === 0 || discarded === undefined, `${discarded} discarded pages resident ${when}`);
  };
  checkHere('before');
  const guest = { kind: 'workload', shared: source.share() } as const;

  const file = join(folder, 'snapshot.mapped');
  const uri = `file:${file}`;
  const snapshot = await new Migration({ guest, uri, mappedRam: {}, backgroundSnapshot: {} }).ended;
  assert.equal(snapshot.error, undefined);
  assert.equal(snapshot.report.ramferry.discardedPages, (REGION - PLUGGED) / 4096);
  checkHere('after a background snapshot');
  assert.ok(statSync(file).blocks * 512 < PLUGGED + 64 * MIB);
  const opened = await openSnapshotFile(file);
  const block = opened.snapshot.setup.blocks.find(({ usedLength }) => usedLength === REGION)!;
  let discarded = 0;
  opened.snapshot.forEachDiscarded(block.index, (_page, count) => {
    discarded += count;
  });
  opened.close();
  assert.equal(discarded, (REGION - PLUGGED) / 4096);

  const migration = new Migration({ guest, uri: destination.uri });
  const [{ report, error }, status] = await Promise.all([migration.ended, destination.received()]);
  assert.equal(error, undefined);
  assert.equal(status, 'completed');
  assert.equal(report.ramferry.discardedPages, (REGION - PLUGGED) / 4096);
  checkHere('after the migration');
  const judged = await destination.judge();
  context.diagnostic(`${(judged.residentBytes / MIB).toFixed(0)} MiB resident at the destination`);
  context.diagnostic(
    `${report['total-time']} ms, ${(report.ram.transferred / MIB).toFixed(0)} MiB, downtime ${report.downtime} ms`,
  );
  assert.ok(judged.residentBytes < LIMIT, `${judged.residentBytes} bytes resident at the destination`);
  assert.ok(judged.residentDiscardedPages === 0 || judged.residentDiscardedPages === undefined);
  assert.deepEqual([judged.bad, judged.isStale, judged.pluggedBytes], [0, false, PLUGGED]);
  assert.ok(judged.checked > PLUGGED / 4096 / 1.1);
  await source.shutdown();
});
