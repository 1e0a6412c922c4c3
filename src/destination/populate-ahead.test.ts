import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Segment } from '../memory/segment.js';
import { PopulateAhead } from './populate-ahead.js';

const PAGE = 4096;
const MIB = 2 ** 20;
const BATCH = 50;

/** Loads `batches` of pages into a segment and returns how far it was asked to populate, after each batch. */
const asked = (
  batches: Iterable<readonly [page: number, pages: number, normal: number]>,
  extentEnd: number,
): number[] => {
  const segment = Segment.create({ ramBytes: MIB });
  const requests: number[] = [];
  let end = 0;
  const ahead = new PopulateAhead({
    populate: (where, at, to) => {
      assert.equal(where, segment);
      assert.ok(at < to && to <= extentEnd);
      end = to;
    },
  });
  for (const [page, pages, normal] of batches) {
    ahead.loaded(segment, page * PAGE, pages, normal, extentEnd);
    requests.push(end);
  }
  return requests;
};

const run = function* (from: number, to: number, normal = BATCH): Generator<readonly [number, number, number]> {
  for (let page = from; page < to; page += BATCH) {
    yield [page, BATCH, normal];
  }
};

test('a dense run populates at most an eighth of its length, and at most 8 MiB, ahead of it, up to the end of the extent', () => {
  const end = 512 * MIB;
  let furthest = 0;
  for (const [index, to] of asked(run(0, end / PAGE), end).entries()) {
    const loaded = (index + 1) * BATCH * PAGE;
    const beyond = to - loaded;
    assert.ok(beyond <= Math.min(8 * MIB, loaded / 8), `${to} after ${loaded}`);
    furthest = Math.max(furthest, beyond);
  }
  assert.ok(furthest > 7 * MIB);
});

test('a guest of zero pages, or whose source hops about, has nothing populated', () => {
  const end = 512 * MIB;
  assert.equal(asked(run(0, 100_000, BATCH / 4), end).at(-1), 0);
  const hops = Array.from({ length: 2000 }, (_, i) => [((i * 7919) % 1000) * 100, BATCH, BATCH] as const);
  assert.equal(asked(hops, end).at(-1), 0);
});

test('after zero pages, or elsewhere, a run starts anew', () => {
  const end = 512 * MIB;
  const dense = [...run(0, 40_000)];
  const before = asked(dense, end).at(-1)!;
  assert.ok(before > 40_000 * PAGE);
  for (const next of [[40_000, BATCH, 0] as const, [60_000, BATCH, BATCH] as const]) {
    const after = next[0] + BATCH;
    assert.equal(asked([...dense, next, ...run(after, after + 2000)], end).at(-1), before);
  }
});
