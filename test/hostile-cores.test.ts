// Saved guests with hostile vCPUs, page tables and VMCOREINFO, made into cores: each becomes one that can be read, or is refused
// by name, in bounded time and memory.

import assert from 'node:assert/strict';
import { Buffer } from 'node:buffer';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { after, describe, test } from 'node:test';
import type { Conversion } from '../src/cli/convert/conversion.js';
import { planElf, writeElf } from '../src/cli/convert/elf.js';
import { planKdump, writeKdump } from '../src/cli/convert/kdump.js';
import { Progress } from '../src/cli/progress.js';
import { openSnapshot } from '../src/format/open-snapshot.js';
import type { Snapshot } from '../src/format/snapshot.js';
import { readElf, readKdump } from './addressed-files.js';
import { NOTE_ADDRESS, vmcoreinfoDevice, wholeLinux } from './linux-memory.js';
import { type Below, MUTATIONS, survives, withMutations } from './mutations.js';
import { PAGING, TestTables } from './page-tables.js';
import { cpuDevices, linuxKernelCpu } from './x86-cpu.js';

const RAM_BYTES = 16 * 2 ** 20;
const KERNEL_SLOTS = 256;
const NOWHERE = 1n << 63n;

const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'ramferry-hostile-cores-'));
after(() => fs.rmSync(folder, { recursive: true }));

const conversionOf = (snapshot: Snapshot, virtual: boolean, out = ''): Conversion => ({
  snapshot,
  file: 'guest.mig',
  out,
  block: undefined,
  places: new Map(),
  virtual,
  byAddress: false,
  digests: false,
  surroundings: {
    signal: new AbortController().signal,
    progress: new Progress({ stream: { write: () => {} }, mode: 'none', now: () => 0 }),
  },
});

const open = (bytes: Uint8Array): Snapshot =>
  openSnapshot((at, target) => target.set(bytes.subarray(at, at + target.length)), bytes.length, {
    indexLimitBytes: 2 ** 22,
  });

/** Names of the notes; fails unless they end where they say. */
const noteNames = (notes: Buffer): string[] => {
  const names: string[] = [];
  let at = 0;
  for (; at < notes.length; ) {
    const [nameBytes, bytes] = [notes.readUInt32LE(at), notes.readUInt32LE(at + 4)] as const;
    names.push(notes.toString('latin1', at + 12, at + 11 + nameBytes));
    at += 12 + Math.ceil(nameBytes / 4) * 4 + Math.ceil(bytes / 4) * 4;
  }
  assert.equal(at, notes.length);
  return names;
};

/** Whether every segment lies in the file and in memory, none over another, and what they are. */
const checkElf = async (conversion: Conversion): Promise<{ segments: number; notes: string[] }> => {
  const { file } = await planElf(conversion, { tables: 2000, mappings: 20_000 });
  const { content } = file.heads[0]!;
  const head = Buffer.from(content.buffer, content.byteOffset, content.length);
  const { position } = file.memory[0]!;
  const count = head.readUInt16LE(56) - 1;
  const u64 = (at: number): bigint => head.readBigUInt64LE(at);
  let end = 0n;
  const segments = Array.from({ length: count }, (_, index) => {
    const at = 64 + 56 * (index + 1);
    const [offset, virtual, physical, bytes] = [8, 16, 24, 32].map((field) => u64(at + field)) as [
      bigint,
      bigint,
      bigint,
      bigint,
    ];
    assert.ok(bytes > 0n && physical + bytes <= BigInt(RAM_BYTES), `${physical}, ${bytes}`);
    assert.equal(offset, BigInt(position) + physical);
    return { virtual, bytes };
  }).sort((a, b) => (a.virtual < b.virtual ? -1 : 1));
  for (const { virtual, bytes } of segments) {
    assert.ok(virtual >= end, `${virtual.toString(16)} before ${end.toString(16)}`);
    end = virtual + bytes;
    assert.ok(!conversion.virtual || virtual < NOWHERE >> 8n || virtual >= NOWHERE);
    assert.ok(end <= 2n ** 64n);
  }
  const noteBytes = Number(u64(64 + 32));
  const noteAt = Number(u64(64 + 8));
  assert.ok(noteAt + noteBytes <= position);
  return { segments: count, notes: noteNames(head.subarray(noteAt, noteAt + noteBytes)) };
};

const checkKdump = async (conversion: Conversion): Promise<string[]> => {
  const { head, ranges } = await planKdump(conversion);
  const bytes = Buffer.from(head.bytes.buffer, head.bytes.byteOffset, head.bytes.length);
  const u64 = (at: number): number => Number(bytes.readBigUInt64LE(4096 + at));
  assert.ok(bytes.length <= head.bitmaps[0] && bytes.length > head.bitmaps[0] - 4096);
  assert.ok(u64(48) + u64(56) <= bytes.length && u64(32) + u64(40) <= bytes.length);
  assert.equal(head.dataOffset, head.descriptorOffset + (24 * RAM_BYTES) / 4096);
  assert.equal(ranges.at(-1)!.address + ranges.at(-1)!.bytes, RAM_BYTES);
  return u64(56) === 0 ? [] : noteNames(bytes.subarray(u64(48), u64(48) + u64(56)));
};

/** A guest with a kernel, a vCPU in it, one in a program with tables of its own, and one that waits. */
const guest = () => {
  const linux = wholeLinux();
  const program = new TestTables(PAGING[4], 0xb0_0000);
  program.map(0x40_0000n, 0x50_0000n);
  program.map(0x60_0000n, 0x60_0000n, 1);
  // The image of the kernel is where it is for all; of its other memory this vCPU has two pages, one of them elsewhere.
  program.map(linux.directVirtual + 0x1000n, 0x70_0000n);
  program.map(linux.directVirtual + 0x40_0000n, 0x71_0000n);
  program.put(program.root, 511, linux.tables.entry(linux.tables.root, 511));
  const bytes = linux.stream({
    devices: [
      vmcoreinfoDevice(),
      ...cpuDevices({ ...linuxKernelCpu, 'cr[3]': linux.tables.root }),
      ...cpuDevices({ ...linuxKernelCpu, 'cr[3]': program.root }, { instance: 1 }),
      ...cpuDevices({ eip: 0xfff0 }, { instance: 2, halted: true }),
    ],
    pages: program.pagesOf('pc.ram'),
    isSparse: true,
  });
  const content = Buffer.from(bytes);
  const place = (what: Uint8Array | string, length = what.length): readonly [number, number] => {
    const at = content.indexOf(what);
    assert.ok(at > 0);
    return [at, at + length];
  };
  const [note] = place('VMCOREINFO\0\0OSRELEASE=');
  const tables = [...linux.tables.pagesOf('pc.ram'), ...program.pagesOf('pc.ram')];
  return {
    bytes,
    snapshot: open(bytes),
    tables: tables.map((each) => ({ address: each.offset, place: place(each.content) })),
    // From the header of the note on.
    note: [note - 12, note + 40] as const,
    text: place('OSRELEASE=', linux.vmcoreinfo.length),
    device: place(vmcoreinfoDevice().body),
    description: place('{"page_size"', content.length - 5 - content.indexOf('{"page_size"')),
    cpus: [linux.tables.root, program.root].map((root) => {
      const [at] = place(cpuDevices({ ...linuxKernelCpu, 'cr[3]': root })[1]!.body);
      return [at, at + 700] as const;
    }),
  };
};

describe('cores of guests that were tampered with', () => {
  const { bytes, tables, ...places } = guest();

  /** Entries that lead to one of the tables, or to any page, some with one bit that makes them large. */
  const putEntries = (below: Below): (() => void) => {
    const undo = tables.map(({ place: [from, end] }) => ({ from, old: bytes.slice(from, end) }));
    const view = new DataView(bytes.buffer, bytes.byteOffset);
    for (let count = 1 + below(6); count > 0; count -= 1) {
      const {
        place: [from],
      } = tables[below(tables.length)]!;
      const { address } = tables[below(tables.length)]!;
      const target = below(3) > 0 ? address : 4096 * below(RAM_BYTES / 4096);
      const entry = BigInt(target) | [1n, 1n, 0x63n, 0xe3n, 0n][below(5)]!;
      const first = [0, KERNEL_SLOTS, below(512)][below(3)]!;
      for (let index = first; index < Math.min(512, first + [1, 16, 256, 512][below(4)]!); index += 1) {
        view.setBigUint64(from + 8 * index, entry, true);
      }
    }
    return () => {
      for (const { from, old } of undo) {
        bytes.set(old, from);
      }
    };
  };

  /** Runs `make` with each kind of place in turn tampered with. */
  const tampered = async (below: Below, make: (snapshot: Snapshot) => Promise<void>): Promise<void> => {
    const { note, text, device, description, cpus } = places;
    const all = [note, note, text, device, device, description, ...cpus, ...cpus, ...tables.map(({ place }) => place)];
    const chosen = below(3) === 0 ? tables.map(({ place }) => place) : below(2) === 0 ? cpus : all;
    const restore = below(2) === 0 ? putEntries(below) : () => {};
    try {
      await withMutations(bytes, below, chosen, () => make(open(bytes)));
    } finally {
      restore();
    }
  };

  test('as they are', async () => {
    const { snapshot } = places;
    const names = [...Array(3).fill('CORE'), ...Array(3).fill('QEMU'), 'VMCOREINFO'];
    assert.deepEqual((await checkElf(conversionOf(snapshot, false))).notes, [...names, 'ramferry']);
    const { segments, notes } = await checkElf(conversionOf(snapshot, true));
    assert.deepEqual(notes, [...names, 'ramferry']);
    assert.ok(segments > 4, `${segments}`);
    assert.deepEqual(await checkKdump(conversionOf(snapshot, false)), names);
  });

  test('ELF cores by physical address, and kdump', async () => {
    const seen = new Set<string>();
    await survives(
      (below) =>
        tampered(below, async (snapshot) => {
          const conversion = conversionOf(snapshot, false);
          const { segments, notes } = await checkElf(conversion);
          assert.equal(segments, 1);
          const dumped = await checkKdump(conversion);
          if (dumped.includes('CORE')) {
            assert.deepEqual([...dumped, 'ramferry'], notes);
          }
          seen.add([...new Set(notes)].join());
        }),
      { seed: 31, codes: [] },
    );
    // Registers or VMCOREINFO, both, and neither.
    assert.ok(seen.has('CORE,QEMU,VMCOREINFO,ramferry') && seen.has('CORE,QEMU,ramferry'), [...seen].join('; '));
  });

  test('ELF cores by virtual address', async () => {
    const counts = new Set<number>();
    await survives(
      (below) =>
        tampered(below, async (snapshot) => {
          counts.add((await checkElf(conversionOf(snapshot, true))).segments);
        }),
      { seed: 32, codes: ['PAGE_TABLES_ENDLESS', 'NO_DESCRIPTION'] },
    );
    assert.ok(counts.size > 20, `${counts.size} different numbers of segments`);
  });

  test('the files themselves', async () => {
    const out = path.join(folder, 'core');
    await survives(
      (below) =>
        tampered(below, async (snapshot) => {
          const isElf = below(2) === 0;
          await (isElf ? writeElf : writeKdump)(conversionOf(snapshot, false, out));
          const memory = (isElf ? readElf : readKdump)(out);
          const [from, end] = places.note;
          assert.deepEqual(memory(NOTE_ADDRESS, end - from), Buffer.from(bytes.subarray(from, end)));
        }),
      { seed: 33, codes: [], runs: MUTATIONS / 20 },
    );
  });
});
