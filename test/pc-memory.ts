// What a saved PC says about its memory, for guests that tests invent: the clock with its CMOS memory, and the ACPI tables.

import { ByteWriter } from '../src/format/byte-writer.js';
import { footer, normalRecord, ramBodyEnd, ramPart, ramStart, sectionHeader } from '../src/format/stream/write.js';
import { type DescribedTestDevice, describedTail } from './described-stream.js';
import { StreamBuilder } from './streams.js';

const MIB = 2 ** 20;

/** The clock of a PC with so much RAM below and from 4 GiB on. */
export const clockDevice = (low: number, high = 0): DescribedTestDevice => {
  const cmos = new Uint8Array(128);
  const put = (at: number, value: number, bytes: number): void => {
    for (let index = 0; index < bytes; index += 1) {
      cmos[at + index] = Math.floor(value / 256 ** index) % 256;
    }
  };
  put(0x17, Math.min(0xffff, Math.max(0, low / 1024 - 1024)), 2);
  put(0x34, Math.max(0, low - 16 * MIB) / 65536, 2);
  put(0x5b, high / 65536, 3);
  return {
    name: 'mc146818rtc',
    version: 3,
    body: new Uint8Array([...cmos, 7]),
    description: {
      fields: [
        { name: 'cmos_data', type: 'buffer', size: 128 },
        { name: 'cmos_index', type: 'uint8', size: 1 },
      ],
    },
  };
};

/** Memory as an SRAT lists it; flags 1 is RAM, 3 room for DIMMs, 5 an NVDIMM. */
export interface TestAffinity {
  readonly node?: number;
  readonly address: number;
  readonly bytes: number;
  readonly flags?: number;
}

/** QEMU's block of ACPI tables with an SRAT in it, by default one page long. */
export const acpiTables = (ranges: readonly TestAffinity[], bytes = 4096): Uint8Array => {
  const tables = new Uint8Array(bytes);
  const view = new DataView(tables.buffer);
  const table = (at: number, name: string, length: number): void => {
    tables.set(new TextEncoder().encode(name), at);
    view.setUint32(at + 4, length, true);
  };
  table(0, 'FACS', 64);
  table(64, 'DSDT', 100);
  table(164, 'SRAT', 48 + 16 + 40 * ranges.length);
  tables.set([0, 16], 164 + 48); // a processor
  ranges.forEach(({ node = 0, address, bytes: length, flags = 1 }, index) => {
    const at = 164 + 48 + 16 + 40 * index;
    tables.set([1, 40], at);
    view.setUint32(at + 2, node, true);
    view.setBigUint64(at + 8, BigInt(address), true);
    view.setBigUint64(at + 16, BigInt(length), true);
    view.setUint32(at + 28, flags, true);
  });
  return tables;
};

export interface TestPc {
  readonly machine?: string;
  readonly blocks: readonly { readonly name: string; readonly usedLength: number; readonly address?: number }[];
  readonly devices: readonly DescribedTestDevice[];
  readonly capabilities?: readonly string[];
  /** The block `/rom@etc/acpi/tables`, whole pages. */
  readonly tables?: Uint8Array;
  /** Content from an offset of a block on, whole pages. */
  readonly pages?: readonly { readonly block: string; readonly offset: number; readonly content: Uint8Array }[];
  /** Sections before the first page. */
  readonly early?: readonly DescribedTestDevice[];
  /** In place of the description of the devices. */
  readonly description?: string;
}

/** Sections with numbers of their own. */
const earlySections = (devices: readonly DescribedTestDevice[]): Uint8Array => {
  const out = new ByteWriter();
  devices.forEach(({ name, instance = 0, version = 1, body }, index) => {
    footer(sectionHeader(out, 4, 1000 + index, name, instance, version).bytes(body), 1000 + index);
  });
  return out.copy();
};

/** The stream of a PC of any size: no page of it is stored but those of its ACPI tables and in `pages`. */
export const pcStream = (pc: TestPc): Uint8Array => {
  const { machine = 'pc-q35-10.0', devices, capabilities = [], tables, pages = [], early = [], description } = pc;
  const name = '/rom@etc/acpi/tables';
  const blocks = tables === undefined ? pc.blocks : [...pc.blocks, { name, usedLength: tables.length }];
  const records = new ByteWriter();
  if (tables !== undefined) {
    for (let at = 0; at < tables.length; at += 4096) {
      normalRecord(records, at, tables.subarray(at, at + 4096), at === 0 ? name : undefined);
    }
  }
  for (const { block, offset, content } of pages) {
    for (let at = 0; at < content.length; at += 4096) {
      normalRecord(records, offset + at, content.subarray(at, at + 4096), block);
    }
  }
  return new StreamBuilder()
    .header({ machine, capabilities: [...capabilities] })
    .raw(ramStart(1, blocks, capabilities))
    .raw(earlySections(early))
    .raw(ramPart(3, 1))
    .raw(records.copy())
    .raw(ramBodyEnd(1))
    .tail(describedTail(devices, description ?? describedTail([...early, ...devices]).description)).bytes;
};
