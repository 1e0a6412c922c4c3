// Small files that are made to be slow, or to take much memory: each is read or refused in time that its size explains.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ByteWriter } from '../src/format/byte-writer.js';
import { openSnapshot } from '../src/format/open-snapshot.js';
import { physicalMap } from '../src/format/physical-map.js';
import type { Snapshot } from '../src/format/snapshot.js';
import { ElementType } from '../src/format/stream/constants.js';
import { sectionHeader } from '../src/format/stream/write.js';
import { x86Registers } from '../src/format/x86/registers.js';
import { RamferryError } from '../src/memory/errors.js';
import { startCpuTimer } from './cpu-time.js';
import { type DescribedTestDevice, describedStream } from './described-stream.js';
import { acpiTables, clockDevice, pcStream, type TestAffinity } from './pc-memory.js';
import { StreamBuilder } from './streams.js';
import { cpuDevices } from './x86-cpu.js';

const MIB = 2 ** 20;

const open = (bytes: Uint8Array): Snapshot =>
  openSnapshot((at, target) => target.set(bytes.subarray(at, at + target.length)), bytes.length);

/** Runs it; returns the code with which it is refused, if it is. */
const within = (ms: number, bytes: number, call: () => unknown): string | undefined => {
  const cpuMs = startCpuTimer();
  const before = process.memoryUsage();
  let code: string | undefined;
  let kept: unknown;
  try {
    kept = call();
  } catch (error) {
    assert.ok(error instanceof RamferryError, `${error instanceof Error ? error.stack : error}`);
    assert.ok(error.message.length < 2000, `a message of ${error.message.length} characters`);
    code = error.code;
  }
  const { heapUsed, arrayBuffers } = process.memoryUsage();
  assert.ok(cpuMs() < ms, `${cpuMs()} ms`);
  assert.ok(
    heapUsed + arrayBuffers - before.heapUsed - before.arrayBuffers < bytes,
    `${heapUsed - before.heapUsed} bytes`,
  );
  assert.ok(kept !== null);
  return code;
};

test('a section without a length that is full of its own footers', () => {
  const body = Buffer.alloc(4 * MIB, Uint8Array.of(0x7e, 0, 0, 0, 5));
  const bytes = new StreamBuilder()
    .header()
    .ramStart([{ name: 'ram', usedLength: 4096 }])
    .raw(sectionHeader(new ByteWriter(), ElementType.SECTION_START, 5, 'x/vfio', 0, 1).bytes(body).copy()).bytes;
  assert.equal(
    within(3000, 100 * MIB, () => open(bytes)),
    'STREAM_INCOMPLETE',
  );
});

test('ACPI tables that list a hundred thousand ranges of memory, each of another size', () => {
  let end = 2 ** 32;
  const ranges = Array.from({ length: 100_000 }, (_, index): TestAffinity => {
    const range = { node: index, address: end, bytes: 4096 * (index + 1) };
    end += range.bytes;
    return range;
  });
  const tables = acpiTables([{ address: 0, bytes: MIB }, ...ranges], 4 * MIB);
  const snapshot = open(
    pcStream({
      blocks: Array.from({ length: 100 }, (_, index) => ({ name: `mem${index}`, usedLength: 4096 * (index + 1) })),
      devices: [clockDevice(MIB, end - 2 ** 32)],
      tables,
    }),
  );
  assert.equal(
    within(2000, 200 * MIB, () => physicalMap(snapshot)),
    'RAM_ADDRESSES',
  );
});

for (const [what, name] of [
  ['flash', 'system.flash'],
  ['DIMMs', 'dimm'],
  ['nodes', 'ram-node'],
  ['memory of devices', '0000:00:02.0/vram'],
] as const) {
  test(`4,000 RAM blocks: ${what}`, () => {
    const blocks = Array.from({ length: 4000 }, (_, index) => ({ name: `${name}${index}`, usedLength: 4096 }));
    const snapshot = open(
      pcStream({
        blocks: [{ name: 'pc.ram', usedLength: 16 * MIB }, ...blocks],
        devices: [clockDevice(16 * MIB)],
        tables: acpiTables([
          { address: 0, bytes: 16 * MIB },
          ...Array.from({ length: 80 }, (_, index) => ({ address: 2 ** 32 + index * 4096, bytes: 4096, flags: 5 })),
        ]),
      }),
    );
    within(3000, 100 * MIB, () => {
      const map = physicalMap(snapshot);
      // What is printed of each of them.
      const text = map.unplaced.map(({ reason, hint = '' }) => reason.length + hint.length);
      assert.ok(text.reduce((sum, length) => sum + length, 0) < 2 * MIB, 'reasons are too long to be printed');
      return map;
    });
  });
}

test('many blocks of the size of one node', () => {
  const blocks = Array.from({ length: 4000 }, (_, index) => ({
    name: `${'n'.repeat(200)}${(index * 7919) % 4001}`,
    usedLength: MIB,
  }));
  const snapshot = open(
    pcStream({
      blocks,
      devices: [clockDevice(2 * MIB)],
      tables: acpiTables([
        { node: 0, address: 0, bytes: MIB },
        { node: 1, address: MIB, bytes: MIB },
      ]),
    }),
  );
  within(3000, 100 * MIB, () => {
    const map = physicalMap(snapshot);
    const longest = map.unplaced.reduce((most, { reason }) => Math.max(most, reason.length), 0);
    assert.ok(longest < 2000, `a reason of ${longest} characters`);
    return map;
  });
});

test('hundreds of vCPUs, each with thousands of fields that no vCPU has', () => {
  const description = { fields: [{ name: 'halted', type: 'uint8', size: 1, array_len: 8000 }] };
  const common = Array.from({ length: 500 }, (_, instance): DescribedTestDevice => {
    return { name: 'cpu_common', instance, body: new Uint8Array(8000), description };
  });
  const snapshot = open(describedStream([...common, ...cpuDevices({})]));
  assert.equal(
    within(3000, 200 * MIB, () => x86Registers(snapshot.summary, 'pc')),
    'TOO_MANY_CPUS',
  );
});
