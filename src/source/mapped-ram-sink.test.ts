// The mapped-ram sink into a file whose page writes happen as late as they may, and in the worst order. (Real files and
// threads: src/migration/mapped-ram.test.ts; QEMU as the reader: test/interop/mapped-ram.test.ts.)

import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import fc from 'fast-check';
import { LateFile } from '../../test/late-file.js';
import type { MappedFile } from '../../test/mapped-ram-file.js';
import { PAGE, ScriptedGuest, ScriptedHints } from '../../test/source-kit.js';
import type { PositionedFile } from '../channel/positioned-file.js';
import { RamDigest } from '../format/ram-digest.js';
import { Segment } from '../memory/segment.js';
import type { SourceGuest } from './guest.js';
import { MappedRamSink, type MappedRamSinkOptions } from './mapped-ram-sink.js';
import { MigrationSource, type MigrationSourceOptions } from './migration-source.js';
import { defaultParameters } from './parameters.js';
import type { MigrationReport } from './statistics.js';

const folder = mkdtempSync(join(tmpdir(), 'ramferry-test-'));
after(() => rmSync(folder, { recursive: true, force: true }));

const save = (
  guest: ScriptedGuest,
  file: PositionedFile,
  options: Partial<MigrationSourceOptions> = {},
): Promise<MigrationReport> =>
  new MigrationSource({ guest, sink: new MappedRamSink(file), parameters: defaultParameters, ...options }).run();

/** A sink of small batches, between which the running guest acts. */
const betweenBatches = (
  guest: ScriptedGuest,
  file: PositionedFile,
  act: (batch: number) => void,
  options: MappedRamSinkOptions = {},
): MappedRamSink => {
  let batches = 0;
  return new (class extends MappedRamSink {
    override batchLimit(): number {
      return 16;
    }

    override writePages(batch: Parameters<MappedRamSink['writePages']>[0]): number {
      const zeroPages = super.writePages(batch);
      if (guest.running) {
        act(batches);
        batches += 1;
      }
      return zeroPages;
    }
  })(file, options);
};

const assertIsGuest = (file: MappedFile, guest: ScriptedGuest): void => {
  assert.deepEqual(
    file.blocks.map(({ name, usedLength }) => [name, usedLength]),
    guest.blocks.blocks.map(({ name, usedLength }) => [name, usedLength]),
  );
  for (const { name, content, has, usedLength } of file.blocks) {
    const block = guest.blocks.find(name)!;
    assert.ok(content.equals(block.read(0, usedLength)), name);
    for (let page = 0; page < block.usedPages; page += 1) {
      // MR-2: nothing but zero detection decides here
      assert.equal(has(page), guest.load(block, page) !== 0, `${name}:${page}`);
    }
  }
};

/** The guest, its pages brought into one of four windows when they are asked for. */
const windowed = (guest: ScriptedGuest, extentsKept: number): SourceGuest => {
  const windows = Segment.create({ ramBytes: 64 * PAGE });
  let next = 0;
  return {
    machine: guest.machine,
    uuid: guest.uuid,
    ramSectionId: guest.ramSectionId,
    blocks: guest.blocks,
    log: undefined,
    isRunning: () => false,
    stop: async () => {},
    resume: async () => {},
    saveDevices: () => guest.saveDevices(),
    extentsKept,
    extentAt: (block, page) => {
      const address = (next++ % 4) * 16 * PAGE;
      const pageCount = Math.min(16, block.usedPages - page);
      windows.bytes.set(block.read(page * PAGE, pageCount * PAGE), address);
      return { segment: windows, address, firstPage: page, pageCount };
    },
  };
};

test('a guest whose pages take turns in memory: none makes room before it is written', async () => {
  const guest = new ScriptedGuest([900, 200], 2 ** 20);
  for (const block of guest.blocks.blocks) {
    for (let page = 0; page < block.usedPages; page += 1) {
      guest.store(block, page, (page % 255) + 1);
    }
  }
  for (const extentsKept of [0, 1, 3]) {
    const file = new LateFile();
    const sink = new MappedRamSink(file);
    const { status } = await new MigrationSource({
      guest: windowed(guest, extentsKept),
      sink,
      parameters: defaultParameters,
    }).run();
    assert.equal(status, 'completed');
    assertIsGuest(file.parsed(), guest);
    // As many writes at a time as there is room for.
    assert.equal(file.mostPending, extentsKept + 1);
  }
});

// MR-1, MR-3, MR-10, MR-14, MR-23, MR-24, MR-25, MR-27
test('a guest at rest: each page in its place, one write for each run, no byte for zero pages', async () => {
  const guest = new ScriptedGuest([900, 200, 3], 2 ** 20);
  for (const block of guest.blocks.blocks) {
    for (let page = 0; page < block.usedPages; page += 1) {
      if (page % 5 !== 4) {
        guest.store(block, page, (page % 255) + 1);
      }
    }
  }
  const file = new LateFile();
  const { status, ram } = await save(guest, file);
  assert.equal(status, 'completed');
  const parsed = file.parsed();
  assertIsGuest(parsed, guest);
  assert.deepEqual(parsed.capabilities, ['mapped-ram']);
  assert.equal(parsed.totalBytes, 1103 * PAGE);
  const present = parsed.blocks.reduce((sum, block) => sum + block.present, 0);
  assert.deepEqual([ram.normal, ram.duplicate], [present, 1103 - present]);
  // Runs of four; three of them lie across the border of two batches (256, 512, 768: 256 % 5 = 1), and extents end at 256.
  const runs = file.pageWrites.reduce((sum, { length }) => sum + length, 0);
  assert.equal(runs, present * PAGE);
  assert.ok(file.pageWrites.length <= 180 + 40 + 1 + 8, `${file.pageWrites.length} writes`);
  assert.equal(file.holes.length, 0);
  // What follows the pages: EOS and footer of START, one END, EOF, an empty description.
  assert.equal(
    parsed.tail.toString('hex'),
    `${'0000000000000010'}7e00000001${'03'}00000001${'0000000000000010'}7e00000001${'0006'}00000000`,
  );
});

// MR-29
test('no RAM at all, and a block that is zero from end to end', async () => {
  for (const pages of [[], [64], [1, 1]]) {
    const file = new LateFile();
    assert.equal((await save(new ScriptedGuest(pages), file)).status, 'completed');
    const { blocks } = file.parsed();
    assert.deepEqual(
      blocks.map(({ present }) => present),
      pages.map(() => 0),
    );
    assert.equal(file.pageWrites.length, 0);
  }
});

/** Pages that the guest writes while it is saved: after batch `when`, and what. */
const stores = fc.array(
  fc.record({
    when: fc.integer({ min: 0, max: 12 }),
    block: fc.integer({ min: 0, max: 1 }),
    page: fc.integer({ min: 0, max: 69 }),
    value: fc.constantFrom(0, 0, 1, 2, 3),
  }),
  { maxLength: 60 },
);

// MR-2, MR-3, MR-7, MR-8, MR-9, MR-11, MR-13: pages go zero and back, scan after scan, while writes are late
test('whatever a guest writes while it is saved, the file is the guest at the switchover', async () => {
  let scansSeen = 0;
  let holesSeen = 0;
  await fc.assert(
    fc.asyncProperty(stores, fc.integer({ min: 0, max: 3 }), async (plan, fill) => {
      const guest = new ScriptedGuest([70, 70], 2 ** 20);
      const blocks = guest.blocks.blocks;
      for (const block of blocks) {
        for (let page = 0; page < 70; page += 1) {
          guest.store(block, page, page % 4 < fill ? page + 1 : 0);
        }
      }
      const file = new LateFile();
      const sink = betweenBatches(guest, file, (batch) => {
        for (const { block, page, value } of plan.filter(({ when }) => when === batch)) {
          guest.store(blocks[block]!, page, value);
        }
      });
      const report = await save(guest, file, {
        sink,
        parameters: { ...defaultParameters, downtimeLimit: 0 },
      });
      assert.equal(report.status, 'completed');
      assertIsGuest(file.parsed(), guest);
      scansSeen = Math.max(scansSeen, report.ramferry.iterations.length);
      holesSeen += file.holes.length;
      // MR-7: headers, three aligned areas at most, and the end
      assert.ok(file.content.length <= 140 * PAGE + 3 * 2 ** 20);
    }),
    { numRuns: 60 },
  );
  assert.ok(scansSeen >= 2 && holesSeen > 0, `${scansSeen} scans, ${holesSeen} holes`);
});

// MR-11: the last page of a scan is the first of the next one: its place in the file is the same, not before the last one
test('a page that is sent twice in a row is written twice in order', async () => {
  const guest = new ScriptedGuest([1]);
  const [block] = guest.blocks.blocks;
  guest.store(block!, 0, 1);
  const file = new LateFile();
  const sink = betweenBatches(guest, file, (batch) => batch < 3 && guest.store(block!, 0, batch + 2));
  const report = await save(guest, file, { sink, parameters: { ...defaultParameters, downtimeLimit: 0 } });
  assert.deepEqual([report['error-desc'], report.status], [undefined, 'completed']);
  assert.equal(file.pageWrites.length, 4);
  assertIsGuest(file.parsed(), guest);
});

// MR-13
test('no bitmap is written while pages are under way', () => {
  const guest = new ScriptedGuest([16]);
  const [block] = guest.blocks.blocks;
  for (let page = 0; page < 16; page += 1) {
    guest.store(block!, page, 1);
  }
  class OrderedFile extends LateFile {
    override write(bytes: Uint8Array, position: number): void {
      assert.equal(this.pendingBytes, 0, 'a bitmap says that a page is there, which is not');
      super.write(bytes, position);
    }
  }
  const file = new OrderedFile();
  const sink = new MappedRamSink(file);
  sink.start(guest);
  const pages = Int32Array.from({ length: 16 }, (_, page) => page);
  sink.writePages({ block: block!, extent: block!.extentOf(0), pages, count: 16 });
  assert.equal(file.pendingBytes, 16 * PAGE);
  sink.writeDevices(guest.saveDevices());
});

/** The digest of the guest's memory as it is now. */
const digestOf = (guest: ScriptedGuest): unknown => {
  const digest = new RamDigest(guest.blocks.blocks);
  for (const [index, block] of guest.blocks.blocks.entries()) {
    block.forEachRange(0, block.usedPages, ({ segment, address, firstPage }, page, count) => {
      digest.setInSegment(index, page * PAGE, segment, address + (page - firstPage) * PAGE, count * PAGE);
    });
  }
  return digest.blocks();
};

test('the digest is of what is in the file, of pages too that leave it as zero or as free', async () => {
  const guest = new ScriptedGuest([140], 2 ** 20);
  const hints = new ScriptedHints();
  guest.hints = hints;
  const block = guest.blocks.blocks[0]!;
  for (let page = 0; page < 140; page += 1) {
    guest.store(block, page, 1);
  }
  const file = new LateFile();
  const sink = betweenBatches(
    guest,
    file,
    (batch) => {
      if (batch === 2) {
        guest.store(block, 5, 0);
        hints.hint(block, 20, 4);
      }
    },
    { digests: true },
  );
  const parameters = { ...defaultParameters, downtimeLimit: 0, hintWaitMs: 0 };
  assert.equal((await save(guest, file, { sink, parameters })).status, 'completed');
  const [{ has }] = file.parsed().blocks as [MappedFile['blocks'][number]];
  assert.deepEqual([4, 5, 6, 19, 20, 23, 24].map(has), [true, false, true, true, false, false, true]);
  assert.equal(file.holes.length, 2);
  for (let page = 20; page < 24; page += 1) {
    guest.store(block, page, 0);
  }
  assert.deepEqual(sink.digest!.blocks(), digestOf(guest));
});

// MR-2
test('pages that are hinted when they are in the file already leave it, and their space with them', async () => {
  const guest = new ScriptedGuest([140], 2 ** 20);
  const hints = new ScriptedHints();
  guest.hints = hints;
  const block = guest.blocks.blocks[0]!;
  for (let page = 0; page < 140; page += 1) {
    guest.store(block, page, 1);
  }
  const file = new LateFile();
  const sink = betweenBatches(guest, file, (batch) => {
    // Batches of 16: the first two are written.
    if (batch === 2) {
      hints.hint(block, 3, 20);
    } else if (batch === 4) {
      guest.store(block, 7, 9);
    }
  });
  const parameters = { ...defaultParameters, downtimeLimit: 0, hintWaitMs: 0 };
  assert.equal((await save(guest, file, { sink, parameters })).status, 'completed');
  const [{ content, has, pagesOffset }] = file.parsed().blocks as [MappedFile['blocks'][number]];
  assert.deepEqual(file.holes, [{ position: pagesOffset + 3 * PAGE, length: 20 * PAGE }]);
  for (let page = 0; page < 140; page += 1) {
    const expected = page === 7 ? 9 : page >= 3 && page < 23 ? 0 : 1;
    assert.deepEqual([content[page * PAGE], has(page)], [expected, expected !== 0], `page ${page}`);
  }
});

// MR-2, FH-2: what is hinted after it was written leaves the file, what the guest writes there later is in it again
for (const acknowledged of [false, true]) {
  test(`pages hinted and taken back while they are saved, ${acknowledged ? 'with' : 'without'} acknowledgement`, async () => {
    let forgotten = 0;
    let holes = 0;
    const acts = fc.array(
      fc.record({ when: fc.nat(25), page: fc.nat(139), value: fc.nat(3), pages: fc.integer({ min: 1, max: 12 }) }),
      { maxLength: 40 },
    );
    await fc.assert(
      fc.asyncProperty(acts, async (plan) => {
        const guest = new ScriptedGuest([140], 2 ** 20);
        const hints = new ScriptedHints();
        hints.acknowledged = acknowledged;
        guest.hints = hints;
        const block = guest.blocks.blocks[0]!;
        for (let page = 0; page < 140; page += 1) {
          guest.store(block, page, (page % 5) + (page < 70 ? 1 : 0));
        }
        const free = new Set<number>();
        /** Hinted, and not to be taken back before it is acknowledged. */
        let held = new Set<number>();
        hints.onAcknowledge = () => {
          held = new Set();
        };
        const file = new LateFile();
        const sink = betweenBatches(guest, file, (batch) => {
          for (const { page, value, pages } of plan.filter(({ when }) => when === batch)) {
            if (value === 0 && (hints.status === 'requested' || hints.status === 'start')) {
              const end = Math.min(140, page + pages);
              hints.hint(block, page, end - page);
              for (let freed = page; freed < end; freed += 1) {
                free.add(freed);
                held.add(freed);
              }
            } else if (!(acknowledged && held.has(page))) {
              free.delete(page);
              guest.store(block, page, value);
            }
          }
        });
        const parameters = { ...defaultParameters, downtimeLimit: 0, hintWaitMs: 0 };
        const { status } = await save(guest, file, { sink, parameters });
        assert.equal(status, 'completed');
        const [{ content, has }] = file.parsed().blocks as [MappedFile['blocks'][number]];
        for (let page = 0; page < 140; page += 1) {
          const inGuest = guest.load(block, page);
          const inFile = content[page * PAGE]!;
          if (free.has(page) && inFile === 0) {
            forgotten += inGuest === 0 ? 0 : 1;
          } else {
            assert.deepEqual([inFile, has(page)], [inGuest, inGuest !== 0], `page ${page}`);
          }
        }
        holes += file.holes.length;
      }),
      { numRuns: 60 },
    );
    assert.ok(forgotten > 0 && holes > 0);
  });
}

// MR-20
test('at an offset: positions are those of the file, nothing before it is touched', async () => {
  const guest = new ScriptedGuest([10]);
  guest.store(guest.blocks.blocks[0]!, 7, 42);
  const file = new LateFile(0x1234);
  file.content.fill(0xee);
  await save(guest, file);
  const [block] = file.parsed().blocks;
  assert.equal(block!.pagesOffset, 2 ** 20);
  assert.ok(file.content.subarray(0, 0x1234).every((byte) => byte === 0xee));
  assertIsGuest(file.parsed(), guest);
});

// MR-19, MR-21
test('a write that fails at any page fails the migration: the guest runs on, the file is dropped', async () => {
  for (const capacity of [0, 1, 4]) {
    const guest = new ScriptedGuest([40]);
    for (let page = 0; page < 40; page += 2) {
      guest.store(guest.blocks.blocks[0]!, page, 1);
    }
    const file = new LateFile();
    file.capacity = capacity;
    const report = await save(guest, file);
    assert.deepEqual([report.status, report['error-desc']], ['failed', 'no space']);
    assert.ok(guest.running && file.isAborted && !file.isCommitted);
  }
});

// MR-22
test('a guest with a block that is not moved is refused before a byte is written', async () => {
  const guest = new ScriptedGuest([10]);
  guest.blocks.add({ name: 'shared', usedLength: PAGE, ignored: true });
  const file = new LateFile();
  const report = await save(guest, file);
  assert.match(report['error-desc']!, /"shared" is left out/);
  assert.equal(file.content.length, 0);
});
