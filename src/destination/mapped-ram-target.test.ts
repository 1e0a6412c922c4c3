// A stream received into a mapped-ram file: each page in its one place, whatever the source sent of it before.

import assert from 'node:assert/strict';
import fs from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import fc from 'fast-check';
import { type MappedFile, readMappedFile } from '../../test/mapped-ram-file.js';
import { inPieces, ScriptedChannel } from '../../test/scripted-channel.js';
import { StreamBuilder, testDevice } from '../../test/streams.js';
import type { PositionedFile } from '../channel/positioned-file.js';
import { openPositionedFile } from '../channel/positioned-file-node.js';
import { ByteWriter } from '../format/byte-writer.js';
import { layoutBlock } from '../format/mapped-ram/layout.js';
import { type DigestedBlock, RamDigest } from '../format/ram-digest.js';
import { Command, ElementType } from '../format/stream/constants.js';
import type { RamSetup } from '../format/stream/stream-handler.js';
import {
  command,
  normalRecord,
  ping,
  ramBodyEnd,
  ramPart,
  ramStart,
  streamEnd,
  xbzrleRecord,
  zeroRecord,
} from '../format/stream/write.js';
import { encodeXbzrle, XBZRLE_OVERFLOW } from '../format/stream/xbzrle.js';
import type { RamferryError } from '../memory/errors.js';
import { fileOffset } from '../memory/units.js';
import { MappedRamTarget } from './mapped-ram-target.js';
import { MigrationDestination } from './migration-destination.js';

const PAGE = 4096;
const folder = fs.mkdtempSync(join(tmpdir(), 'ramferry-target-'));
after(() => fs.rmSync(folder, { recursive: true }));
const path = join(folder, 'out');

/** The worst that a `PositionedFile` may do: pages are read from memory at the next barrier, and the last ones first. */
const writeLate = (file: PositionedFile): void => {
  const writePages = file.writePages.bind(file);
  const barrier = file.barrier.bind(file);
  let given: Parameters<PositionedFile['writePages']>[] = [];
  file.writePages = (...pages) => void given.push(pages);
  file.barrier = () => {
    for (const pages of given.reverse()) {
      writePages(...pages);
    }
    given = [];
    barrier();
  };
};

const receive = async (
  chunks: Iterable<Uint8Array>,
  isLate = false,
): Promise<{ file: MappedFile; status: string; tail: Uint8Array; digest: readonly DigestedBlock[] }> => {
  const file = await openPositionedFile(path);
  if (isLate) {
    writeLate(file);
  }
  // As where the system has none: then the file still holds what the bitmap says is gone.
  file.punchHole = () => {};
  const target = new MappedRamTarget(file, { digests: true });
  let tail: Uint8Array = new Uint8Array();
  const destination = new MigrationDestination({
    channel: new ScriptedChannel().send(chunks),
    target,
    commit: async ({ summary }) => {
      target.writeDevices(summary.tail);
      tail = summary.tail.sections;
      await file.commit();
    },
  });
  const { status } = await destination.run();
  file.abort();
  assert.equal(destination.error, undefined);
  return { file: readMappedFile(path), status, tail, digest: target.digest!.blocks() };
};

/** The digest of memory as it is. */
const digestOf = (
  blocks: readonly { readonly name: string; readonly content: Uint8Array }[],
): readonly DigestedBlock[] => {
  const digest = new RamDigest(blocks.map(({ name, content }) => ({ name, usedLength: content.length })));
  for (const [index, { content }] of blocks.entries()) {
    digest.set(index, 0, content);
  }
  return digest.blocks();
};

const PAGES = 600;
type Kind = 'normal' | 'zero' | 'delta';
const step = fc.record({
  kind: fc.constantFrom<Kind>('normal', 'normal', 'zero', 'delta'),
  block: fc.integer({ min: 0, max: 1 }),
  first: fc.integer({ min: 0, max: PAGES - 1 }),
  // Runs that end inside a write and runs that need more than one.
  count: fc.constantFrom(1, 1, 2, 3, 60, 400),
  value: fc.integer({ min: 1, max: 255 }),
});

const names = ['pc.ram', 'vga.vram'];

/** The stream of these steps, and the memory that a guest has after them. */
const play = (steps: readonly { kind: Kind; block: number; first: number; count: number; value: number }[]) => {
  const memory = names.map(() => Buffer.alloc(PAGES * PAGE));
  const builder = new StreamBuilder()
    .header()
    .raw(command(Command.OPEN_RETURN_PATH))
    .raw(ping(1))
    .ramStart(names.map((name) => ({ name, usedLength: PAGES * PAGE })));
  const out = new ByteWriter();
  const encoded = new Uint8Array(PAGE);
  for (const { kind, block, first, count, value } of steps) {
    for (let page = first; page < Math.min(PAGES, first + count); page += 1) {
      const name = names[block]!;
      const content = memory[block]!.subarray(page * PAGE, (page + 1) * PAGE);
      const before = Buffer.from(content);
      if (kind === 'zero') {
        content.fill(0);
        zeroRecord(out, page * PAGE, name);
        continue;
      }
      if (kind === 'normal') {
        content.fill(value);
        normalRecord(out, page * PAGE, content, name);
        continue;
      }
      content[page % PAGE] = value;
      content[4000] = value;
      const length = encodeXbzrle(before, content, encoded);
      if (length !== XBZRLE_OVERFLOW && length > 0) {
        xbzrleRecord(out, page * PAGE, encoded.subarray(0, length), name);
      }
    }
  }
  builder
    .raw(ramPart(ElementType.SECTION_PART, builder.ramSectionId))
    .raw(out.copy())
    .raw(ramBodyEnd(builder.ramSectionId));
  const { bytes } = builder
    .raw(command(Command.SWITCHOVER_START))
    .end()
    .devices([testDevice('cpu', 300)]);
  return { bytes, memory };
};

// MR-1, MR-2, MR-3, MR-8, MR-9, MR-11, MR-13, MR-14
test('any order of pages, zero pages and deltas: the file holds the last version of each', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(step, { maxLength: 25 }),
      fc.integer({ min: 100, max: 2 ** 20 }),
      fc.boolean(),
      async (steps, piece, isLate) => {
        const { bytes, memory } = play(steps);
        const { file, status, tail, digest } = await receive(inPieces(bytes, piece), isLate);
        assert.equal(status, 'completed');
        assert.deepEqual(file.capabilities, ['mapped-ram']);
        assert.equal(file.totalBytes, 2 * PAGES * PAGE);
        for (const [index, { name, content, has }] of file.blocks.entries()) {
          assert.equal(name, names[index]);
          assert.ok(content.equals(memory[index]!), name);
          for (let page = 0; page < PAGES; page += 1) {
            const zero = !memory[index]!.subarray(page * PAGE, (page + 1) * PAGE).some((byte) => byte !== 0);
            // A delta may make a page zero; it need not clear the bit.
            assert.ok(has(page) || zero);
          }
        }
        assert.deepEqual(digest, digestOf(file.blocks));
        // Device state as it came, no command, one END.
        assert.ok(tail.length > 300);
        assert.equal(file.tail.indexOf(Buffer.from(tail)), 13 + 5 + 13);
      },
    ),
    { numRuns: 40 },
  );
});

// MR-8
test('a page that became zero has no bit, and a delta against it starts from zero', async () => {
  const at = { block: 0, first: 5, count: 1 };
  const { file, digest } = await receive([
    play([
      { ...at, kind: 'normal', value: 7 },
      { ...at, kind: 'zero', value: 0 },
      { ...at, first: 9, kind: 'normal', value: 8 },
      { ...at, first: 9, kind: 'zero', value: 0 },
      { ...at, first: 9, kind: 'delta', value: 3 },
    ]).bytes,
  ]);
  const [ram] = file.blocks;
  assert.deepEqual([ram!.has(5), ram!.has(9), ram!.present], [false, true, 1]);
  assert.equal(ram!.content[9 * PAGE], 0);
  assert.equal(ram!.content[9 * PAGE + 4000], 3);
  assert.deepEqual(digest, digestOf(file.blocks), 'the digest is of what is in the file now');
});

// MR-8, MR-11
test('a page that becomes zero while its content waits to be written leaves a hole', async () => {
  const at = { block: 0, first: 5, count: 1 };
  const { bytes } = play([
    { ...at, count: 3, kind: 'normal', value: 7 },
    { ...at, kind: 'zero', value: 0 },
  ]);
  const file = await openPositionedFile(path);
  writeLate(file);
  const calls: string[] = [];
  const { barrier } = file;
  file.barrier = () => {
    calls.push('barrier');
    barrier();
  };
  file.punchHole = () => void calls.push('hole');
  const target = new MappedRamTarget(file);
  await new MigrationDestination({ channel: new ScriptedChannel().send([bytes]), target }).run();
  file.abort();
  assert.deepEqual(calls, ['barrier', 'hole']);
});

// MR-11
test('more than waits for the writer at a time: whole runs, and pages that have no neighbours', async () => {
  const count = 5000;
  for (const distance of [1, 2]) {
    const builder = new StreamBuilder().header().ramStart([{ name: 'ram', usedLength: count * PAGE }]);
    const memory = Buffer.alloc(count * PAGE);
    const out = new ByteWriter();
    for (let page = 0; page < count; page += distance) {
      const content = memory.subarray(page * PAGE, (page + 1) * PAGE).fill(1 + (page % 251));
      normalRecord(out, page * PAGE, content, 'ram');
    }
    const { bytes } = builder
      .raw(ramPart(ElementType.SECTION_PART, builder.ramSectionId))
      .raw(out.copy())
      .raw(ramBodyEnd(builder.ramSectionId))
      .end()
      .devices([testDevice('cpu', 300)]);
    const { file } = await receive(inPieces(bytes, 2 ** 20), true);
    assert.ok(file.blocks[0]!.content.equals(memory));
    assert.equal(file.blocks[0]!.present, count / distance);
  }
});

test('pages of zeros that a source sends as content are none', async () => {
  const { bytes } = play([{ kind: 'normal', block: 0, first: 5, count: 3, value: 0 }]);
  const { file } = await receive([bytes]);
  assert.equal(file.blocks[0]!.present, 0);
});

/** Keeps what is written to it in small pieces, wherever that is. */
const farFile = (): { file: PositionedFile; at: (position: number) => number | undefined } => {
  const bytes = new Map<number, number>();
  const zeros = Buffer.alloc(2 ** 16);
  const write = (given: Uint8Array, position: number): void => {
    // A bitmap has a quarter of a GiB.
    for (let start = 0; start < given.length; start += zeros.length) {
      const piece = given.subarray(start, start + zeros.length);
      if (given.length <= zeros.length || zeros.compare(piece) !== 0) {
        piece.forEach((byte, at) => void bytes.set(position + start + at, byte));
      }
    }
  };
  const file: PositionedFile = {
    name: 'far',
    start: fileOffset(0),
    pendingBytes: 0,
    write,
    writeOnce: write,
    writePages: (given, at, length, position) => write(given.subarray(at, at + length), position),
    barrier: () => {},
    read: (target, position) => target.forEach((_, at) => void (target[at] = bytes.get(position + at) ?? 0)),
    punchHole: () => {},
    commit: async () => {},
    abort: () => {},
  };
  return { file, at: (position) => bytes.get(position) };
};

// CB-25, MR-1: a page index of 2^31 and more is written to its place, and its bit is set.
test('pages around 2^31', { timeout: 60_000 }, async () => {
  const pages = [2 ** 31 - 1, 2 ** 31, 2 ** 31 + 1, 2 ** 31 + 63];
  const usedLength = (2 ** 31 + 64) * PAGE;
  const { bytes } = new StreamBuilder().header();
  const out = new ByteWriter();
  for (const page of pages) {
    normalRecord(out, page * PAGE, new Uint8Array(PAGE).fill(1 + (page % 100)), 'pc.ram');
  }
  // Behind it, the one before is not what 32-bit arithmetic finds.
  zeroRecord(out, (2 ** 31 + 1) * PAGE, 'pc.ram');
  const { file, at } = farFile();
  const target = new MappedRamTarget(file, { digests: true });
  const destination = new MigrationDestination({
    channel: new ScriptedChannel().send([
      bytes,
      ramStart(1, [{ name: 'pc.ram', usedLength }]),
      ramPart(ElementType.SECTION_PART, 1),
      out.copy(),
      ramBodyEnd(1),
      ramPart(ElementType.SECTION_END, 1),
      ramBodyEnd(1),
      streamEnd(''),
    ]),
    target,
    commit: async ({ summary }) => target.writeDevices(summary.tail),
  });
  const { status } = await destination.run();
  assert.deepEqual([status, destination.error], ['completed', undefined]);
  const { bitmapOffset, pagesOffset } = layoutBlock(fileOffset(headerEnd(at)), usedLength, PAGE);
  assert.equal(at(bitmapOffset + 2 ** 28 - 1), 0x80, 'page 2^31 - 1');
  assert.equal(at(bitmapOffset + 2 ** 28), 0x01, 'page 2^31, and not 2^31 + 1');
  assert.equal(at(pagesOffset + 2 ** 31 * PAGE), 1 + (2 ** 31 % 100));
  assert.deepEqual(Object.keys(target.digest!.blocks()[0]!.mebibytes).map(Number), [2 ** 23 - 1, 2 ** 23]);
});

/** Where the name of the only block and its length end, in a file that begins as QEMU's do. */
const headerEnd = (at: (position: number) => number | undefined): number => {
  const name = Buffer.from('\x06pc.ram', 'latin1');
  for (let start = 0; ; start += 1) {
    if (name.every((byte, index) => at(start + index) === byte)) {
      return start + name.length + 8;
    }
  }
};

test('a source that announces more pages than any bitmap here holds', async () => {
  const { file } = farFile();
  const target = new MappedRamTarget(file);
  const block = { name: 'pc.ram', usedLength: 2 ** 43, index: 0, lengthOffset: 77, address: undefined };
  assert.throws(
    () =>
      target.ramSetup({
        sectionId: 1,
        targetPageSize: 1024,
        totalBytes: 2 ** 43,
        blocks: [block],
      } as unknown as RamSetup),
    { code: 'MEMORY_LIMIT', offset: 77 },
  );
});

test('a source that announces more RAM than any guest has is refused before anything is reserved', async () => {
  const file = await openPositionedFile(path);
  const { bytes } = new StreamBuilder().header();
  const setup = ramStart(1, [{ name: 'pc.ram', usedLength: 2 ** 44 + PAGE }]);
  const destination = new MigrationDestination({
    channel: new ScriptedChannel().send([bytes, setup]),
    target: new MappedRamTarget(file),
  });
  await destination.run();
  file.abort();
  assert.equal((destination.error as RamferryError).code, 'MEMORY_LIMIT');
  assert.match(destination.error!.message, /17592186048512 bytes of RAM.* at byte \d+/);
});
