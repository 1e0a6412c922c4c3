// The memory of a Linux kernel that tests invent: an image with variables, VMCOREINFO that tells of them, log buffers of three ages
// and a table of symbols, in a PC whose kernel KASLR has moved.

import { type DescribedTestDevice, describedStream } from './described-stream.js';
import { PAGING, TestTables } from './page-tables.js';
import { clockDevice, pcStream, type TestPc } from './pc-memory.js';

const RAM_BYTES = 16 * 2 ** 20;

/** Where the image is in memory, and where it would be without KASLR. */
const IMAGE_ADDRESS = 0x40_0000;
const IMAGE_BYTES = 0x20_0000;
const TEXT = 0xffff_ffff_8100_0000n;
const MAP_START = 0xffff_ffff_8000_0000n;

/** Page tables, and memory that the kernel knows at another address than its image. */
const TABLES_ADDRESS = 0x80_0000;
export const DIRECT_ADDRESS = 0x90_0000;
const DIRECT_BYTES = 0x10_0000;

export const RELEASE = '6.1.0-test';
export const VERSION = '#7 SMP Tue Dec  1 2026';
export const BANNER = `Linux version ${RELEASE} (builder@example) (gcc 12) ${VERSION}`;

/** One record of a log. */
export interface TestRecord {
  readonly timeNs?: bigint;
  readonly level?: number;
  readonly facility?: number;
  readonly text: string;
}

export interface TestLinuxOptions {
  readonly kaslrOffset?: bigint;
  readonly release?: string;
  /** As kernels before 4.10 have it: VMCOREINFO does not say where the image is. */
  readonly hidesPhysicalBase?: boolean;
}

const ascii = (text: string): Uint8Array => new TextEncoder().encode(text);

/** A kernel in the making: `put` what it has, then take `stream`. */
export class TestLinux {
  readonly physicalBase: bigint;
  readonly textVirtual: bigint;
  /** Lines of VMCOREINFO; a test may add to them, or take one out. */
  readonly lines: string[];
  readonly image = new Uint8Array(IMAGE_BYTES);
  readonly direct = new Uint8Array(DIRECT_BYTES);
  readonly tables = new TestTables(PAGING[4], TABLES_ADDRESS);
  readonly directVirtual = 0xffff_8880_0000_0000n;
  #imageEnd = 0x1000;
  #directEnd = 0;

  constructor({ kaslrOffset = 0x1240_0000n, release = RELEASE, hidesPhysicalBase = false }: TestLinuxOptions = {}) {
    this.textVirtual = TEXT + kaslrOffset;
    this.physicalBase = BigInt(IMAGE_ADDRESS) - (this.textVirtual - MAP_START);
    for (let at = 0n; at < DIRECT_BYTES; at += 4096n) {
      this.tables.map(this.directVirtual + at, BigInt(DIRECT_ADDRESS) + at);
    }
    for (let at = 0n; at < IMAGE_BYTES; at += 4096n) {
      this.tables.map(this.textVirtual + at, BigInt(IMAGE_ADDRESS) + at);
    }
    const names = ['Linux', 'guest7', release, VERSION, 'x86_64', '(none)'];
    const uts = this.put(new Uint8Array(names.flatMap((name) => [...ascii(name.padEnd(65, '\0'))])));
    this.lines = [
      `OSRELEASE=${release}`,
      'BUILD-ID=0123456789abcdef',
      'PAGESIZE=4096',
      `SYMBOL(init_uts_ns)=${uts.toString(16)}`,
      'OFFSET(uts_namespace.name)=0',
      `SYMBOL(swapper_pg_dir)=${(MAP_START + BigInt(TABLES_ADDRESS) - this.physicalBase).toString(16)}`,
      `SYMBOL(_stext)=${this.textVirtual.toString(16)}`,
      'SIZE(list_head)=16',
      ...(hidesPhysicalBase ? [] : [`NUMBER(phys_base)=${this.physicalBase}`]),
      'NUMBER(pgtable_l5_enabled)=0',
      `KERNELOFFSET=${kaslrOffset.toString(16)}`,
    ];
  }

  /** Puts bytes into the image; returns their virtual address. */
  put(bytes: Uint8Array): bigint {
    const at = this.#imageEnd;
    this.image.set(bytes, at);
    this.#imageEnd = Math.ceil((at + bytes.length) / 8) * 8;
    return this.textVirtual + BigInt(at);
  }

  /** Puts bytes into memory outside of the image; returns their virtual address there. */
  putDirect(bytes: Uint8Array): bigint {
    const at = this.#directEnd;
    this.direct.set(bytes, at);
    this.#directEnd = Math.ceil((at + bytes.length) / 8) * 8;
    return this.directVirtual + BigInt(at);
  }

  putWords(...words: readonly bigint[]): bigint {
    return this.put(new Uint8Array(new BigUint64Array(words).buffer));
  }

  /** Bytes that were put, to change them. */
  view(virtual: bigint): DataView {
    const isDirect = virtual >= this.directVirtual && virtual < this.directVirtual + BigInt(DIRECT_BYTES);
    return isDirect
      ? new DataView(this.direct.buffer, Number(virtual - this.directVirtual))
      : new DataView(this.image.buffer, Number(virtual - this.textVirtual));
  }

  symbol(name: string, virtual: bigint): void {
    this.lines.push(`SYMBOL(${name})=${virtual.toString(16)}`);
  }

  get vmcoreinfo(): string {
    return `${this.lines.join('\n')}\n`;
  }

  /** The stream of a guest with this kernel, and VMCOREINFO at a place of memory. */
  stream(
    options: {
      readonly devices?: readonly DescribedTestDevice[];
      readonly machine?: string;
      readonly more?: string;
      readonly pages?: TestPc['pages'];
      /** Whether zero pages are left out: the guest is read sooner. */
      readonly isSparse?: boolean;
    } = {},
  ): Uint8Array {
    const { devices = [], machine = 'pc-q35-10.0', more = '', pages: others = [], isSparse = false } = options;
    const pages = [
      ...pagesOf(IMAGE_ADDRESS, this.image, isSparse),
      ...pagesOf(DIRECT_ADDRESS, this.direct, isSparse),
      ...this.tables.pagesOf('pc.ram'),
      { block: 'pc.ram', offset: NOTE_ADDRESS, content: page(note(ascii(this.vmcoreinfo))) },
      ...(more === '' ? [] : [{ block: 'pc.ram', offset: 0x20_0000, content: page(ascii(more)) }]),
      ...others,
    ];
    return pcStream({
      machine,
      blocks: [{ name: 'pc.ram', usedLength: RAM_BYTES }],
      devices: [clockDevice(RAM_BYTES), ...devices],
      pages,
    });
  }
}

/** Where VMCOREINFO is in memory, as an ELF note. */
export const NOTE_ADDRESS = 0x30_0000;

const note = (content: Uint8Array): Uint8Array => {
  const bytes = new Uint8Array(12 + 12 + content.length);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, 11, true);
  view.setUint32(4, content.length, true);
  bytes.set(ascii('VMCOREINFO'), 12);
  bytes.set(content, 24);
  return bytes;
};

const pagesOf = (address: number, content: Uint8Array, isSparse: boolean): NonNullable<TestPc['pages']> =>
  Array.from({ length: content.length / 4096 }, (_, index) => index * 4096)
    .map((at) => ({ block: 'pc.ram', offset: address + at, content: content.subarray(at, at + 4096) }))
    .filter((each) => !isSparse || each.content.some((byte) => byte !== 0));

/** Whole pages, as many as are needed. */
const page = (content: Uint8Array): Uint8Array => {
  const bytes = new Uint8Array(Math.ceil(content.length / 4096) * 4096);
  bytes.set(content);
  return bytes;
};

/** QEMU's vmcoreinfo device with an address that the guest has written. */
export const vmcoreinfoDevice = (address = NOTE_ADDRESS, bytes = 4096): DescribedTestDevice => {
  const body = new Uint8Array(17);
  const view = new DataView(body.buffer);
  body[0] = 1;
  view.setUint16(3, 1);
  view.setUint32(5, bytes);
  view.setBigUint64(9, BigInt(address));
  return {
    name: 'vmcoreinfo',
    version: 1,
    body,
    description: { fields: [{ name: 'vmcoreinfo', type: 'buffer', size: 17 }] },
  };
};

/** A guest without any Linux. */
export const emptyStream = (): Uint8Array => describedStream([]);

const WRAP = 0xffff_ffff_ffff_ffffn;
const COMMITTED = 1n << 62n;
const FINALIZED = 2n << 62n;
const ID_MASK = (1n << 62n) - 1n;

export interface RingOptions {
  readonly countBits?: number;
  readonly sizeBits?: number;
  /** Id of the first record ever, and the first position in the text: high, so that both wrap. */
  readonly firstId?: bigint;
  readonly firstPosition?: bigint;
}

/** Writes the ring of Linux 5.10 as the kernel would: the oldest records give way. Returns addresses of its parts. */
export const putRing = (
  linux: TestLinux,
  records: readonly TestRecord[],
  { countBits = 4, sizeBits = 9, firstId = ID_MASK - 2n, firstPosition = WRAP - 511n }: RingOptions = {},
): { ring: bigint; descriptors: bigint; infos: bigint; text: bigint } => {
  const slots = 2 ** countBits;
  const size = BigInt(2 ** sizeBits);
  const text = linux.putDirect(new Uint8Array(Number(size)));
  const descriptors = linux.putDirect(new Uint8Array(slots * 24));
  const infos = linux.putDirect(new Uint8Array(slots * 88));
  let position = firstPosition;
  let tail = 0;
  const begins: bigint[] = [];
  records.forEach(({ timeNs = 0n, level = 6, facility = 0, text: line }, number) => {
    const id = (firstId + BigInt(number)) & ID_MASK;
    const index = Number(id % BigInt(slots));
    const bytes = ascii(line);
    const block = BigInt(Math.ceil((8 + bytes.length) / 8) * 8);
    let begin = position;
    let start = begin % size;
    position = (begin + block) & WRAP;
    if (start + block > size) {
      start = 0n;
      position = ((begin / size + 1n) * size + block) & WRAP;
    }
    if (line === '') {
      begin = 3n; // No text at all.
    }
    begins.push(begin);
    const at = linux.view(text);
    if (line !== '') {
      at.setBigUint64(Number(start), id, true);
      new Uint8Array(at.buffer, at.byteOffset).set(bytes, Number(start) + 8);
    }
    const descriptor = linux.view(descriptors);
    descriptor.setBigUint64(index * 24, (number % 2 === 0 ? COMMITTED : FINALIZED) | id, true);
    descriptor.setBigUint64(index * 24 + 8, begin, true);
    descriptor.setBigUint64(index * 24 + 16, line === '' ? 3n : position, true);
    const info = linux.view(infos);
    info.setBigUint64(index * 88, BigInt(number), true);
    info.setBigUint64(index * 88 + 8, timeNs, true);
    info.setUint16(index * 88 + 16, bytes.length, true);
    info.setUint8(index * 88 + 18, facility);
    info.setUint8(index * 88 + 19, level << 5);
    while (number - tail + 1 > slots || ((position - begins[tail]!) & WRAP) > size) {
      tail += 1;
    }
  });
  const ring = linux.putWords(
    ...[BigInt(countBits), descriptors, infos, (firstId + BigInt(records.length - 1)) & ID_MASK],
    ...[(firstId + BigInt(tail)) & ID_MASK, 0n, BigInt(sizeBits), text, position, begins[tail] ?? 0n, 0n],
  );
  linux.symbol('prb', linux.putWords(ring));
  linux.lines.push(
    ...['OFFSET(printk_ringbuffer.desc_ring)=0', 'OFFSET(printk_ringbuffer.text_data_ring)=48'],
    ...['OFFSET(prb_desc_ring.count_bits)=0', 'OFFSET(prb_desc_ring.descs)=8', 'OFFSET(prb_desc_ring.infos)=16'],
    ...['OFFSET(prb_desc_ring.head_id)=24', 'OFFSET(prb_desc_ring.tail_id)=32', 'SIZE(prb_desc)=24'],
    ...['OFFSET(prb_desc.state_var)=0', 'OFFSET(prb_desc.text_blk_lpos)=8', 'OFFSET(prb_data_blk_lpos.begin)=0'],
    ...['OFFSET(prb_data_blk_lpos.next)=8', 'SIZE(printk_info)=88', 'OFFSET(printk_info.ts_nsec)=8'],
    ...['OFFSET(printk_info.text_len)=16', 'OFFSET(prb_data_ring.size_bits)=0', 'OFFSET(prb_data_ring.data)=8'],
    'OFFSET(atomic_long_t.counter)=0',
  );
  return { ring, descriptors, infos, text };
};

/** Writes the records of Linux 3.5 to 5.9 into a buffer of 256 bytes, and again from its beginning on. */
export const putBuffer = (
  linux: TestLinux,
  records: readonly (TestRecord & { readonly flags?: number })[],
): { buffer: bigint } => {
  const length = 256;
  const buffer = linux.putDirect(new Uint8Array(length));
  const view = linux.view(buffer);
  const starts: number[] = [];
  let at = 0;
  let first = 0;
  for (const { timeNs = 0n, level = 6, facility = 0, text, flags = 2 } of records) {
    const bytes = ascii(text);
    const size = Math.ceil((16 + bytes.length) / 8) * 8;
    if (at + size + 16 > length) {
      view.setUint16(at + 8, 0, true);
      at = 0;
    }
    while (starts.length > 0 && starts[0]! >= at && starts[0]! < at + size + 16) {
      starts.shift();
    }
    view.setBigUint64(at, timeNs, true);
    view.setUint16(at + 8, size, true);
    view.setUint16(at + 10, bytes.length, true);
    view.setUint8(at + 14, facility);
    view.setUint8(at + 15, (level << 5) | flags);
    new Uint8Array(view.buffer, view.byteOffset).set(bytes, at + 16);
    starts.push(at);
    at += size;
    first = starts[0]!;
  }
  linux.symbol('log_buf', linux.putWords(buffer));
  linux.symbol('log_buf_len', linux.putWords(BigInt(length)));
  linux.symbol('log_first_idx', linux.putWords(BigInt(first)));
  linux.symbol('log_next_idx', linux.putWords(BigInt(at)));
  linux.lines.push(
    ...['SIZE(printk_log)=16', 'OFFSET(printk_log.ts_nsec)=0', 'OFFSET(printk_log.len)=8'],
    ...['OFFSET(printk_log.text_len)=10', 'OFFSET(printk_log.dict_len)=12'],
  );
  return { buffer };
};

/** Writes the plain text of Linux before 3.5 into a ring of 128 bytes. */
export const putText = (linux: TestLinux, lines: readonly string[]): void => {
  const length = 128;
  const text = ascii(lines.map((line) => `${line}\n`).join(''));
  const ring = new Uint8Array(length);
  text.forEach((byte, position) => {
    ring[position % length] = byte;
  });
  linux.symbol('log_buf', linux.putWords(linux.putDirect(ring)));
  linux.symbol('log_buf_len', linux.putWords(BigInt(length)));
  linux.symbol('log_end', linux.putWords(BigInt(text.length)));
  linux.symbol('logged_chars', linux.putWords(BigInt(Math.min(length, text.length))));
};

/**
 * Writes the kernel's table of symbols: each with its type, as `/proc/kallsyms` shows it, in the order of addresses.
 * @param isPerCpu with CONFIG_KALLSYMS_ABSOLUTE_PERCPU
 */
export const putSymbols = (linux: TestLinux, symbols: Readonly<Record<string, bigint>>, isPerCpu = false): void => {
  // One token a character, and one for a piece that is common.
  const tokens = Array.from({ length: 256 }, (_, code) => (code === 1 ? 'command_' : String.fromCharCode(code)));
  const table: number[] = [];
  const index = new Uint16Array(256);
  tokens.forEach((token, code) => {
    index[code] = table.length;
    table.push(...ascii(code > 127 ? '' : token), 0);
  });
  const base = linux.textVirtual;
  const names: number[] = [];
  const offsets: number[] = [];
  for (const [name, address] of Object.entries(symbols)) {
    const bytes = [...ascii(`D${name.replaceAll('command_', '\x01')}`)];
    names.push(...(bytes.length < 0x80 ? [bytes.length] : [(bytes.length & 0x7f) | 0x80, bytes.length >> 7]), ...bytes);
    offsets.push(Number(isPerCpu ? base - 1n - address : address - base));
  }
  linux.symbol('kallsyms_names', linux.put(new Uint8Array([...names, ...new Uint8Array(2 ** 19)])));
  linux.symbol('kallsyms_num_syms', linux.put(new Uint8Array(new Uint32Array([offsets.length]).buffer)));
  linux.symbol('kallsyms_token_table', linux.put(new Uint8Array(table)));
  linux.symbol('kallsyms_token_index', linux.put(new Uint8Array(index.buffer)));
  linux.symbol('kallsyms_offsets', linux.put(new Uint8Array(new Int32Array(offsets).buffer)));
  linux.symbol('kallsyms_relative_base', linux.putWords(base));
};

/** A log with a boot line, a time, and what a terminal would act on. */
export const RECORDS: readonly TestRecord[] = [
  { timeNs: 0n, text: BANNER },
  { timeNs: 0n, text: 'Command line: root=/dev/vda1 quiet' },
  { timeNs: 4_220_695_123n, level: 3, facility: 1, text: 'from a\tprogram\nin two lines\x1b[31m' },
];

/** A kernel of today, with everything. */
export const wholeLinux = (isPerCpu = false): TestLinux => {
  const linux = new TestLinux();
  putRing(linux, RECORDS);
  const text = (content: string): bigint => linux.putDirect(new TextEncoder().encode(`${content}\0`));
  const line = 'root=/dev/vda1 quiet from=memory';
  putSymbols(
    linux,
    {
      [`long_${'x'.repeat(200)}`]: linux.textVirtual,
      linux_banner: linux.put(new TextEncoder().encode(`${BANNER}\n\0`)),
      saved_command_line: linux.putWords(text(line)),
      sysctl_bootid: linux.put(
        new Uint8Array([0xe4, 0xa9, 0xb8, 0x6a, 0xe0, 0x99, 0x48, 0x1b, 0x84, 0x25, 1, 2, 3, 4, 5, 6]),
      ),
      init_uts_ns: linux.textVirtual + 0x1000n,
    },
    isPerCpu,
  );
  return linux;
};
