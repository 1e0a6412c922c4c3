// A file of a mapped-ram save whose page writes happen as late as they may, and in the worst order.

import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { PositionedFile } from '../src/channel/positioned-file.js';
import { type FileOffset, fileOffset } from '../src/memory/units.js';
import { type MappedFile, readMappedFile } from './mapped-ram-file.js';
import { PAGE } from './source-kit.js';

export interface PageWrite {
  readonly bytes: Uint8Array;
  readonly at: number;
  readonly length: number;
  readonly position: number;
}

/** Pages reach it only at a barrier, the last ones first. */
export class LateFile implements PositionedFile {
  readonly name = 'late';
  readonly start: FileOffset;
  content = Buffer.alloc(0);
  pageWrites: PageWrite[] = [];
  readonly holes: { readonly position: number; readonly length: number }[] = [];
  /** Page writes under way at a time. */
  mostPending = 0;
  isCommitted = false;
  isAborted = false;
  /** Page writes until one fails. */
  capacity = Number.POSITIVE_INFINITY;
  #pending: PageWrite[] = [];

  constructor(start = 0) {
    this.start = fileOffset(start);
    this.#grow(start);
  }

  get pendingBytes(): number {
    return this.#pending.reduce((sum, { length }) => sum + length, 0);
  }

  write(bytes: Uint8Array, position: number): void {
    assert.ok(position >= this.start);
    this.#grow(position + bytes.length);
    this.content.set(bytes, position);
  }

  writeOnce(bytes: Uint8Array, position: number): void {
    this.write(bytes, position);
  }

  writePages(bytes: Uint8Array, at: number, length: number, position: number): void {
    // MR-26
    assert.deepEqual([at % PAGE, length % PAGE, position % PAGE], [0, 0, 0]);
    for (const { position: other, length: otherLength } of this.#pending) {
      assert.ok(position + length <= other || position >= other + otherLength, 'MR-11: two versions race');
    }
    if (this.pageWrites.length >= this.capacity) {
      throw new Error('no space');
    }
    this.#pending.push({ bytes, at, length, position });
    this.pageWrites.push({ bytes, at, length, position });
    this.mostPending = Math.max(this.mostPending, this.#pending.length);
  }

  barrier(): void {
    for (const { bytes, at, length, position } of this.#pending.reverse()) {
      this.#grow(position + length);
      this.content.set(bytes.subarray(at, at + length), position);
    }
    this.#pending = [];
  }

  read(): void {
    assert.fail('a source reads nothing back');
  }

  punchHole(position: number, length: number): void {
    for (const { position: other, length: otherLength } of this.#pending) {
      assert.ok(position + length <= other || position >= other + otherLength, 'a write would fill the hole');
    }
    this.holes.push({ position, length });
    this.content.fill(0, position, position + length);
  }

  async commit(): Promise<void> {
    // MR-13
    assert.equal(this.pendingBytes, 0);
    this.isCommitted = true;
  }

  abort(): void {
    this.isAborted = true;
  }

  parsed(): MappedFile {
    assert.ok(this.isCommitted);
    const folder = mkdtempSync(join(tmpdir(), 'ramferry-test-'));
    try {
      const path = join(folder, 'file');
      writeFileSync(path, this.content);
      return readMappedFile(path, this.start);
    } finally {
      rmSync(folder, { recursive: true });
    }
  }

  #grow(length: number): void {
    if (length > this.content.length) {
      this.content = Buffer.concat([this.content, Buffer.alloc(length - this.content.length)]);
    }
  }
}
