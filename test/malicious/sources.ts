// The malicious peer: sources that a destination must survive. Each is a recipe for chunks of bytes, so that the same
// set goes into the reader in memory and down a socket into a receiving engine.

import { ByteWriter } from '../../src/format/byte-writer.js';
import { Command, ElementType, RecordFlag } from '../../src/format/stream/constants.js';
import * as write from '../../src/format/stream/write.js';
import { patternPage, richStream, testConfiguration, virtioMemEarlyBody } from '../streams.js';

/** What a destination must make of it. */
export type Outcome =
  /** A correct stream after all. */
  | { readonly loads: true }
  /** Refused with this error code; with the other one where it goes into guest memory. */
  | { readonly code: string; readonly intoMemory?: string }
  /** Never ends and breaks no rule: the destination goes on, in bounded memory, until it is told to stop. */
  | { readonly endless: true }
  /** Says nothing more and stays connected. */
  | { readonly silent: true };

export interface MaliciousSource {
  readonly name: string;
  readonly outcome: Outcome;
  /** Fresh chunks at every call; without end where the outcome says so. */
  readonly chunks: () => Iterable<Uint8Array>;
}

const PAGE = 4096;
const RAM_ID = 1;

const header = (): Uint8Array => write.streamHeader(testConfiguration());
const start = (): Uint8Array => write.ramStart(RAM_ID, [{ name: 'pc.ram', usedLength: 16 * PAGE }]);
const part = (): Uint8Array => write.ramPart(ElementType.SECTION_PART, RAM_ID);
const end = (): Uint8Array => Buffer.concat([write.ramPart(ElementType.SECTION_END, RAM_ID), write.ramBodyEnd(RAM_ID)]);
const full = (name: string, id = 2): Uint8Array =>
  write.sectionHeader(new ByteWriter(), ElementType.SECTION_FULL, id, name, 0, 1).copy();
const bytes = (fill: (out: ByteWriter) => void): Uint8Array => {
  const out = new ByteWriter();
  fill(out);
  return out.copy();
};
/** The header of RAM START, before its setup record. */
const startHeader = (version = 4, name = 'ram'): Uint8Array =>
  bytes((out) => write.sectionHeader(out, ElementType.SECTION_START, RAM_ID, name, 0, version));
/** 2^63 with flags, which no number holds. */
const huge = (flags = 0): Uint8Array => bytes((out) => out.be32(0x8000_0000).be32(flags));

/** `first`, then `again` for ever, in chunks of at least 64 KiB. */
const endless = (first: readonly Uint8Array[], again: Uint8Array): (() => Iterable<Uint8Array>) =>
  function* () {
    yield* first;
    const chunk = Buffer.concat(Array.from({ length: Math.ceil(65536 / again.length) }, () => again));
    for (;;) {
      yield chunk;
    }
  };

const refused = (name: string, code: string, ...chunks: readonly Uint8Array[]): MaliciousSource => ({
  name,
  outcome: { code },
  chunks: () => chunks,
});

/** A stream whose RAM is done and whose device section 2 has begun. */
const memoryDevice = (): Uint8Array => {
  const out = new ByteWriter().bytes(full('x/virtio-mem-device-early')).bytes(virtioMemEarlyBody(100));
  return write.footer(out, 2).copy();
};
const deviceBegun = (): Uint8Array[] => [header(), start(), end(), full('cpu')];

export const maliciousSources: readonly MaliciousSource[] = [
  {
    name: 'one byte at a time',
    outcome: { loads: true },
    *chunks() {
      for (const byte of richStream().bytes) {
        yield Uint8Array.of(byte);
      }
    },
  },
  { name: 'header and silence', outcome: { silent: true }, chunks: () => [header()] },
  {
    name: 'half a page and silence',
    outcome: { silent: true },
    chunks: () => [header(), start(), part(), huge(0x20).subarray(0, 5)],
  },

  // What never ends.
  {
    name: 'zero pages for ever',
    outcome: { endless: true },
    chunks: endless(
      [header(), start(), part(), bytes((out) => write.zeroRecord(out, 0, 'pc.ram'))],
      bytes((out) => write.zeroRecord(out, 3 * PAGE)),
    ),
  },
  {
    name: 'the same page for ever, each record with the name of its block',
    outcome: { endless: true },
    chunks: endless(
      [header(), start(), part()],
      bytes((out) => write.normalRecord(out, PAGE, patternPage(1), 'pc.ram')),
    ),
  },
  {
    name: 'empty parts for ever',
    outcome: { endless: true },
    chunks: endless([header(), start()], Buffer.concat([part(), write.ramBodyEnd(RAM_ID)])),
  },
  {
    name: 'commands for ever',
    outcome: { endless: true },
    chunks: endless([header()], write.command(Command.OPEN_RETURN_PATH)),
  },
  {
    name: 'a flood of PING',
    outcome: { endless: true },
    chunks: endless([header(), write.command(Command.OPEN_RETURN_PATH)], write.ping(0x01020304)),
  },
  {
    name: 'device state for ever',
    outcome: { code: 'DEVICE_STATE_TOO_LARGE' },
    chunks: endless(deviceBegun(), new Uint8Array(PAGE).fill(0x41)),
  },
  {
    name: 'early device state for ever',
    outcome: { code: 'DEVICE_STATE_TOO_LARGE' },
    chunks: endless([header(), start(), full('x/early')], patternPage(3)),
  },
  {
    name: 'early sections for ever',
    outcome: { code: 'DEVICE_STATE_TOO_LARGE' },
    chunks: endless(
      [header(), start()],
      bytes((out) => write.footer(out.bytes(full('x/early')), 2)),
    ),
  },
  {
    name: 'early sections in front of RAM for ever',
    outcome: { code: 'DEVICE_STATE_TOO_LARGE' },
    chunks: endless(
      [header()],
      bytes((out) => write.footer(out.bytes(full('x/early')), 2)),
    ),
  },
  {
    name: 'beginnings of descriptions for ever',
    outcome: { code: 'DEVICE_STATE_TOO_LARGE' },
    chunks: endless(
      deviceBegun(),
      bytes((out) => out.u8(0).u8(6).be32(0x10_0000).ascii('{"')),
    ),
  },
  {
    name: 'footers for ever',
    outcome: { code: 'DEVICE_STATE_TOO_LARGE' },
    chunks: endless(
      deviceBegun(),
      bytes((out) => write.footer(out, 2).bytes(full('cpu', 3))),
    ),
  },
  {
    name: 'one-page blocks for ever, under a total of 2^50',
    outcome: { code: 'RAM_BLOCK_COUNT' },
    *chunks() {
      yield header();
      yield startHeader();
      yield bytes((out) => out.be64(2 ** 50 + RecordFlag.MEM_SIZE));
      for (let number = 0; ; number += 1) {
        yield bytes((out) => out.str8(`block${number}`).be64(PAGE));
      }
    },
  },

  // Lengths.
  refused('machine name of 4 GiB', 'MACHINE_NAME_LENGTH', header().slice(0, 9), Buffer.from('ffffffff', 'hex')),
  refused(
    '4 billion capabilities',
    'CAPABILITY_COUNT',
    header(),
    bytes((out) => out.u8(5).str8('configuration/capabilities').be32(1).be32(0xffff_ffff)),
  ),
  refused('RAM of 2^63 bytes', 'LENGTH_TOO_LARGE', header(), startHeader(), huge(RecordFlag.MEM_SIZE)),
  refused(
    'RAM block of 2^63 bytes',
    'LENGTH_TOO_LARGE',
    header(),
    startHeader(),
    bytes((out) =>
      out
        .be64(PAGE + RecordFlag.MEM_SIZE)
        .str8('pc.ram')
        .bytes(huge()),
    ),
  ),
  ...[0, 100, PAGE + 1].map((length) =>
    refused(
      `RAM block of ${length} bytes`,
      'RAM_BLOCK_LENGTH',
      header(),
      startHeader(),
      bytes((out) =>
        out
          .be64(2 * PAGE + RecordFlag.MEM_SIZE)
          .str8('pc.ram')
          .be64(length),
      ),
    ),
  ),
  refused(
    'RAM blocks that add up to more than the total',
    'RAM_TOTAL',
    header(),
    startHeader(),
    bytes((out) =>
      out
        .be64(PAGE + RecordFlag.MEM_SIZE)
        .str8('pc.ram')
        .be64(2 * PAGE),
    ),
  ),
  refused(
    'page at 2^63',
    'PAGE_OUTSIDE_BLOCK',
    header(),
    start(),
    part(),
    bytes((out) => out.bytes(huge(RecordFlag.ZERO)).str8('pc.ram').u8(0)),
  ),
  refused(
    'page just behind its block',
    'PAGE_OUTSIDE_BLOCK',
    header(),
    start(),
    part(),
    bytes((out) => write.zeroRecord(out, 16 * PAGE, 'pc.ram')),
  ),
  refused(
    'XBZRLE data longer than a page',
    'XBZRLE_HEADER',
    header(),
    start(),
    part(),
    bytes((out) =>
      write
        .pageRecordHead(out, 0, RecordFlag.XBZRLE, 'pc.ram')
        .u8(1)
        .be16(PAGE + 1),
    ),
  ),
  refused(
    'command of 64 KiB',
    'COMMAND_LENGTH',
    header(),
    bytes((out) => out.u8(8).be16(1).be16(0xffff)),
  ),
  refused(
    'package of 4 GiB',
    'POSTCOPY_STREAM',
    header(),
    bytes((out) => out.u8(8).be16(7).be16(4).be32(0xffff_ffff)),
  ),
  refused(
    'description of 4 GiB',
    'DESCRIPTION_TOO_LARGE',
    header(),
    start(),
    end(),
    bytes((out) => out.u8(0).u8(6).be32(0xffff_ffff)),
  ),
  {
    name: 'description that nests 100,000 deep',
    outcome: { loads: true },
    chunks: () => [
      header(),
      start(),
      end(),
      write.streamEnd(
        `{"devices": [{"name": "x", "instance_id": 0, "subsections": ${'['.repeat(1e5)}${']'.repeat(1e5)}}]}`,
      ),
    ],
  },

  // Names.
  ...['pc\0ram', '', 'pc\nram', 'pc.ram\u00ff'].map((name) =>
    refused(
      `RAM block called ${JSON.stringify(name)}`,
      name === '' ? 'RAM_BLOCK_NAME' : 'NAME_NOT_PRINTABLE',
      header(),
      startHeader(),
      bytes((out) =>
        out
          .be64(PAGE + RecordFlag.MEM_SIZE)
          .u8(name.length)
          .ascii(name)
          .be64(PAGE),
      ),
    ),
  ),
  refused(
    'two RAM blocks of one name',
    'RAM_BLOCK_NAME',
    header(),
    startHeader(),
    bytes((out) =>
      out
        .be64(2 * PAGE + RecordFlag.MEM_SIZE)
        .str8('a')
        .be64(PAGE)
        .str8('a')
        .be64(PAGE),
    ),
  ),
  refused(
    'page of a block that is not listed',
    'UNKNOWN_RAM_BLOCK',
    header(),
    start(),
    part(),
    bytes((out) => write.zeroRecord(out, 0, 'x')),
  ),
  refused(
    'first page continues a block',
    'NO_CURRENT_BLOCK',
    header(),
    start(),
    part(),
    bytes((out) => write.zeroRecord(out, 0)),
  ),

  // Grammar.
  refused('not a stream', 'NOT_A_STREAM', Buffer.from('GET / HTTP/1.1\r\n')),
  refused('version 2', 'STREAM_VERSION', Buffer.from('5145564d00000002', 'hex')),
  refused('no configuration', 'NO_CONFIGURATION', header().slice(0, 8), Uint8Array.of(5)),
  refused('unknown element', 'UNKNOWN_ELEMENT', header(), Uint8Array.of(0x55)),
  refused('RAM version 3', 'RAM_VERSION', header(), startHeader(3)),
  refused('iterable other than RAM', 'UNKNOWN_ITERABLE', header(), startHeader(1, 'dirty-bitmap'), Uint8Array.of(8)),
  {
    ...refused(
      'iterable other than RAM that starts twice',
      'SECTION_ORDER',
      header(),
      startHeader(1, 'spapr/htab'),
      bytes((out) => write.footer(out.be32(8), RAM_ID)),
      startHeader(1, 'x/vfio'),
    ),
    // A guest that is loaded from the other sections has no use for the first of them.
    outcome: { code: 'SECTION_ORDER', intoMemory: 'UNKNOWN_ITERABLE' },
  },
  refused(
    'unknown iterable where sections have no footers',
    'UNKNOWN_ITERABLE',
    header(),
    start().slice(0, -5),
    bytes((out) => write.sectionHeader(out, ElementType.SECTION_START, 9, 'x/vfio', 0, 1)),
  ),
  refused('devices without RAM', 'SECTION_ORDER', header(), memoryDevice(), write.streamEnd('')),
  refused('EOF before RAM', 'SECTION_ORDER', header(), write.streamEnd('')),
  refused('RAM twice', 'SECTION_ORDER', header(), start(), start()),
  refused('RAM after its end', 'SECTION_ORDER', header(), start(), end(), part()),
  refused('part of another section', 'UNKNOWN_SECTION', header(), start(), write.ramPart(ElementType.SECTION_PART, 9)),
  refused('footer of another section', 'SECTION_FOOTER', header(), start(), part(), write.ramBodyEnd(9)),
  refused(
    'two flags in one record',
    'RECORD_FLAGS',
    header(),
    start(),
    part(),
    bytes((out) => out.be64(RecordFlag.ZERO + RecordFlag.PAGE)),
  ),
  refused(
    'compressed page',
    'COMPRESSED_PAGE',
    header(),
    start(),
    part(),
    bytes((out) => out.be64(RecordFlag.COMPRESS_PAGE)),
  ),
  refused(
    'multifd',
    'MULTIFD_STREAM',
    header(),
    start(),
    part(),
    bytes((out) => out.be64(RecordFlag.MULTIFD_FLUSH)),
  ),
  refused(
    'zero page of sevens',
    'ZERO_PAGE_FILL',
    header(),
    start(),
    part(),
    bytes((out) => write.pageRecordHead(out, 0, RecordFlag.ZERO, 'pc.ram').u8(7)),
  ),
  refused('PING without return path', 'PING_WITHOUT_RETURN_PATH', header(), write.ping(1)),
  refused('unknown command', 'UNKNOWN_COMMAND', header(), write.command(12)),
  refused('postcopy', 'POSTCOPY_STREAM', header(), write.command(Command.POSTCOPY_LISTEN)),
  refused(
    'mapped-ram in a stream',
    'MAPPED_RAM_NOT_STREAM',
    write.streamHeader(testConfiguration({ capabilities: ['mapped-ram'] })),
    start(),
  ),
  ...[
    { name: 'two devices of one id', first: 2, second: 2, secondName: 'timer' },
    { name: 'device with the id of RAM', first: 2, second: RAM_ID, secondName: 'timer' },
  ].map(({ name, first, second, secondName }) =>
    refused(
      name,
      'DEVICE_SECTION',
      header(),
      start(),
      end(),
      bytes((out) => write.footer(out.bytes(full('cpu', first)), first)),
      bytes((out) => write.footer(out.bytes(full(secondName, second)), second)),
      write.streamEnd(
        '{"devices": [{"name": "cpu", "instance_id": 0, "fields": []}, {"name": "timer", "instance_id": 0, "fields": []}]}',
      ),
    ),
  ),
  refused(
    'device that nothing ends',
    'DEVICE_END',
    ...deviceBegun(),
    write.streamEnd('{"devices": [{"name": "cpu", "instance_id": 0, "fields": [{"size": 3}]}]}'),
  ),
  {
    name: 'description that is not JSON',
    outcome: { loads: true },
    chunks: () => [header(), start(), end(), write.streamEnd('{"devices": [}')],
  },
];
