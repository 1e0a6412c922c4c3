// Discarded ranges and the engine: what leaves the bitmaps, what stays, what may not change meanwhile.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { PAGE, RecordingSink, ScriptedGuest } from '../../test/source-kit.js';
import { DirtyClient, DirtyClientMask } from '../memory/dirty-memory.js';
import type { RamBlock } from '../memory/ram-block.js';
import { ramPage } from '../memory/units.js';
import { excludeDiscarded, freezeDiscards } from './discarded-pages.js';
import { MigrationSource } from './migration-source.js';
import { defaultParameters } from './parameters.js';
import { SendBitmap } from './send-bitmap.js';
import type { Trace } from './trace.js';

const GRANULE_PAGES = 16;
const GRANULE = GRANULE_PAGES * PAGE;

/** A guest with an ordinary block of `pages` and one of `granules` of which nothing is populated. */
const sparseGuest = (pages: number, granules: number): { guest: ScriptedGuest; vmem: RamBlock } => {
  const guest = new ScriptedGuest([pages]);
  const vmem = guest.blocks.add({ name: 'vmem', usedLength: granules * GRANULE, discardGranularity: GRANULE });
  return { guest, vmem };
};

const plug = ({ discardManager }: RamBlock, first: number, count = 1): void =>
  discardManager!.populate(first * GRANULE, count * GRANULE);

const setBits = (guest: ScriptedGuest, block: RamBlock): number =>
  guest.blocks.bitmaps.kernels.countRange(block.bitmaps.send, 0, block.maxPages);

const started = (guest: ScriptedGuest, shift: number | undefined): SendBitmap => {
  const { blocks, log } = guest;
  const send = new SendBitmap({ blocks, log, clearBitmapShift: shift, trace: {} });
  blocks.dirty.migrationTracking = true;
  log.start();
  return send;
};

// RD-2, RD-3, RD-4, RD-7, RD-17, RD-27
test('exactly the discarded pages leave, the counter knows, and no sync brings them back', () => {
  const granule = fc.nat(23);
  fc.assert(
    fc.property(
      fc.uniqueArray(granule),
      fc.array(granule),
      fc.constantFrom(6, 8, undefined),
      (plugged, stored, shift) => {
        const { guest, vmem } = sparseGuest(70, 24);
        const [ram] = guest.blocks.blocks.filter((block) => block !== vmem);
        for (const index of plugged) {
          plug(vmem, index);
        }
        const send = started(guest, shift);
        // Marks from before the first sync, on both sides of the border.
        for (const index of stored) {
          guest.store(vmem, index * GRANULE_PAGES, 1);
        }
        send.sync(false);
        const discarded = (24 - plugged.length) * GRANULE_PAGES;
        assert.equal(excludeDiscarded(send, guest.blocks), discarded);
        assert.equal(send.remaining, 70 + plugged.length * GRANULE_PAGES);
        const { kernels } = guest.blocks.bitmaps;
        vmem.discardManager!.replayDiscarded(0, vmem.usedLength, (offset, length) => {
          assert.equal(kernels.countRange(vmem.bitmaps.send, offset / PAGE, length / PAGE), 0);
        });
        assert.equal(setBits(guest, vmem), plugged.length * GRANULE_PAGES);
        assert.equal(setBits(guest, ram!), 70);
        assert.equal(excludeDiscarded(send, guest.blocks), 0);
        assert.equal(send.sync(false), 0);
        assert.equal(setBits(guest, vmem), plugged.length * GRANULE_PAGES);
        send.release();
      },
    ),
    { numRuns: 60 },
  );
});

// RD-4: QEMU's weakness of 2024, spec/algorithms.md 6(g): what dirty memory holds at that moment would be merged again
test('dirty memory does not bring back what is excluded, even if somebody filled it after the sync', () => {
  const { guest, vmem } = sparseGuest(64, 8);
  plug(vmem, 2);
  const send = started(guest, 6);
  send.sync(false);
  guest.blocks.dirty.setRange(vmem.ramPage, vmem.usedPages, DirtyClientMask.migration);
  excludeDiscarded(send, guest.blocks);
  const kept = ramPage(vmem.ramPage + 2 * GRANULE_PAGES);
  assert.ok(guest.blocks.dirty.allDirty(kept, GRANULE_PAGES, DirtyClient.migration));
  send.sync(false);
  assert.equal(setBits(guest, vmem), GRANULE_PAGES);
});

// RD-14
test('what the guest stores to discarded memory after the exclusion is sent', () => {
  const { guest, vmem } = sparseGuest(64, 8);
  const send = started(guest, 6);
  send.sync(false);
  // Between the sync and the exclusion as well: that mark is not in the log's snapshot.
  guest.store(vmem, 3, 1);
  excludeDiscarded(send, guest.blocks);
  guest.store(vmem, 40, 2);
  assert.equal(send.sync(false), 2);
  assert.deepEqual([send.remaining, setBits(guest, vmem)], [66, 2]);
});

// RD-13
test('with the guest stopped the log is not cleared', () => {
  const { guest, vmem } = sparseGuest(64, 8);
  const send = started(guest, 6);
  guest.store(vmem, 3, 1);
  send.sync(false);
  send.sync(true);
  excludeDiscarded(send, guest.blocks);
  assert.deepEqual(send.logClears, { calls: 0, pages: 0 });
  assert.equal(setBits(guest, vmem), 0);
});

// RD-6, RC-1
test('after bitmaps were rebuilt from what the destination has, the same function excludes again', () => {
  const { guest, vmem } = sparseGuest(64, 8);
  plug(vmem, 0, 2);
  const send = started(guest, 6);
  send.sync(false);
  excludeDiscarded(send, guest.blocks);
  const { kernels } = guest.blocks.bitmaps;
  kernels.setRange(vmem.bitmaps.received, 0, GRANULE_PAGES);
  kernels.complement(vmem.bitmaps.received, vmem.bitmaps.send, vmem.usedPages);
  assert.equal(excludeDiscarded(send, guest.blocks), 6 * GRANULE_PAGES);
  assert.equal(kernels.findNextSet(vmem.bitmaps.send, 0, vmem.usedPages), GRANULE_PAGES);
  assert.equal(setBits(guest, vmem), GRANULE_PAGES);
});

// RD-1, RD-5, RD-11, RD-18, RD-19, RD-20
test('a migration sends what is populated and nothing else, and nothing can be plugged meanwhile', async () => {
  const { guest, vmem } = sparseGuest(64, 8);
  guest.blocks.add({ name: 'empty', usedLength: 4 * GRANULE, discardGranularity: GRANULE });
  const full = guest.blocks.add({ name: 'full', usedLength: 4 * GRANULE, discardGranularity: GRANULE });
  plug(vmem, 1, 3);
  plug(full, 0, 4);
  guest.store(vmem, GRANULE_PAGES, 7);
  const sink = new RecordingSink();
  let refusals = 0;
  sink.beforeRead = () => {
    assert.throws(() => plug(vmem, 6), { code: 'RAM_DISCARD_BUSY' });
    refusals += 1;
  };
  // A store where no memory is, in the first pass: the guest's fault, and yet not lost (RD-14).
  sink.afterRead = () => {
    if (refusals === 1) {
      guest.store(vmem, 100, 9);
    }
  };
  // Whatever is marked when the first sync begins is from before the migration: the exclusion comes after it.
  const trace: Trace = {
    migration_bitmap_sync_start: () => {
      if (refusals === 0) {
        guest.store(vmem, 0, 5);
      }
    },
  };
  const report = await new MigrationSource({ guest, sink, parameters: defaultParameters, trace }).run();
  assert.equal(report.status, 'completed');
  assert.ok(refusals > 0);
  const sent = (name: string): number[] =>
    [...sink.timesSent.keys()].filter((key) => key.startsWith(`${name}:`)).map((key) => Number(key.split(':')[1]));
  const populated = Array.from({ length: 3 * GRANULE_PAGES }, (_, index) => GRANULE_PAGES + index);
  assert.deepEqual(
    sent('vmem').sort((one, other) => one - other),
    [...populated, 100],
  );
  assert.equal(sink.delivered.get('vmem:100'), 9);
  assert.deepEqual(sent('empty'), []);
  assert.equal(sent('full').length, 4 * GRANULE_PAGES);
  assert.equal(report.ramferry.discardedPages, (5 + 4) * GRANULE_PAGES);
  assert.equal(report.ram.total, (64 + 16 * GRANULE_PAGES) * PAGE);
  plug(vmem, 6);
});

// G-10
test('after a cancelled migration memory can be plugged again', async () => {
  const { guest, vmem } = sparseGuest(64, 8);
  const sink = new RecordingSink();
  const source = new MigrationSource({ guest, sink, parameters: defaultParameters });
  sink.afterRead = () => source.cancel();
  assert.equal((await source.run()).status, 'cancelled');
  plug(vmem, 6);
  const thaw = freezeDiscards(guest.blocks);
  assert.throws(() => plug(vmem, 7), { code: 'RAM_DISCARD_BUSY' });
  thaw();
  thaw();
  plug(vmem, 7);
});
