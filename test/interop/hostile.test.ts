// QEMU's own streams, damaged: cut at every byte, cut at random, and mutated. Whatever the bytes, opening and reading
// them ends soon, with a result or with a refusal that names offset and value, within the memory the reader states.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { openSnapshot, type Snapshot } from '../../src/format/index.js';
import { StreamReader } from '../../src/format/stream/index.js';
import { pageIndex, RamferryError } from '../../src/memory/index.js';
import { randomChoices } from '../random.js';
import { type CorpusKind, corpusStream } from './corpus.js';
import { interopTest } from './lab.js';
import type { QemuRelease } from './releases.js';

const SLOW = process.env['RAMFERRY_SLOW'] === '1';

/** Whose streams are damaged: those of 10 differ from those of 11 only in where one section stands. */
const WRITERS: readonly QemuRelease[] = ['7.2', '11'];

/** More than 100,000 in the slow run, some minutes in all. */
const MUTATIONS = SLOW ? { tiny: 50_000, devices: 5_000 } : { tiny: 400, devices: 400 };

/** What a reader of a damaged stream may hold: its index limit here, and the buffers of readers not yet collected. */
const INDEX_LIMIT = 32 * 2 ** 20;
const MEMORY_BOUND = 512 * 2 ** 20;

const open = (bytes: Uint8Array): Snapshot =>
  openSnapshot((position, target) => target.set(bytes.subarray(position, position + target.length)), bytes.length, {
    indexLimitBytes: INDEX_LIMIT,
  });

const WINDOW_PAGES = 256;
const window = new Uint8Array(WINDOW_PAGES * 4096);

/** What refuses the bytes, if anything does: a sentence that names the offset, and nothing else. */
const refusalOf = (bytes: Uint8Array, use: () => void): RamferryError | undefined => {
  try {
    use();
    return undefined;
  } catch (error) {
    assert.ok(error instanceof RamferryError, error instanceof Error ? error.stack : String(error));
    assert.ok(error.kind === 'invalid' || error.code === 'INDEX_TOO_LARGE', error.message);
    assert.ok(error.offset === undefined || (error.offset >= 0 && error.offset <= bytes.length), error.message);
    assert.ok(error.code === 'INDEX_TOO_LARGE' || error.message.includes(`byte ${error.offset}`), error.message);
    return error;
  }
};

/** Parses the stream. */
const parse = (bytes: Uint8Array): RamferryError | undefined =>
  refusalOf(bytes, () => {
    const reader = new StreamReader({ ramSetup() {}, zeroPage() {}, page() {}, xbzrlePage() {}, end() {} });
    reader.push(bytes);
    reader.end();
  });

/** Opens the stream and reads its pages. */
const read = (bytes: Uint8Array): RamferryError | undefined =>
  refusalOf(bytes, () => {
    const snapshot = open(bytes);
    for (const { index, usedLength } of snapshot.setup.blocks) {
      // A mutated length may claim terabytes of absent pages; the present ones are what there is to read.
      const pages = usedLength / snapshot.setup.targetPageSize;
      for (let page = snapshot.nextPresent(index, pageIndex(0)); page < pages; ) {
        const count = Math.min(window.length / snapshot.setup.targetPageSize, pages - page);
        snapshot.readPages(index, page, count, window.subarray(0, count * snapshot.setup.targetPageSize));
        page = snapshot.nextPresent(index, pageIndex(page + count));
      }
    }
  });

interopTest(
  `a stream of QEMU cut at every byte of its first 64 KiB, and at 1000 more`,
  async (lab) => {
    const { file } = await corpusStream(lab, 'tiny');
    const bytes = readFileSync(file);
    const whole = open(bytes);
    // The VM description comes last, behind EOF: all state is there without it.
    const stateEnd = bytes.length - whole.summary.tail.description.length - 6;
    const choose = randomChoices(1);
    const cuts = Array.from({ length: 65_536 }, (_, end) => end);
    for (let index = 0; index < 1000; index += 1) {
      cuts.push(choose(bytes.length));
    }
    for (const end of cuts) {
      const refusal = parse(bytes.subarray(0, end));
      if (end <= stateEnd) {
        assert.equal(refusal?.code, 'STREAM_INCOMPLETE', `cut at ${end}: ${refusal?.message}`);
        assert.equal(refusal.offset, end);
      }
    }
  },
  WRITERS,
);

for (const kind of ['tiny', 'devices'] as const satisfies CorpusKind[]) {
  const mutations = MUTATIONS[kind];
  interopTest(
    `${mutations} mutations of the ${kind} stream of QEMU`,
    async (lab, context) => {
      const { file } = await corpusStream(lab, kind);
      const original = readFileSync(file);
      const choose = randomChoices(kind.length + lab.release.length);
      let refused = 0;
      let slowestMs = 0;
      let highest = 0;
      const before = process.memoryUsage().rss;
      for (let round = 0; round < mutations; round += 1) {
        const bytes = Buffer.from(original);
        for (let change = choose(4); change >= 0; change -= 1) {
          const at = choose(bytes.length);
          switch (choose(3)) {
            case 0:
              bytes[at] = choose(256);
              break;
            case 1:
              bytes[at]! ^= 1 << choose(8);
              break;
            default:
              // A length or an offset at its worst.
              bytes.fill(choose(2) === 0 ? 0xff : 0x80, at, at + 1 + choose(8));
          }
        }
        const start = performance.now();
        refused += read(bytes) === undefined ? 0 : 1;
        slowestMs = Math.max(slowestMs, performance.now() - start);
        highest = Math.max(highest, process.memoryUsage().rss);
      }
      context.diagnostic(`${refused} refused; the slowest took ${slowestMs.toFixed(0)} ms`);
      assert.ok(refused > 0 && refused < mutations, `${refused} refused`);
      assert.ok(slowestMs < 5000, `${slowestMs} ms for one stream`);
      assert.ok(highest - before < MEMORY_BOUND, `${highest - before} bytes more`);
    },
    WRITERS,
  );
}
