// Streams for tests, written element by element, together with the memory that whoever loads them must end up with.

import { ByteWriter } from '../src/format/byte-writer.js';
import type { StreamConfiguration } from '../src/format/stream/configuration.js';
import { ElementType } from '../src/format/stream/constants.js';
import { buildDeviceTail, type DeviceState, type DeviceTail } from '../src/format/stream/device-tail.js';
import * as write from '../src/format/stream/write.js';
import { encodeXbzrle } from '../src/format/stream/xbzrle.js';

/** One page record. `xbzrle` gives the new content; the builder knows the old one. */
export type TestRecord =
  | { readonly block: string; readonly page: number; readonly kind: 'zero' }
  | { readonly block: string; readonly page: number; readonly kind: 'normal' | 'xbzrle'; readonly content: Uint8Array };

export const testConfiguration = (changes: Partial<StreamConfiguration> = {}): StreamConfiguration => ({
  machine: 'pc-i440fx-10.0',
  targetPageBits: undefined,
  capabilities: [],
  uuid: undefined,
  ...changes,
});

export class StreamBuilder {
  readonly pageSize: number;
  readonly ramSectionId: number;
  /** Content of every block after the records so far. */
  readonly memory = new Map<string, Uint8Array>();
  readonly #out = new ByteWriter(64 * 1024);
  #block: string | undefined;

  readonly #hasFooters: boolean;

  /** @param hasFooters false for streams of machine types up to 2.3, whose sections have none */
  constructor(ramSectionId = 1, pageSize = 4096, hasFooters = true) {
    this.ramSectionId = ramSectionId;
    this.pageSize = pageSize;
    this.#hasFooters = hasFooters;
  }

  /** Bytes so far: the offset of what comes next. */
  get length(): number {
    return this.#out.length;
  }

  get bytes(): Uint8Array {
    return this.#out.copy();
  }

  /** Appends bytes of any kind. */
  raw(bytes: Uint8Array): this {
    this.#out.bytes(bytes);
    return this;
  }

  header(configuration: Partial<StreamConfiguration> = {}): this {
    return this.raw(write.streamHeader(testConfiguration(configuration)));
  }

  ramStart(blocks: readonly write.StreamRamBlock[], capabilities: readonly string[] = []): this {
    for (const { name, usedLength } of blocks) {
      this.memory.set(name, new Uint8Array(usedLength));
    }
    return this.#section(write.ramStart(this.ramSectionId, blocks, capabilities));
  }

  part(records: readonly TestRecord[]): this {
    return this.#body(ElementType.SECTION_PART, records);
  }

  end(records: readonly TestRecord[] = []): this {
    return this.#body(ElementType.SECTION_END, records);
  }

  /** Device sections, EOF and description. */
  /** The whole state of a device that iterates: one byte. */
  iterable(name: string): this {
    return this.#section(
      write.footer(write.sectionHeader(new ByteWriter(), ElementType.SECTION_START, 9, name, 0, 1).u8(1), 9).copy(),
    );
  }

  tail(tail: DeviceTail): this {
    return this.raw(tail.sections).raw(write.streamEnd(tail.description));
  }

  devices(devices: readonly DeviceState[]): this {
    return this.tail(buildDeviceTail(devices, [], this.pageSize));
  }

  /** Appends a section, with its footer or without. */
  #section(bytes: Uint8Array): this {
    return this.raw(this.#hasFooters ? bytes : bytes.subarray(0, -5));
  }

  #body(type: typeof ElementType.SECTION_PART | typeof ElementType.SECTION_END, records: readonly TestRecord[]): this {
    this.raw(write.ramPart(type, this.ramSectionId));
    for (const record of records) {
      this.#record(record);
    }
    return this.#section(write.ramBodyEnd(this.ramSectionId));
  }

  #record(record: TestRecord): void {
    const offset = record.page * this.pageSize;
    const page = this.memory.get(record.block)!.subarray(offset, offset + this.pageSize);
    const name = record.block === this.#block ? undefined : record.block;
    this.#block = record.block;
    if (record.kind === 'zero') {
      write.zeroRecord(this.#out, offset, name);
      page.fill(0);
      return;
    }
    if (record.kind === 'normal') {
      write.normalRecord(this.#out, offset, record.content, name);
    } else {
      const encoded = new Uint8Array(this.pageSize);
      const length = encodeXbzrle(page, record.content, encoded);
      write.xbzrleRecord(this.#out, offset, encoded.subarray(0, Math.max(length, 0)), name);
    }
    page.set(record.content);
  }
}

/** A page whose content depends on `seed` in every byte, and is not zero. */
export const patternPage = (seed: number, pageSize = 4096): Uint8Array => {
  let state = (seed * 2654435761 + 1) >>> 0;
  return Uint8Array.from({ length: pageSize }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state >>> 24;
  });
};

/** Device state of `bytes` bytes that looks like nothing in particular. */
export const testDevice = (name: string, bytes: number, instance = 0): DeviceState => ({
  name,
  instance,
  version: 1,
  body: patternPage(bytes + name.length, bytes),
});

/** The body of virtio-mem's early section for a region of `blocks` device blocks of 2 MiB (1.10). */
export const virtioMemEarlyBody = (blocks: number): Uint8Array => {
  const body = new ByteWriter()
    .be64(0x1_0000_0000)
    .be64(blocks * 0x20_0000)
    .be64(0x20_0000)
    .be32(0)
    .be64(0);
  return body.bytes(new Uint8Array(8 * Math.ceil(blocks / 64))).copy();
};

/**
 * A stream with a bit of everything: several blocks, every kind of page record, pages sent again, commands between
 * the sections, an early section, devices.
 */
export const richStream = (): { bytes: Uint8Array; memory: Map<string, Uint8Array>; tail: DeviceTail } => {
  const late = [
    testDevice('timer', 24),
    testDevice('cpu', 5000),
    testDevice('cpu', 300, 1),
    testDevice('0000:00:02.0/vga', 77),
  ];
  const early = {
    name: '0000:00:03.0/virtio-mem-device-early',
    instance: 0,
    version: 1,
    body: virtioMemEarlyBody(128),
  };
  const built = buildDeviceTail([early, ...late]);
  // The builder puts all sections in a row; the first one is the early one.
  const earlyBytes = 14 + early.name.length + early.body.length + 5;
  const tail = {
    early: built.sections.slice(0, earlyBytes),
    sections: built.sections.slice(earlyBytes),
    description: built.description,
  };
  const changed = patternPage(2);
  changed[7] ^= 1;
  changed[4095] ^= 0x80;
  const builder = new StreamBuilder()
    .header({ uuid: '00112233-4455-6677-8899-aabbccddeeff' })
    .raw(write.command(1))
    .raw(write.ping(1))
    .ramStart([
      { name: 'pc.ram', usedLength: 64 * 4096 },
      { name: '0000:00:02.0/vga.vram', usedLength: 4 * 4096 },
      { name: '/rom@etc/acpi/rsdp', usedLength: 4096 },
    ])
    .raw(tail.early)
    .part([
      { block: 'pc.ram', page: 0, kind: 'zero' },
      { block: 'pc.ram', page: 1, kind: 'normal', content: patternPage(1) },
      { block: 'pc.ram', page: 2, kind: 'normal', content: patternPage(2) },
      { block: 'pc.ram', page: 63, kind: 'normal', content: patternPage(63) },
      { block: '0000:00:02.0/vga.vram', page: 3, kind: 'normal', content: patternPage(103) },
      { block: '0000:00:02.0/vga.vram', page: 2, kind: 'zero' },
      { block: '/rom@etc/acpi/rsdp', page: 0, kind: 'normal', content: patternPage(200) },
    ])
    .part([])
    .part([
      { block: 'pc.ram', page: 2, kind: 'xbzrle', content: changed },
      { block: 'pc.ram', page: 5, kind: 'xbzrle', content: patternPage(5).fill(0, 100) },
      { block: 'pc.ram', page: 63, kind: 'zero' },
    ])
    .raw(write.command(11))
    .end([{ block: 'pc.ram', page: 1, kind: 'normal', content: patternPage(11) }])
    .tail(tail);
  return { bytes: builder.bytes, memory: builder.memory, tail };
};
