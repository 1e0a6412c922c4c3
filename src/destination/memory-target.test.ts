// Loading into guest memory: every kind of record, blocks over several segments, any chunking.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { inPieces, ScriptedChannel } from '../../test/scripted-channel.js';
import { patternPage, richStream, StreamBuilder, type TestRecord, testDevice } from '../../test/streams.js';
import type { ReadRamBlock } from '../format/stream/stream-handler.js';
import { RamferryError } from '../memory/errors.js';
import type { RamBlock } from '../memory/ram-block.js';
import { RamBlockList } from '../memory/ram-block-list.js';
import { guestAddress } from '../memory/units.js';
import { MemoryTarget, type MemoryTargetOptions } from './memory-target.js';
import { MigrationDestination } from './migration-destination.js';

const PAGE = 4096;
const LIMIT = 2 ** 30;
/** 64 pages, the smallest there is: blocks of these tests lie in several. */
const segmentBytes = 64 * PAGE;

const smallSegments = (): RamBlockList => RamBlockList.create({ segmentBytes });

/** Receives a stream in pieces of the given sizes; returns the destination once it has ended. */
const receive = async (
  bytes: Uint8Array,
  options: MemoryTargetOptions | MemoryTarget,
  ...sizes: number[]
): Promise<MigrationDestination> => {
  const channel = new ScriptedChannel().sendAndEnd(inPieces(bytes, ...sizes, ...(sizes.length > 0 ? [] : [2 ** 20])));
  const target = options instanceof MemoryTarget ? options : new MemoryTarget(options);
  const destination = new MigrationDestination({ channel, target });
  await destination.run();
  return destination;
};

/** As `receive`, but with a first piece that ends before any page record: the rest comes through staging memory. */
const receiveStaged = (
  builder: StreamBuilder,
  head: number,
  options: MemoryTargetOptions,
): Promise<MigrationDestination> => receive(builder.bytes, options, head, 2 ** 20);

const assertMemory = (blocks: RamBlockList, expected: ReadonlyMap<string, Uint8Array>): void => {
  for (const [name, content] of expected) {
    const block = blocks.find(name);
    assert.ok(block !== undefined, name);
    assert.equal(block.usedLength, content.length);
    for (let page = 0; page < block.usedPages; page += 1) {
      const found = Buffer.from(block.read(page * PAGE, PAGE));
      assert.ok(found.equals(content.subarray(page * PAGE, (page + 1) * PAGE)), `page ${page} of ${name}`);
    }
  }
};

const isWritten = (block: RamBlock, page: number): boolean => {
  const { segment, address, firstPage } = block.extentOf(page);
  const bit = address / PAGE + page - firstPage;
  return (segment.bytes[segment.writtenBitmap + (bit >>> 3)] & (1 << (bit & 7))) !== 0;
};

const refusal = (code: string): ((error: unknown) => true) => {
  return (error) => {
    assert.ok(error instanceof RamferryError, String(error));
    assert.equal(error.code, code, error.message);
    assert.equal(error.file, 'test:source');
    return true;
  };
};

test('state of a device that iterates, which no guest here is loaded from, is refused and not left out', async () => {
  const { bytes } = new StreamBuilder()
    .header()
    .ramStart([{ name: 'pc.ram', usedLength: PAGE }])
    .iterable('x/vfio')
    .part([{ block: 'pc.ram', page: 0, kind: 'zero' }])
    .end()
    .devices([testDevice('cpu', 40)]);
  let isCommitted = false;
  const destination = new MigrationDestination({
    channel: new ScriptedChannel().sendAndEnd(inPieces(bytes, 2 ** 20)),
    target: new MemoryTarget({ blocks: smallSegments(), memoryLimit: LIMIT }),
    commit: async () => {
      isCommitted = true;
    },
  });
  assert.equal((await destination.run()).status, 'failed');
  assert.ok(refusal('UNKNOWN_ITERABLE')(destination.error));
  assert.equal(isCommitted, false);
});

for (const [name, sizes] of [
  ['whole', []],
  ['one byte at a time', [1]],
  ['in pieces of a page', [PAGE]],
] as const) {
  test(`a stream with everything, ${name}`, async () => {
    const { bytes, memory } = richStream();
    const blocks = smallSegments();
    // It asks for answers, so it must not end before it has one.
    const channel = new ScriptedChannel().send(inPieces(bytes, ...sizes, ...(sizes.length > 0 ? [] : [bytes.length])));
    const target = new MemoryTarget({ blocks, memoryLimit: LIMIT });
    const report = await new MigrationDestination({ channel, target }).run();
    assert.equal(report.status, 'completed', report['error-desc']);
    assertMemory(blocks, memory);
    assert.equal(report.ram.transferred, bytes.length);
    assert.deepEqual(
      [report.ram.normal, report.ram.duplicate, report.ramferry.xbzrlePages, report.ram.total],
      [6, 3, 2, 69 * PAGE],
    );
    assert.deepEqual(report.ramferry.sections, { ram: 5, devices: 5 });
  });
}

test('a guest that comes in is claimed as soon as its blocks are known, and free again at the end, however that comes', async () => {
  const { bytes } = richStream();
  const blocks = smallSegments();
  const seen: (string | undefined)[] = [];
  const look = (): void => {
    seen.push(blocks.claimedFor);
    assert.throws(() => blocks.claim('save'), {
      code: 'GUEST_BUSY',
      message: /while an incoming migration of the guest/,
    });
    assert.throws(() => blocks.add({ name: 'dimm0', usedLength: PAGE }), { code: 'GUEST_BUSY' });
  };
  const run = async (cut: number): Promise<string> => {
    const channel = new ScriptedChannel().send([bytes.slice(0, cut)]);
    if (cut < bytes.length) {
      channel.sendAndEnd([]);
    }
    const atEnd: (string | undefined)[] = [];
    const destination = new MigrationDestination({
      channel,
      target: new MemoryTarget(blocks.blocks.length === 0 ? { blocks, memoryLimit: LIMIT } : { blocks }),
      onStatus: (status) => {
        if (status === 'active' || status === 'device') {
          look();
        } else if (status !== 'setup') {
          atEnd.push(blocks.claimedFor);
        }
      },
      commit: async () => look(),
    });
    const { status } = await destination.run();
    assert.deepEqual(atEnd, [undefined]);
    return status;
  };
  assert.equal(await run(bytes.length), 'completed');
  assert.ok(seen.length >= 2 && seen.every((purpose) => purpose === 'incoming'));
  assert.equal(await run(bytes.length - 100), 'failed');
});

test('nothing is loaded into a guest that is being migrated: its memory, its lengths and its migration stay as they are', async () => {
  const { bytes } = richStream();
  const blocks = smallSegments();
  await receive(bytes, { blocks, memoryLimit: LIMIT });
  const claim = blocks.claim('migration');
  const [block] = blocks.blocks;
  block!.write(0, Uint8Array.of(1, 2, 3));
  const channel = new ScriptedChannel().send([bytes]);
  const destination = new MigrationDestination({ channel, target: new MemoryTarget({ blocks }) });
  assert.equal((await destination.run()).status, 'failed');
  assert.match(
    destination.error!.message,
    /^An incoming migration of this guest cannot start while a migration of the guest/,
  );
  assert.deepEqual(block!.read(0, 3), Uint8Array.of(1, 2, 3));
  claim.check(() => undefined);
  claim.release();
});

const BLOCKS = [
  { name: 'pc.ram', usedLength: 200 * PAGE },
  { name: 'vga.vram', usedLength: 70 * PAGE },
  { name: 'rom', usedLength: PAGE },
];

const record = fc
  .record({ block: fc.constantFrom(...BLOCKS), at: fc.nat(), kind: fc.nat(5), seed: fc.nat(1000), run: fc.nat(20) })
  .map(({ block, at, kind, seed, run }): TestRecord[] => {
    const pages = block.usedLength / PAGE;
    // Runs of pages, as a source sends them, now and then across the border of two segments.
    return Array.from({ length: Math.min(run + 1, pages - (at % pages)) }, (_, index) => {
      const page = (at % pages) + index;
      if (kind < 2) {
        return { block: block.name, page, kind: 'zero' };
      }
      // Few changes, so that XBZRLE does not overflow; the builder knows what was there before.
      const content = kind === 5 ? new Uint8Array(PAGE).fill(seed, 100, 1000) : patternPage(seed + index);
      return { block: block.name, page, kind: kind === 5 ? 'xbzrle' : 'normal', content };
    });
  });

test('the last record of a page wins, whatever came before and however the bytes arrive', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(record, { maxLength: 25 }),
      fc.array(fc.integer({ min: 1, max: 30_000 }), { minLength: 1, maxLength: 8 }),
      async (runs, sizes) => {
        const builder = new StreamBuilder().header().ramStart(BLOCKS);
        const usable: TestRecord[] = [];
        const written = new Set<string>();
        for (const one of runs.flat()) {
          // A delta against a page of random bytes would not fit.
          const key = `${one.block}/${one.page}`;
          if (one.kind !== 'xbzrle' || !written.has(key)) {
            usable.push(one);
          }
          if (one.kind === 'normal') {
            written.add(key);
          }
        }
        builder.part(usable.slice(0, usable.length / 2)).end(usable.slice(usable.length / 2));
        builder.devices([testDevice('cpu', 100)]);
        const blocks = smallSegments();
        const destination = await receive(builder.bytes, { blocks, memoryLimit: LIMIT }, ...sizes);
        assert.equal(destination.error, undefined);
        assertMemory(blocks, builder.memory);
      },
    ),
    { numRuns: 40 },
  );
});

test('XBZRLE deltas chain: each is against what the one before left', async () => {
  const builder = new StreamBuilder().header().ramStart(BLOCKS);
  const content = patternPage(1);
  builder.part([{ block: 'pc.ram', page: 150, kind: 'normal', content }]);
  for (let step = 1; step < 20; step += 1) {
    const next = content.slice();
    next.fill(step, step * 10, step * 10 + 5);
    builder.part([{ block: 'pc.ram', page: 150, kind: 'xbzrle', content: next }]);
    content.set(next);
  }
  builder.end().devices([]);
  const blocks = smallSegments();
  const destination = await receive(builder.bytes, { blocks, memoryLimit: LIMIT });
  assert.equal(destination.error, undefined);
  assertMemory(blocks, builder.memory);
});

for (const [where, bytesPerSegment] of [
  ['in segments of their own', segmentBytes],
  ['behind another block in one segment', 16 * segmentBytes],
] as const) {
  test(`zero pages into fresh memory touch nothing, over content they are stored: blocks ${where}`, async () => {
    const pages = Array.from({ length: 70 }, (_, page) => page);
    const builder = new StreamBuilder().header().ramStart(BLOCKS);
    const head = builder.length;
    builder
      .part([{ block: 'pc.ram', page: 0, kind: 'normal', content: patternPage(1) }])
      .part(pages.map((page) => ({ block: 'vga.vram', page, kind: 'zero' })))
      .part([10, 65].map((page) => ({ block: 'vga.vram', page, kind: 'normal', content: patternPage(page) })))
      // In bulk, and alone: the first record of another block names it and takes the other path.
      .part([
        { block: 'vga.vram', page: 9, kind: 'zero' },
        { block: 'vga.vram', page: 10, kind: 'zero' },
        { block: 'rom', page: 0, kind: 'zero' },
        { block: 'vga.vram', page: 65, kind: 'zero' },
      ])
      .end()
      .devices([]);
    const blocks = RamBlockList.create({ segmentBytes: bytesPerSegment });
    for (const block of BLOCKS) {
      blocks.add(block);
    }
    // A byte that nobody has noted as written shows whether a zero page was stored.
    const [vram, rom] = [blocks.find('vga.vram')!, blocks.find('rom')!];
    const marks = [vram.extentOf(9), rom.extentOf(0)].map(({ segment, address, firstPage }, index) => {
      const at = address + (index === 0 ? 9 - firstPage : 0) * PAGE;
      segment.bytes[at] = 1;
      return { bytes: segment.bytes, at };
    });
    const destination = await receiveStaged(builder, head, { blocks });
    assert.equal(destination.error, undefined);
    for (const { bytes, at } of marks) {
      assert.equal(bytes[at], 1);
      bytes[at] = 0;
    }
    assertMemory(blocks, builder.memory);
    assert.deepEqual(
      pages.filter((page) => isWritten(vram, page)),
      [10, 65],
    );
    assert.ok(!isWritten(rom, 0));
  });
}

test('a source that hops between segments: what an earlier read left in their staging is never loaded', async () => {
  // All records are alike, so that every piece puts new records where other segments have old ones.
  const hops = Array.from(
    { length: 120 },
    (_, index): TestRecord => ({
      block: 'pc.ram',
      page: [0, 1, 0, 2, 2, 1, 0, 0, 1, 2, 1][index % 11]! * 64 + (index % 7),
      kind: 'normal',
      content: patternPage(index),
    }),
  );
  const builder = new StreamBuilder().header().ramStart(BLOCKS);
  const head = builder.length + 5 + 7;
  builder.end(hops).devices([]);
  for (const recordsPerPiece of [1, 2, 4, 5]) {
    const pieces = [
      builder.bytes.subarray(0, head),
      ...inPieces(builder.bytes.subarray(head), recordsPerPiece * (PAGE + 8)),
    ];
    const channel = new ScriptedChannel().send(pieces);
    const blocks = smallSegments();
    const target = new MemoryTarget({ blocks, memoryLimit: LIMIT });
    await new MigrationDestination({ channel, target }).run();
    assertMemory(blocks, builder.memory);
  }
});

test('a page behind the used length of a block is refused, although there is memory for it', async () => {
  const builder = new StreamBuilder().header().ramStart([{ name: 'pc.ram', usedLength: 2 * PAGE }]);
  // The builder's own block is larger than the announced one.
  builder.memory.set('pc.ram', new Uint8Array(8 * PAGE));
  const pages = [0, 1, 5].map(
    (page): TestRecord => ({ block: 'pc.ram', page, kind: 'normal', content: patternPage(1) }),
  );
  const head = builder.length;
  const blocks = smallSegments();
  const block = blocks.add({ name: 'pc.ram', usedLength: 2 * PAGE, maxLength: 8 * PAGE });
  const destination = await receiveStaged(builder.part(pages), head, { blocks });
  assert.throws(() => {
    throw destination.error;
  }, refusal('PAGE_OUTSIDE_BLOCK'));
  assert.ok(isWritten(block, 1) && !isWritten(block, 5));
});

test('runs go through the kernel; single copies are for named records and changes of segment', async () => {
  class CountingTarget extends MemoryTarget {
    single: string[] = [];
    override page(block: ReadRamBlock, page: number, bytes: Uint8Array, at: number): void {
      this.single.push(`${block.name} ${page}`);
      super.page(block, page, bytes, at);
    }
  }
  const content = patternPage(7);
  const run = (first: number, count: number): TestRecord[] =>
    Array.from({ length: count }, (_, index) => ({ block: 'pc.ram', page: first + index, kind: 'normal', content }));
  const builder = new StreamBuilder().header().ramStart(BLOCKS);
  const head = builder.length;
  builder
    .part([...run(0, 128)])
    .end()
    .devices([]);
  const { bytes } = builder;
  const target = new CountingTarget({ blocks: smallSegments(), memoryLimit: LIMIT });
  // The head in one piece, then each segment's records in one piece, then the rest.
  const segmentRecords = 64 * (PAGE + 8);
  const destination = await receive(bytes, target, head, 5 + 7 + segmentRecords, segmentRecords, 2 ** 20);
  assert.equal(destination.error, undefined);
  assert.equal(target.pages.normal, 128);
  // Page 0 names its block; page 64 is the first of the second segment, whose staging the rest of its piece is not in.
  assert.deepEqual(target.single.slice(0, 2), ['pc.ram 0', 'pc.ram 64']);
  assert.ok(target.single.length <= 2 + 64, `${target.single.length} single copies`);
});

test('a guest larger than the memory limit is refused before anything is reserved', async () => {
  const { bytes } = new StreamBuilder().header().ramStart(BLOCKS);
  const blocks = smallSegments();
  const destination = await receive(bytes, { blocks, memoryLimit: 269 * PAGE });
  assert.throws(() => {
    throw destination.error;
  }, refusal('MEMORY_LIMIT'));
  const { message, offset, value } = destination.error as RamferryError;
  assert.match(message, /"vga.vram" of 286720 bytes/);
  assert.equal(value, 70 * PAGE);
  // Where the length stands, right behind the name.
  assert.equal(Buffer.from(bytes).toString('latin1', offset! - 8, offset), 'vga.vram');
  assert.deepEqual(blocks.blocks, []);
});

/** An existing guest whose geometry fits BLOCKS. */
const existingGuest = (changes: { rom?: object; vram?: object } = {}): RamBlockList => {
  const blocks = smallSegments();
  blocks.add(BLOCKS[0]!);
  blocks.add({ ...BLOCKS[1]!, ...changes.vram });
  blocks.add({ ...BLOCKS[2]!, ...changes.rom });
  return blocks;
};

const oneOfEach = (): StreamBuilder =>
  new StreamBuilder()
    .header()
    .ramStart(BLOCKS)
    .part(BLOCKS.map(({ name }) => ({ block: name, page: 0, kind: 'normal', content: patternPage(name.length) })))
    .end()
    .devices([]);

test('the memory of an existing guest is loaded, its resizable blocks resized', async () => {
  const blocks = existingGuest({ rom: { usedLength: 3 * PAGE, maxLength: 8 * PAGE, resizable: true } });
  const { bytes, memory } = oneOfEach();
  const destination = await receive(bytes, { blocks });
  assert.equal(destination.error, undefined);
  assertMemory(blocks, memory);
});

test('a block that the source does not have stays, with a warning', async () => {
  const blocks = existingGuest();
  const extra = blocks.add({ name: 'extra', usedLength: PAGE });
  extra.write(0, patternPage(9));
  const destination = await receive(oneOfEach().bytes, { blocks });
  assert.deepEqual(destination.report().ramferry.warnings, ['The source does not have RAM block "extra".']);
  assert.deepEqual(extra.read(0, PAGE), patternPage(9));
});

// PL-42
for (const [name, pattern, changes] of [
  ['an unknown block', /"rom", which is unknown here/, { rom: { name: 'other' } }],
  ['a block that is not migratable', /"rom", which is not migratable/, { rom: { migratable: false } }],
  [
    // The block before it in the stream could be resized.
    'another length',
    /"rom" of 4096 bytes, here it has 8192/,
    { rom: { usedLength: 2 * PAGE }, vram: { usedLength: PAGE, maxLength: 80 * PAGE, resizable: true } },
  ],
  [
    'a length above the maximum',
    /"vga.vram" of 286720 bytes, here it can have multiples of 4096 up to 8192/,
    { vram: { usedLength: PAGE, maxLength: 2 * PAGE, resizable: true } },
  ],
  [
    'a length that is not whole host pages',
    /"rom" of 4096 bytes, here it can have multiples of 8192/,
    { rom: { usedLength: 2 * PAGE, hostPageSize: 2 * PAGE, resizable: true } },
  ],
] as const) {
  test(`${name} is refused before any page is applied or any block resized`, async () => {
    const blocks = existingGuest(changes);
    const lengths = blocks.blocks.map((block) => block.usedLength);
    const destination = await receive(oneOfEach().bytes, { blocks });
    assert.throws(() => {
      throw destination.error;
    }, refusal('RAM_GEOMETRY'));
    assert.match(destination.error!.message, pattern);
    assert.deepEqual(
      blocks.blocks.map((block) => block.usedLength),
      lengths,
    );
    assert.ok(!isWritten(blocks.find('pc.ram')!, 0));
  });
}

test('pages of another size than the kernels know are refused', async () => {
  const builder = new StreamBuilder(1, 16384)
    .header({ targetPageBits: 14 })
    .ramStart([{ name: 'a', usedLength: 65536 }]);
  const destination = await receive(builder.bytes, { blocks: smallSegments(), memoryLimit: LIMIT });
  assert.throws(() => {
    throw destination.error;
  }, refusal('TARGET_PAGE_SIZE'));
});

const SHARED = ['x-ignore-shared'];
const sharedStream = (address: number, capabilities = SHARED): StreamBuilder =>
  new StreamBuilder()
    .header({ capabilities })
    .ramStart([...BLOCKS, { name: 'shared', usedLength: PAGE, address }], capabilities);
const sharingGuest = (): RamBlockList => {
  const blocks = existingGuest();
  blocks.add({ name: 'shared', usedLength: PAGE, shared: true, ignored: true, guestAddress: guestAddress(0x10000) });
  return blocks;
};

test('memory that both sides share: same address, same capability, no pages', async () => {
  const good = await receive(sharedStream(0x10000).end().devices([]).bytes, { blocks: sharingGuest() });
  assert.equal(good.error, undefined);
  for (const [bytes, blocks, code] of [
    [sharedStream(0x20000).bytes, sharingGuest(), 'RAM_GEOMETRY'],
    [sharedStream(0, []).bytes, sharingGuest(), 'CAPABILITY_MISMATCH'],
    [sharedStream(0x10000).bytes, existingGuest(), 'CAPABILITY_MISMATCH'],
    // PL-40
    [
      sharedStream(0x10000).part([{ block: 'shared', page: 0, kind: 'zero' }]).bytes,
      sharingGuest(),
      'PAGE_OF_IGNORED_BLOCK',
    ],
  ] as const) {
    const bad = await receive(bytes, { blocks });
    assert.throws(() => {
      throw bad.error;
    }, refusal(code));
  }
});
