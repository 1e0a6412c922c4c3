// What a slot promises: whatever it has room for fits it, and behind that the end of the section still does.

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { gather } from '../../test/source-kit.js';
import type { ByteChannel, WriteVector } from '../channel/channel.js';
import type { Extent, RamBlock } from '../memory/ram-block.js';
import { Segment, STAGING_SLOT_BYTES } from '../memory/segment.js';
import { pageIndex } from '../memory/units.js';
import { PageBatch } from './page-sink.js';
import { CopiedRecords, GatheredRecords, type RecordSlot } from './record-slot.js';

const PAGE = 4096;
const PAGES = 64;
/** The longest block id, with its length. */
const NAME_BYTES = 256;
/** EOS of the records, footer of the section. */
const SECTION_END = new Uint8Array(13).fill(0xe5);
const SLOT = 2;

/** A segment whose pages have content where `isNormal` says so, with the longest name there is. */
const setUp = (isNormal: (page: number) => boolean) => {
  const segment = Segment.create({ ramBytes: PAGES * PAGE });
  for (let page = 0; page < PAGES; page += 1) {
    segment.bytes[page * PAGE] = isNormal(page) ? 1 + page : 0;
  }
  const name = segment.listSlot(1);
  segment.bytes.fill(0x6e, name, name + NAME_BYTES);
  segment.bytes[name] = NAME_BYTES - 1;
  // Whoever has the next slot.
  const next = segment.stagingSlot(SLOT + 1);
  segment.bytes.fill(0xcc, next, next + 2 * PAGE);
  const extent: Extent = { segment, address: 0, firstPage: pageIndex(0), pageCount: PAGES };
  const batch = (count: number): PageBatch => {
    const pages = Int32Array.from({ length: count }, (_, index) => index % PAGES);
    segment.words.set(pages, segment.listSlot(0) / 4);
    return Object.assign(new PageBatch(pages), { block: undefined as unknown as RamBlock, extent, count });
  };
  const assertNextUntouched = (): void => {
    assert.ok(
      segment.bytes.subarray(next, next + 2 * PAGE).every((byte) => byte === 0xcc),
      'a slot writes into the next one',
    );
  };
  return { segment, batch, assertNextUntouched };
};

/** Fills the slot with batches of at most `most` pages, each of another block; returns how many pages. */
const fillUp = (slot: RecordSlot, batch: (count: number) => PageBatch, most: number): number => {
  let pages = 0;
  for (let { room } = slot; room > 0; { room } = slot) {
    const count = Math.min(room, most);
    slot.add(batch(count), NAME_BYTES);
    pages += count;
  }
  return pages;
};

const contents = {
  'pages with content': () => true,
  'zero pages': () => false,
  'zero pages between others': (page: number) => page % 3 === 0,
};

describe('RecordSlot', () => {
  for (const [what, isNormal] of Object.entries(contents)) {
    test(`copied records of ${what}: what it has room for fits, and the end of the section behind it`, () => {
      const { segment, batch, assertNextUntouched } = setUp(isNormal);
      for (const most of [256, 7]) {
        // Whatever stands before them: what is left behind the last whole record is different each time.
        for (let filler = 0; filler <= 2 * PAGE; filler += 97) {
          const slot = new CopiedRecords(segment, SLOT);
          assert.equal(slot.append(new Uint8Array(filler)), true);
          assert.ok(fillUp(slot, batch, most) > 0);
          assert.ok(
            slot.byteCount <= STAGING_SLOT_BYTES - SECTION_END.length,
            `${slot.byteCount} bytes, after ${filler}`,
          );
          assert.equal(slot.append(SECTION_END), true, `no room for the end after ${filler} bytes`);
          assertNextUntouched();
        }
      }
    });

    test(`gathered records of ${what}: heads, entries and the end of the section fit`, () => {
      const { segment, batch, assertNextUntouched } = setUp(isNormal);
      const base = 2 ** 40;
      for (const most of [256, 7, 1]) {
        for (let filler = 0; filler <= 1000; filler += 97) {
          const slot = new GatheredRecords(segment, SLOT, base);
          if (filler > 0) {
            assert.equal(slot.append(new Uint8Array(filler).fill(0xf1)), true);
          }
          assert.ok(fillUp(slot, batch, most) > 0);
          assert.equal(slot.append(SECTION_END), true, `no room for the end after ${filler} bytes`);
          assertNextUntouched();
          let vector: WriteVector | undefined;
          const channel: Pick<ByteChannel, 'writeVector'> = { writeVector: (given) => (vector = given) };
          slot.write(channel as ByteChannel, () => {});
          // Linux takes so many at once.
          assert.ok(vector!.entries.byteLength / 16 <= 1024, `${vector!.entries.byteLength / 16} entries`);
          const bytes = gather(vector!);
          assert.equal(bytes.length, slot.byteCount);
          assert.ok(
            bytes.subarray(0, filler).every((byte) => byte === 0xf1),
            'the heads grew over the entries',
          );
          assert.deepEqual([...bytes.subarray(-SECTION_END.length)], [...SECTION_END]);
        }
      }
    });
  }
});
