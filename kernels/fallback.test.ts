// Where the engine lacks wasm SIMD or threads, binding yields the twins. Its own file: modules are compiled once per thread.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { bindBitmapKernels, bindPageKernels, bindSearchKernels, GUEST_PAGE_SIZE } from './index.js';

test('without wasm SIMD the twins are bound, and work', (t) => {
  t.mock.method(WebAssembly, 'validate', () => false);
  const instance = t.mock.method(WebAssembly, 'Instance');
  const memory = new WebAssembly.Memory({ initial: 1, maximum: 1, shared: true });
  const bitmap = bindBitmapKernels(memory);
  const pages = bindPageKernels(memory);
  bitmap.setRange(0, 10, 100);
  assert.equal(bitmap.sync(0, 64, 2), 100);
  pages.fillPattern(GUEST_PAGE_SIZE, 1, 2);
  assert.equal(pages.checkPattern(GUEST_PAGE_SIZE, 1, 2), 1);
  const alone = new WebAssembly.Memory({ initial: 1, maximum: 1 });
  new Uint8Array(alone.buffer).set([7, 9, 0xff, 0xff, 0, 0, 0, 0, 0, 7, 9]);
  assert.equal(bindSearchKernels(alone).findMasked(4, 32, 0, 2, 0, 1), 9);
  assert.equal(instance.mock.callCount(), 0);
});

test('with it, the wasm kernels are bound', (t) => {
  const instance = t.mock.method(WebAssembly, 'Instance');
  const memory = new WebAssembly.Memory({ initial: 1, maximum: 1, shared: true });
  assert.equal(bindBitmapKernels(memory).findNextSet(0, 0, 64), 64);
  assert.equal(bindPageKernels(memory).isZeroPage(0), 1);
  const alone = new WebAssembly.Memory({ initial: 2, maximum: 2 });
  new Uint8Array(alone.buffer).set([7, 9, 0xff, 0xff, 0, 0, 0, 0, 0, 7, 9]);
  assert.equal(bindSearchKernels(alone).findMasked(4, 32, 0, 2, 0, 1), 9);
  assert.equal(instance.mock.callCount(), 3);
});
