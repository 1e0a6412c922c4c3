// Which pages go back to the system, and when. With a destination: postcopy.test.ts.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ScriptedGuest } from '../../test/source-kit.js';
import { SentPagesRelease } from './sent-pages-release.js';

// PC-16
test('what was under way while the sweep passed is released at the end', () => {
  const { blocks } = new ScriptedGuest([100, 9000]);
  const { kernels } = blocks.bitmaps;
  const released = new Set<string>();
  const release = new SentPagesRelease(blocks.blocks, kernels, ({ name }, firstPage, pageCount) => {
    for (let page = firstPage; page < firstPage + pageCount; page += 1) {
      released.add(`${name}:${page}`);
    }
  });
  const sendBitmap = (name: string): number => blocks.blocks.find((block) => block.name === name)!.bitmaps.send;
  const unsent = [
    ['block0', 10, 20],
    ['block1', 5000, 130],
  ] as const;
  for (const [name, firstPage, pageCount] of unsent) {
    kernels.setRange(sendBitmap(name), firstPage, pageCount);
  }
  while (release.sweep()) {}
  assert.equal(released.size, 9100 - 150);
  assert.ok(!released.has('block0:10') && !released.has('block0:29') && released.has('block0:30'));
  assert.ok(!released.has('block1:5129') && released.has('block1:5130'));
  for (const [name, firstPage, pageCount] of unsent) {
    kernels.testAndClearRange(sendBitmap(name), firstPage, pageCount);
  }
  release.finish();
  assert.equal(released.size, 9100);
});
