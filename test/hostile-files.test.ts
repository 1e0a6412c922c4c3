// Damaged files of every kind that is read besides streams and mapped-ram files, which have suites of their own: each is read
// or refused by name, in bounded time and memory.

import { Buffer } from 'node:buffer';
import { describe, test } from 'node:test';
import * as zlib from 'node:zlib';
import { fieldsText } from '../src/cli/device-text.js';
import { cpuText } from '../src/cli/registers-text.js';
import { createColors } from '../src/cli/terminal.js';
import { ByteWriter } from '../src/format/byte-writer.js';
import { isLibvirtImage, readLibvirtImage } from '../src/format/libvirt/save-image.js';
import { openSnapshot } from '../src/format/open-snapshot.js';
import { type PhysicalMap, physicalMap } from '../src/format/physical-map.js';
import { PhysicalMemory } from '../src/format/physical-memory.js';
import { readQcow2Disk, VmState } from '../src/format/qcow2/index.js';
import type { ReadAt, Snapshot } from '../src/format/snapshot.js';
import { ElementType } from '../src/format/stream/constants.js';
import { DescribedDevices } from '../src/format/stream/device-fields.js';
import { fieldsDocument } from '../src/format/stream/field-json.js';
import { StreamReader } from '../src/format/stream/read.js';
import { footer, sectionHeader, streamEnd, streamMagic } from '../src/format/stream/write.js';
import { PageTables } from '../src/format/x86/page-tables.js';
import { x86Registers } from '../src/format/x86/registers.js';
import { ZstdDecoder } from '../src/format/zstd/decoder.js';
import { pageIndex } from '../src/memory/units.js';
import type { FileReader } from '../src/memory-file/file-reader-node.js';
import { unpack } from '../src/memory-file/unpack-node.js';
import { describedStream, describedTail } from './described-stream.js';
import { libvirtHead } from './libvirt-images.js';
import { mutated, mutatedJson, survives } from './mutations.js';
import { described } from './odd-machines.js';
import { PAGING, TestTables } from './page-tables.js';
import { acpiTables, clockDevice, pcStream } from './pc-memory.js';
import { qcow2Image } from './qcow2-images.js';
import { patternPage, richStream, StreamBuilder } from './streams.js';
import { cpuDevices, linuxKernelCpu } from './x86-cpu.js';
import { TEXT_FRAME } from './zstd-frame.js';

const MIB = 2 ** 20;

/** Refuses to read outside of the bytes, as a file does; a reader has to look first. */
const readerOf =
  (bytes: Uint8Array): ReadAt =>
  (at, target) => {
    if (!(at >= 0 && at + target.length <= bytes.length)) {
      throw new Error(`${target.length} bytes at ${at} of ${bytes.length} were read`);
    }
    target.set(bytes.subarray(at, at + target.length));
  };

const open = (bytes: Uint8Array): Snapshot => openSnapshot(readerOf(bytes), bytes.length, { indexLimitBytes: 4 * MIB });

/** As `inspect --digest` does, as far as that is little. */
const readAllPages = (snapshot: Snapshot): void => {
  const { blocks, targetPageSize } = snapshot.setup;
  const page = new Uint8Array(targetPageSize);
  for (const { index, usedLength } of blocks) {
    if (snapshot.elsewhere.has(index)) {
      continue;
    }
    const pages = usedLength / targetPageSize;
    for (let at: number = snapshot.nextPresent(index, pageIndex(0)); at < pages; ) {
      snapshot.readPages(index, pageIndex(at), 1, page);
      at = at + 1 < pages ? snapshot.nextPresent(index, pageIndex(at + 1)) : pages;
    }
  }
};

describe('containers', () => {
  test('qcow2 disks: header, snapshot table, L1 and L2 tables, and the stream inside', async () => {
    const { bytes: stream } = richStream();
    const image = qcow2Image(
      [
        { id: '1', tag: 'before', vmState: stream.subarray(0, 40_000) },
        { id: '2', tag: 'after', vmState: stream },
      ],
      { clusterBits: 9, diskBytes: 9000 },
    );
    const table = Number(image.readBigUInt64BE(64));
    const l1s = [Number(image.readBigUInt64BE(table)), Number(image.readBigUInt64BE(table + 64))];
    const places = [
      [0, 104],
      [table, table + 140],
      ...l1s.filter((at) => at < image.length).map((at) => [at, at + 64] as const),
    ] as (readonly [number, number])[];
    await survives(
      (below) => {
        const bytes = mutated(image, below, places);
        const disk = readQcow2Disk(readerOf(bytes), bytes.length);
        for (const snapshot of disk.snapshots.slice(0, 4)) {
          const state = new VmState(readerOf(bytes), bytes.length, disk, snapshot);
          readAllPages(
            openSnapshot((at, target) => state.readAt(at, target), state.sizeBytes, { indexLimitBytes: 4 * MIB }),
          );
        }
      },
      { seed: 1, codes: ['QCOW2_HEADER', 'QCOW2_SNAPSHOTS', 'QCOW2_TABLE'] },
    );
  });

  const packedStream = (): Uint8Array =>
    new StreamBuilder()
      .header()
      .ramStart([{ name: 'pc.ram', usedLength: 4 * 4096 }])
      .end(
        Array.from({ length: 4 }, (_, page) => ({
          block: 'pc.ram',
          page,
          kind: 'normal',
          content: patternPage(page & 3),
        })),
      )
      .devices([]).bytes;

  /** A file that is only in memory. */
  const fileOf = (bytes: Uint8Array): FileReader => ({
    readAt: readerOf(bytes),
    readLater: async (at, target) => readerOf(bytes)(at, target),
    sizeBytes: bytes.length,
    isDevice: false,
    close: () => {},
  });

  test('gzip: what is damaged, cut, or followed by something', async () => {
    const packed = zlib.gzipSync(packedStream());
    await survives(
      async (below) => {
        const reader = await unpack(fileOf(mutated(packed, below, [[0, 20]])), 'guest.mig.gz', 0, 'gzip', () => {});
        try {
          readAllPages(openSnapshot(reader.readAt, reader.sizeBytes));
        } finally {
          reader.close();
        }
      },
      { seed: 2, codes: ['COMPRESSED_DATA'] },
    );
  });

  test('zstd: frames, blocks and what the library makes of them', async () => {
    const le = (value: number, bytes: number): Buffer => {
      const buffer = Buffer.alloc(bytes);
      buffer.writeUIntLE(value, 0, bytes);
      return buffer;
    };
    const plain = Buffer.concat([le(0xfd2f_b528, 4), Buffer.from([0, 56]), le(3 * 8, 3), Buffer.from('abc')]);
    const repeated = Buffer.concat([le(1000 * 8 + 3, 3), Buffer.from('x')]);
    const skipped = Buffer.concat([le(0x184d_2a53, 4), le(5, 4), Buffer.from('magic')]);
    const originals = [Buffer.concat([plain, repeated, skipped, plain, repeated]), TEXT_FRAME];
    await survives(
      (below) => {
        const decoder = new ZstdDecoder({ endsAnywhere: below(2) === 0 });
        // The text takes milliseconds to unpack.
        const bytes = mutated(originals[below(10) === 0 ? 1 : 0]!, below, [[0, 40]]);
        let length = 0;
        for (let at = 0; at < bytes.length; at += 1000) {
          for (const piece of decoder.push(bytes.subarray(at, at + 1000))) {
            length += piece.length;
            if (length > 64 * MIB) {
              return; // Who copies it looks at how much it becomes.
            }
          }
        }
        decoder.finish();
      },
      { seed: 3, codes: ['COMPRESSED_DATA'] },
    );
  });

  test('heads of libvirt save images', async () => {
    const heads = [
      libvirtHead({ format: 0, xmlBytes: 300 }),
      libvirtHead({ format: 6, xmlBytes: 300, bigEndian: true }),
    ];
    await survives(
      (below) => {
        const head = mutated(heads[below(2)]!, below, [[0, 92]]);
        if (isLibvirtImage(head)) {
          const { dataOffset, xmlBytes } = readLibvirtImage(head);
          if (!(dataOffset === 92 + xmlBytes && xmlBytes <= 16 * MIB)) {
            throw new Error(`data at ${dataOffset}`);
          }
        }
      },
      { seed: 4, codes: ['LIBVIRT_VERSION', 'LIBVIRT_FORMAT', 'LIBVIRT_HEADER'] },
    );
  });
});

describe('odd machines', () => {
  const words = (...values: number[]): Uint8Array =>
    values.reduce((out, value) => out.be32(value), new ByteWriter()).copy();
  const part = (type: number, body: Uint8Array): Uint8Array =>
    footer(new ByteWriter().u8(type).be32(5).bytes(body), 5).copy();
  const start = (name: string, version: number, body: Uint8Array): Uint8Array =>
    footer(sectionHeader(new ByteWriter(), ElementType.SECTION_START, 5, name, 0, version).bytes(body), 5).copy();
  const iterating = (...sections: readonly Uint8Array[]): Uint8Array =>
    sections
      .reduce(
        (stream, section) => stream.raw(section),
        new StreamBuilder().header().ramStart([{ name: 'ram', usedLength: 8 * 4096 }]),
      )
      .end([{ block: 'ram', page: 3, kind: 'normal', content: patternPage(3) }])
      .devices([{ name: 'cpu', instance: 0, version: 1, body: patternPage(9, 60) }]).bytes;

  const hashTable = iterating(
    start('spapr/htab', 1, words(24)),
    part(ElementType.SECTION_PART, Buffer.concat([words(0, 7, 0x0002_0001), patternPage(1, 32), words(0, 0)])),
    part(ElementType.SECTION_END, words(0, 0, 0)),
  );
  const attributes = iterating(
    start('s390-storage_attributes', 0, words(0, 1)),
    part(ElementType.SECTION_PART, Buffer.concat([words(0, 0x5002, 0, 40), patternPage(2, 40), words(0, 1)])),
    part(ElementType.SECTION_END, words(0, 8)),
  );
  const unknown = iterating(
    start('x/vfio', 1, patternPage(4, 90)),
    part(ElementType.SECTION_PART, new Uint8Array()),
    part(ElementType.SECTION_END, patternPage(5, 30)),
  );
  /** Of machine types up to 2.3: no configuration, no footers. */
  const old = new StreamBuilder(2, 4096, false)
    .raw(streamMagic())
    .ramStart([{ name: 'pc.ram', usedLength: 8 * 4096 }])
    .part([{ block: 'pc.ram', page: 1, kind: 'normal', content: patternPage(1) }])
    .end()
    .raw(sectionHeader(new ByteWriter(), ElementType.SECTION_FULL, 3, 'timer', 0, 2).bytes(patternPage(6, 24)).copy())
    .raw(streamEnd('')).bytes;
  const originals = [hashTable, attributes, unknown, described(8192).bytes, old];

  test('iterable sections, no footers, devices listed twice, pages of other sizes', async () => {
    await survives(
      (below) => {
        const original = originals[below(originals.length)]!;
        const bytes = mutated(original, below, [[0, Math.min(400, original.length)]]);
        // As it comes from a socket, in pieces that end anywhere.
        const pieceBytes = [1 + below(100), 5000][below(2)]!;
        const reader = new StreamReader({ ramSetup() {}, zeroPage() {}, page() {}, xbzrlePage() {}, end() {} });
        let taken = 0;
        for (let end = pieceBytes; !reader.done && taken < bytes.length; end += pieceBytes) {
          taken += reader.push(bytes, taken, Math.min(end, bytes.length));
          if (end >= bytes.length) {
            break;
          }
        }
        reader.end();
        readAllPages(
          openSnapshot(readerOf(bytes), bytes.length, {
            indexLimitBytes: 4 * MIB,
            ...(below(4) === 0 && { targetPageSize: 256 << below(9) }),
          }),
        );
      },
      { seed: 10, codes: ['STREAM_INCOMPLETE', 'RECORD_FLAGS', 'SECTION_NAME'] },
    );
  });
});

/** As `registers` shows them. */
const showRegisters = (snapshot: Snapshot): void => {
  for (const registers of x86Registers(snapshot.summary, snapshot.configuration.machine)) {
    cpuText(registers, createColors(false));
  }
};

/** As `device '*'` shows them: of several sections, those that can be decoded. */
const showDevices = (snapshot: Snapshot): void => {
  const devices = new DescribedDevices(snapshot.summary);
  for (const section of devices.sections) {
    const fields = devices.fields(section);
    JSON.stringify(fieldsDocument(fields));
    fieldsText(fields, { colors: createColors(false), columns: 80, full: false });
  }
};

describe('device state', () => {
  const devices = [
    ...cpuDevices(linuxKernelCpu),
    ...cpuDevices({ 'cr[0]': 0x6000_0010, eip: 0xfff0 }, { instance: 1, halted: true }),
    clockDevice(16 * MIB),
  ];
  const stream = describedStream(devices);
  const { description } = describedTail(devices);
  const tail = stream.length - description.length - 3000;

  test('bytes of sections and of the description: fields as JSON and as text, registers', async () => {
    await survives(
      (below) => {
        const snapshot = open(mutated(stream, below, [[tail, stream.length]]));
        showDevices(snapshot);
        showRegisters(snapshot);
      },
      { seed: 5, codes: ['NO_DESCRIPTION'] },
    );
  });

  test('descriptions with other values: fields as JSON and as text', async () => {
    await survives((below) => showDevices(open(describedStream(devices, mutatedJson(description, below)))), {
      seed: 6,
      codes: ['DESCRIPTION_SHAPE'],
    });
  });

  test('descriptions with other values: registers', async () => {
    const cpus = devices.slice(0, 4);
    const { description: ofCpus } = describedTail(cpus);
    await survives((below) => showRegisters(open(describedStream(cpus, mutatedJson(ofCpus, below)))), {
      seed: 7,
      codes: ['DEVICE_FIELD_MISSING'],
    });
  });
});

/** As whatever shows memory by address uses it. */
const walkMap = (map: PhysicalMap, snapshot: Snapshot): void => {
  let end = 0;
  for (const { address, bytes } of map.ranges) {
    if (!(Number.isSafeInteger(address) && bytes > 0 && address >= end && Number.isSafeInteger(address + bytes))) {
      throw new Error(`range ${address}, ${bytes} after ${end}`);
    }
    end = address + bytes;
    map.at(address);
  }
  for (const { index } of snapshot.setup.blocks) {
    if (map.unplaced.every(({ block }) => block !== index)) {
      map.rangesOf(index);
    }
  }
};

describe('addresses', () => {
  const GIB = 2 ** 30;
  const tables = acpiTables([
    { node: 0, address: 0, bytes: 640 * 1024 },
    { node: 0, address: MIB, bytes: GIB - MIB },
    { node: 1, address: GIB, bytes: GIB },
    { address: 4 * GIB, bytes: 4 * GIB, flags: 3 },
  ]);
  const blocks = [
    { name: 'ram-node0', usedLength: GIB },
    { name: 'ram-node1', usedLength: GIB },
    { name: 'mem-dimm0', usedLength: GIB / 2 },
    { name: '0000:00:02.0/vga.vram', usedLength: 16 * MIB },
    { name: 'pc.bios', usedLength: 256 * 1024 },
    { name: 'system.flash0', usedLength: 256 * 1024 },
  ];

  test('CMOS, the SRAT, names and lengths of RAM blocks', async () => {
    const pc = { blocks, devices: [clockDevice(2 * GIB)], tables };
    const places = new Map([['mem-dimm0', 8 * GIB]]);
    await survives(
      (below) => {
        const changed =
          below(2) === 0
            ? { ...pc, tables: Buffer.concat([mutated(tables, below, [[164, 400]]), tables]).subarray(0, 4096) }
            : {
                ...pc,
                devices: [
                  {
                    ...clockDevice(2 * GIB),
                    body: mutated(clockDevice(2 * GIB).body, below, [[0x30, 0x60]]).subarray(0, 129),
                  },
                ],
              };
        const withBlocks =
          below(2) === 0
            ? changed
            : { ...changed, blocks: blocks.map((block) => (below(3) > 0 ? block : { ...block, ...oddBlock(below) })) };
        const snapshot = open(pcStream(withBlocks));
        walkMap(physicalMap(snapshot, below(2) === 0 ? places : new Map()), snapshot);
      },
      { seed: 8, codes: ['RAM_ADDRESSES', 'BLOCK_PLACE'] },
    );
  });

  const names = ['pc.ram', 'ram-node0', 'ram-node1', 'pc.bios', 'pc.rom', 'isa-bios', 'system.flash0', 'system.flash1'];
  const oddBlock = (below: (limit: number) => number): { name?: string; usedLength?: number } => ({
    ...(below(2) === 0 && { name: `${names[below(names.length)]}${below(3) === 0 ? below(10) : ''}` }),
    ...(below(2) === 0 && { usedLength: [4096, MIB, GIB, 2 * GIB, 4 * GIB, 2 ** 45][below(6)]! }),
  });

  test('page tables, of whatever is in memory', async () => {
    const paged = new TestTables(PAGING[4], 0x10_0000);
    paged.map(0x40_0000n, 0x5000n);
    paged.map(0xffff_ffff_8100_0000n, 0x20_0000n, 1);
    const pages = paged.pagesOf('pc.ram').map(({ offset, content }) => ({ offset, content }));
    const original = Buffer.concat(pages.map(({ content }) => content));
    await survives(
      (below) => {
        const content = Buffer.concat([mutated(original, below), Buffer.alloc(original.length)]).subarray(
          0,
          original.length,
        );
        // Entries that lead to one of the tables themselves: one of them, or half a table of them.
        const entry = BigInt(0x10_0001 + 4096 * below(pages.length));
        const first = 8 * below(original.length / 8);
        const end = [first, first + 8, first + 2048][below(3)]!;
        for (let at = first; at < Math.min(end, original.length); at += 8) {
          content.writeBigUInt64LE(entry, at);
        }
        const bytes = pcStream({
          blocks: [{ name: 'pc.ram', usedLength: 16 * MIB }],
          devices: [clockDevice(16 * MIB)],
          pages: pages.map(({ offset }, index) => ({
            block: 'pc.ram',
            offset,
            content: content.subarray(4096 * index, 4096 * (index + 1)),
          })),
        });
        const snapshot = open(bytes);
        const memory = new PhysicalMemory(snapshot, physicalMap(snapshot));
        const cr3 = below(4) === 0 ? BigInt(below(2 ** 32)) << BigInt(below(32)) : BigInt(paged.root);
        const walked = new PageTables(memory, {
          cpu: 0,
          cr3,
          cr4: BigInt(below(0x2000)),
          mode: 'long',
          pagingLevels: 4,
        });
        for (const _ of walked.mappings({ tables: 2000, mappings: 20_000 })) {
        }
        walked.tryTranslate(BigInt(below(2 ** 32)) << BigInt(below(33)));
        walked.translate(0x40_0000n);
      },
      { seed: 9, codes: ['NOT_MAPPED', 'PAGE_TABLES_ENDLESS'] },
    );
  });
});
