// Bad input: cut, mutated, and made to be slow. The reader refuses with an offset or takes it; it never crashes, hangs,
// or holds more than it was told to.

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { startCpuTimer } from '../../../test/cpu-time.js';
import { random } from '../../../test/random.js';
import { patternPage, richStream, StreamBuilder } from '../../../test/streams.js';
import { RamferryError } from '../../memory/errors.js';
import { ByteWriter } from '../byte-writer.js';
import { openSnapshot } from '../open-snapshot.js';
import type { Snapshot } from '../snapshot.js';
import type { DeviceTail } from './device-tail.js';
import { StreamReader } from './read.js';
import type { StreamHandler, StreamSummary } from './stream-handler.js';
import { footer, ramPart, sectionHeader, streamEnd, zeroRecord } from './write.js';

const { RAMFERRY_SLOW } = process.env;

const ignoreAll: StreamHandler = { ramSetup() {}, zeroPage() {}, page() {}, xbzrlePage() {}, end() {} };

/** Requires that `error` is a refusal of the input that names where, inside the first `size` bytes. */
const assertRefusal = (error: unknown, size: number): void => {
  assert.ok(error instanceof RamferryError, `${error instanceof Error ? error.stack : error}`);
  assert.equal(error.kind, 'invalid');
  assert.ok(error.offset !== undefined && error.offset >= 0 && error.offset <= size, error.message);
  assert.match(error.message, new RegExp(`byte ${error.offset}\\b`));
};

describe('a cut stream', () => {
  const { bytes, tail } = richStream();
  const eof = bytes.length - tail.description.length - 6;

  const cut = (end: number): StreamSummary | undefined => {
    let summary: StreamSummary | undefined;
    const reader = new StreamReader({ ...ignoreAll, end: (ended) => (summary = ended) });
    reader.push(bytes, 0, end);
    reader.end();
    return summary;
  };

  test('before EOF is refused, at the offset where it ends', () => {
    for (let end = 0; end <= eof; end += 1) {
      try {
        cut(end);
      } catch (error) {
        assertRefusal(error, end);
        assert.equal((error as RamferryError).code, 'STREAM_INCOMPLETE');
        assert.equal((error as RamferryError).offset, end);
        continue;
      }
      assert.fail(`the first ${end} bytes pass for a stream`);
    }
  });

  test('behind EOF has everything but its description, and says so', () => {
    for (let end = eof + 1; end < bytes.length; end += 1) {
      const summary = cut(end);
      assert.equal(summary?.complete, end === eof + 1);
      assert.match(summary?.warnings[0] ?? '', /description is (missing|cut)/);
      assert.deepEqual(summary?.tail.sections, tail.sections);
    }
  });
});

/** A stream small enough to be mutated thousands of times, with one of each element. */
const smallStream = (): Uint8Array => {
  const early = { name: 'x/early', instance: 0, version: 1, body: patternPage(9, 40) };
  const description =
    '{"page_size": 4096, "devices": [' +
    '{"name": "x/early", "instance_id": 0, "size": 40, "fields": [{"name": "data", "size": 40, "type": "buffer"}]}, ' +
    '{"name": "cpu", "instance_id": 0, "vmsd_name": "cpu", "version": 1, "fields": [{"name": "r", "array_len": 4, ' +
    '"type": "uint64", "size": 8}], "subsections": [{"vmsd_name": "cpu/x", "version": 1, "fields": [{"size": 3}]}]}]}';
  const body = new ByteWriter().bytes(patternPage(1, 32)).u8(5).str8('cpu/x').be32(1).bytes(patternPage(1, 3)).copy();
  const section = (id: number, name: string, bytes: Uint8Array): Uint8Array =>
    footer(sectionHeader(new ByteWriter(), 4, id, name, 0, 1).bytes(bytes), id).copy();
  const tail: DeviceTail = {
    early: section(3, early.name, early.body),
    sections: section(4, 'cpu', body),
    description,
  };
  return new StreamBuilder(1, 1024)
    .header({ targetPageBits: 10, uuid: '00112233-4455-6677-8899-aabbccddeeff' })
    .ramStart([
      { name: 'pc.ram', usedLength: 8 * 1024 },
      { name: 'rom', usedLength: 1024 },
    ])
    .raw(tail.early)
    .part([
      { block: 'pc.ram', page: 1, kind: 'normal', content: patternPage(1, 1024) },
      { block: 'pc.ram', page: 2, kind: 'zero' },
      { block: 'rom', page: 0, kind: 'zero' },
    ])
    .end([{ block: 'pc.ram', page: 1, kind: 'xbzrle', content: patternPage(1, 1024).fill(1, 0, 9) }])
    .tail(tail).bytes;
};

test('a mutated stream is refused with an offset, or read to its end', () => {
  const runs = RAMFERRY_SLOW === '1' ? 100_000 : 3_000;
  const original = smallStream();
  const next = random(20_260_101);
  const below = (limit: number): number => Math.floor(next() * limit);
  const extremes = [0, 1, 4, 5, 6, 7, 8, 0x20, 0x7e, 0x7f, 0x80, 0xff];
  const position = (bytes: Uint8Array): number =>
    // Half of them outside the one page that is stored whole.
    next() < 0.5 ? below(bytes.length) : below(2) === 0 ? below(250) : bytes.length - 1 - below(bytes.length - 1300);
  const mutate = (): Uint8Array => {
    let bytes = original.slice();
    for (let count = 1 + below(4); count > 0; count -= 1) {
      const at = Math.min(position(bytes), bytes.length - 1);
      const length = 1 + below(8);
      switch (below(5)) {
        case 0:
          bytes[at] ^= 1 << below(8);
          break;
        case 1:
          bytes[at] = extremes[below(extremes.length)];
          break;
        case 2:
          bytes.fill(extremes[below(extremes.length)], at, Math.min(at + length, bytes.length));
          break;
        case 3:
          bytes = Buffer.concat([bytes.subarray(0, at), bytes.subarray(Math.min(at + length, bytes.length - 1))]);
          break;
        default:
          bytes = Buffer.concat([bytes.subarray(0, at + length), bytes.subarray(at)]);
      }
    }
    return bytes;
  };

  let refused = 0;
  const heapBefore = process.memoryUsage().rss;
  for (let run = 0; run < runs; run += 1) {
    const bytes = mutate();
    let snapshot: Snapshot;
    try {
      snapshot = openSnapshot((at, target) => target.set(bytes.subarray(at, at + target.length)), bytes.length, {
        indexLimitBytes: 2 ** 20,
      });
    } catch (error) {
      assertRefusal(error, bytes.length);
      refused += 1;
      continue;
    }
    for (const { index, usedLength } of snapshot.setup.blocks) {
      const { presentPages, zeroPages, absentPages } = snapshot.counts(index);
      assert.equal((presentPages + zeroPages + absentPages) * snapshot.setup.targetPageSize, usedLength);
    }
  }
  // Both kinds happen, or the mutations are no good.
  assert.ok(refused > runs / 2 && refused < runs, `${refused} of ${runs} refused`);
  // Input and index are a few KiB a run; what grows with the runs is a leak.
  assert.ok(process.memoryUsage().rss - heapBefore < 300 * 2 ** 20);
});

describe('1 MiB that is made to be slow takes no longer than 1 MiB of anything', () => {
  const MIB = 2 ** 20;
  const repeat = (unit: Uint8Array | string, length = MIB): Uint8Array => Buffer.alloc(length, unit as Uint8Array);
  const begin = (): StreamBuilder => new StreamBuilder().header().ramStart([{ name: 'a', usedLength: 4096 }]);
  const inTail = (bytes: Uint8Array, ...more: Uint8Array[]): Uint8Array =>
    Buffer.concat([begin().end().bytes, sectionHeader(new ByteWriter(), 4, 2, 'cpu', 0, 1).copy(), bytes, ...more]);
  const early = (bytes: Uint8Array): Uint8Array =>
    Buffer.concat([begin().bytes, sectionHeader(new ByteWriter(), 4, 2, 'cpu', 0, 1).copy(), bytes]);
  const unit = (fill: (out: ByteWriter) => void): Uint8Array => {
    const out = new ByteWriter();
    fill(out);
    return out.copy();
  };
  const description = (inner: string): Uint8Array =>
    begin()
      .end()
      .raw(streamEnd(`{"devices": [${inner}]}`)).bytes;

  const cases: Readonly<Record<string, Uint8Array>> = {
    'records that name their block': Buffer.concat([
      begin().raw(ramPart(2, 1)).bytes,
      repeat(unit((out) => zeroRecord(out, 0, 'a'))),
    ]),
    'zero bytes in the tail': inTail(new Uint8Array(MIB)),
    'heads of descriptions': inTail(
      repeat(
        unit((out) =>
          out
            .u8(0)
            .u8(6)
            .be32(MIB / 2)
            .ascii('{"'),
        ),
      ),
    ),
    'heads of descriptions, interleaved': inTail(
      repeat(unit((out) => out.u8(0).u8(6).u8(0).u8(6).u8(0).u8(6).ascii('{"'))),
    ),
    'long texts that break off': inTail(
      repeat(
        unit((out) =>
          out
            .u8(0)
            .u8(6)
            .be32(MIB)
            .ascii(`{"${'x'.repeat(5000)}`),
        ),
      ),
    ),
    'footers and headers': inTail(
      repeat(unit((out) => footer(out, 2).bytes(sectionHeader(new ByteWriter(), 4, 3, 'x', 0, 1).view))),
    ),
    'footers and long names': inTail(
      repeat(unit((out) => footer(out, 2).u8(4).be32(3).u8(255).ascii('~'.repeat(250)))),
    ),
    'small sections': Buffer.concat([
      begin().end().bytes,
      ...Array.from({ length: MIB / 32 }, (_, id) =>
        footer(sectionHeader(new ByteWriter(), 4, id + 2, 'cpu', id, 1), id + 2).copy(),
      ),
      Uint8Array.of(0),
    ]),
    'footers in an early section': early(repeat(unit((out) => footer(out, 2)))),
    'footers and headers in an early section': early(
      repeat(unit((out) => footer(out, 2).u8(4).be32(3).u8(255).ascii('x'))),
    ),
    'nested arrays': description('['.repeat(MIB / 2) + ']'.repeat(MIB / 2)),
    'empty devices': description('{}, '.repeat(MIB / 4)),
    'described devices': description(
      Array.from({ length: MIB / 64 }, (_, id) => `{"name": "d", "instance_id": ${id}, "fields": []}`).join(','),
    ),
    'empty strings': description('""'.repeat(MIB / 2)),
    backslashes: description(`"${'\\\\'.repeat(MIB / 2)}"`),
  };
  for (const [name, bytes] of Object.entries(cases)) {
    test(name, () => {
      const cpuMs = startCpuTimer();
      const reader = new StreamReader(ignoreAll);
      // In small pieces, so that whatever is looked at again with every piece shows.
      let at = 0;
      try {
        for (let end = 0; end < bytes.length && !reader.done; ) {
          end = Math.min(end + 1000, bytes.length);
          at += reader.push(bytes, at, end);
        }
        reader.end();
      } catch (error) {
        assertRefusal(error, bytes.length);
      }
      // Alone it takes 5 to 50 ms; anything quadratic would take minutes.
      assert.ok(cpuMs() < 2000);
    });
  }
});
