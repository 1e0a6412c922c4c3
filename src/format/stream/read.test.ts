// The stream reader against what the specification says it must take, refuse and survive.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { richStream, testDevice } from '../../../test/streams.js';
import type { StreamConfiguration } from './configuration.js';
import { LONGEST_UNIT_BYTES, StreamReader, type StreamReaderOptions } from './read.js';
import type { ReadRamBlock, StreamHandler, StreamSummary } from './stream-handler.js';
import { decodeXbzrle } from './xbzrle.js';

/** Loads a stream into plain arrays, as a destination would. */
class Loader implements StreamHandler {
  configurationElement: StreamConfiguration | undefined;
  readonly memory = new Map<string, Uint8Array>();
  readonly commands: string[] = [];
  readonly bulkBytes: number[] = [];
  summary: StreamSummary | undefined;
  #pageSize = 0;

  configuration(configuration: StreamConfiguration): void {
    this.configurationElement = configuration;
  }

  ramSetup({ blocks, targetPageSize }: Parameters<StreamHandler['ramSetup']>[0]): void {
    this.#pageSize = targetPageSize;
    for (const { name, usedLength } of blocks) {
      this.memory.set(name, new Uint8Array(Math.min(usedLength, 2 ** 24)));
    }
  }

  zeroPage(block: ReadRamBlock, page: number): void {
    this.#page(block, page).fill(0);
  }

  page(block: ReadRamBlock, page: number, bytes: Uint8Array, at: number): void {
    this.#page(block, page).set(bytes.subarray(at, at + this.#pageSize));
  }

  xbzrlePage(block: ReadRamBlock, page: number, bytes: Uint8Array, at: number, length: number, offset: number): void {
    decodeXbzrle(bytes, at, length, this.#page(block, page), offset);
  }

  command(number: number, payload: Uint8Array): void {
    this.commands.push(`${number}:${Buffer.from(payload).toString('hex')}`);
  }

  end(summary: StreamSummary): void {
    this.summary = summary;
  }

  #page(block: ReadRamBlock, page: number): Uint8Array {
    return this.memory.get(block.name)!.subarray(page * this.#pageSize, (page + 1) * this.#pageSize);
  }
}

/** Pushes `bytes` in pieces of `pieceBytes`, each with what was left over before it, then ends. */
const load = (bytes: Uint8Array, pieceBytes = bytes.length, options: StreamReaderOptions = {}): Loader => {
  const loader = new Loader();
  const reader = new StreamReader(loader, options);
  let start = 0;
  for (let end = 0; end < bytes.length && !reader.done; ) {
    end = Math.min(end + pieceBytes, bytes.length);
    start += reader.push(bytes, start, end);
    assert.ok(reader.done || end - start < LONGEST_UNIT_BYTES);
    assert.equal(reader.position, start);
  }
  reader.end();
  return loader;
};

test('a stream with everything loads, in one push', () => {
  const { bytes, memory, tail } = richStream();
  const loader = load(bytes);
  assert.deepEqual(loader.memory, memory);
  assert.deepEqual(loader.configurationElement, {
    machine: 'pc-i440fx-10.0',
    targetPageBits: undefined,
    capabilities: [],
    uuid: '00112233-4455-6677-8899-aabbccddeeff',
  });
  assert.deepEqual(loader.commands, ['1:', '2:00000001', '11:']);
  const summary = loader.summary!;
  assert.deepEqual(summary.tail, tail);
  assert.equal(summary.bytes, bytes.length);
  assert.deepEqual(summary.warnings, []);
  assert.ok(summary.complete && !summary.backgroundSnapshot);
  assert.deepEqual(
    summary.devices.map(({ name, instance, section, bytes: length }) => [name, instance, section, length]),
    [
      ['0000:00:03.0/virtio-mem-device-early', 0, 2, 52],
      ['timer', 0, 3, 24],
      ['cpu', 0, 4, 5000],
      ['cpu', 1, 5, 300],
      ['0000:00:02.0/vga', 0, 6, 77],
    ],
  );
  const cpu = summary.devices[2];
  assert.deepEqual(bytes.slice(cpu.offset, cpu.offset + cpu.bytes), testDevice('cpu', 5000).body);
});

test('the result does not depend on how the bytes are cut into pieces', () => {
  const { bytes } = richStream();
  const expected = load(bytes);
  for (const pieceBytes of [1, 2, 3, 7, 13, 4095, 4104]) {
    assert.deepEqual(load(bytes, pieceBytes), expected);
  }
});
