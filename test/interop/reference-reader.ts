// A second, independent reader of QEMU's stream and mapped-ram files, for comparison with ours: whole files in memory,
// a plain loop, no error handling beyond assertions. Written from spec/qemu-wire-format.md 1, 2 and 3; it shares
// no code with src/format, so that an error would have to be made twice.

import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { closeSync, fstatSync, openSync, readSync } from 'node:fs';

const PAGE = 4096;

export interface ReferenceBlock {
  readonly name: string;
  readonly usedLength: number;
  /** Content: pages never stored are zero. */
  readonly bytes: Buffer;
  /** Per page: 0 nothing stored, 1 stored as a zero mark, 2 stored as bytes (by the last record that names it). */
  readonly stored: Uint8Array;
}

export interface ReferenceSection {
  /** Section id. */
  readonly section: number;
  readonly name: string;
  readonly instance: number;
  readonly version: number;
  /** File offset and length of the body. */
  readonly offset: number;
  readonly bytes: number;
}

export interface ReferenceStream {
  readonly machine: string;
  readonly capabilities: readonly string[];
  readonly blocks: ReadonlyMap<string, ReferenceBlock>;
  readonly sections: readonly ReferenceSection[];
  readonly commands: readonly number[];
  /** Records by kind. */
  readonly records: { zero: number; normal: number; xbzrle: number };
  /** File offsets of the page contents of normal records, pc.ram only. */
  readonly normalOffsets: readonly number[];
}

/** A device, a structure or a subsection as the VM description has it. */
export interface Description {
  readonly name?: string;
  readonly instance_id?: number;
  readonly vmsd_name?: string;
  readonly fields?: readonly DescribedField[];
  readonly subsections?: readonly Description[];
}

export interface DescribedField {
  readonly name: string;
  readonly type: string;
  readonly size: number;
  readonly array_len?: number;
  readonly struct?: Description;
}

/** Body bytes of a device, spec/qemu-wire-format.md 1.9.1. */
const bodyBytes = (description: Description): number =>
  (description.fields ?? []).reduce((sum, field) => sum + field.size * (field.array_len ?? 1), 0) +
  (description.subsections ?? []).reduce((sum, inner) => sum + 6 + inner.vmsd_name!.length + bodyBytes(inner), 0);

/** Files above 2 GiB do not fit readFileSync; ours are smaller, but a mapped-ram file's holes count too. */
export const readWhole = (file: string): Buffer => {
  const descriptor = openSync(file, 'r');
  try {
    const buffer = Buffer.alloc(fstatSync(descriptor).size);
    for (let at = 0; at < buffer.length; ) {
      at += readSync(descriptor, buffer, at, Math.min(2 ** 30, buffer.length - at), at);
    }
    return buffer;
  } finally {
    closeSync(descriptor);
  }
};

const VMDESCRIPTION = 0x06;
const EOF = 0x00;

/**
 * The JSON description is the last thing in the file, behind EOF, VMDESCRIPTION and its length. The length is what finds it: a `{`
 * may be a byte of the length itself, as it is in files of QEMU 11.1.
 */
export const readDescription = (bytes: Buffer): readonly Description[] => {
  const starts: number[] = [];
  for (let start = bytes.indexOf('{', bytes.lastIndexOf(0)); start !== -1; start = bytes.indexOf('{', start + 1)) {
    if (
      bytes[start - 6] === EOF &&
      bytes[start - 5] === VMDESCRIPTION &&
      bytes.readUInt32BE(start - 4) === bytes.length - start
    ) {
      starts.push(start);
    }
  }
  assert.equal(starts.length, 1, 'one place is a description by its length');
  return (JSON.parse(bytes.toString('latin1', starts[0]!)) as { devices: Description[] }).devices;
};

/** One length of an XBZRLE run: one or two bytes, low seven bits first. */
const runLength = (bytes: Buffer, at: number): [length: number, next: number] =>
  bytes[at]! < 0x80 ? [bytes[at]!, at + 1] : [(bytes[at]! & 0x7f) + (bytes[at + 1]! << 7), at + 2];

const applyXbzrle = (page: Buffer, delta: Buffer): void => {
  for (let at = 0, position = 0; at < delta.length; ) {
    const [skipped, literalAt] = runLength(delta, at);
    const [count, dataAt] = runLength(delta, literalAt);
    position += skipped;
    delta.copy(page, position, dataAt, dataAt + count);
    position += count;
    at = dataAt + count;
  }
};

export const readReference = (file: string): ReferenceStream => {
  const bytes = readWhole(file);
  const devices = readDescription(bytes);
  const blocks = new Map<string, ReferenceBlock>();
  const sections: ReferenceSection[] = [];
  const commands: number[] = [];
  const capabilities: string[] = [];
  const normalOffsets: number[] = [];
  const records = { zero: 0, normal: 0, xbzrle: 0 };
  let machine = '';
  let at = 0;
  let current: ReferenceBlock | undefined;

  const u8 = (): number => bytes.readUInt8(at++);
  const be16 = (): number => bytes.readUInt16BE((at += 2) - 2);
  const be32 = (): number => bytes.readUInt32BE((at += 4) - 4);
  const be64 = (): number => Number(bytes.readBigUInt64BE((at += 8) - 8));
  const text = (length: number): string => bytes.toString('latin1', at, (at += length));
  const str8 = (): string => text(u8());

  const configuration = (): void => {
    machine = text(be32());
    while (bytes[at] === 0x05) {
      at++;
      const name = str8();
      assert.equal(be32(), 1, `version of ${name}`);
      if (name === 'configuration/capabilities') {
        for (let count = be32(); count > 0; count--) {
          capabilities.push(str8());
        }
      } else {
        assert.equal(name, 'configuration/uuid');
        at += 16;
      }
    }
  };

  const addBlock = (): ReferenceBlock => {
    const name = str8();
    const usedLength = be64();
    const pages = usedLength / PAGE;
    const block = { name, usedLength, bytes: Buffer.alloc(usedLength), stored: new Uint8Array(pages) };
    blocks.set(name, block);
    if (capabilities.includes('mapped-ram')) {
      assert.equal(be32(), 1, 'mapped-ram header version');
      assert.equal(be64(), PAGE, 'mapped-ram page size');
      const bitmap = be64();
      const contents = be64();
      for (let page = 0; page < pages; page++) {
        if ((bytes[bitmap + (page >> 3)]! >> (page & 7)) & 1) {
          block.stored[page] = 2;
          bytes.copy(block.bytes, page * PAGE, contents + page * PAGE, contents + (page + 1) * PAGE);
        }
      }
      at = contents + usedLength;
    }
    return block;
  };

  const ramBody = (): void => {
    for (;;) {
      const word = be64();
      const flags = word % PAGE;
      const offset = word - flags;
      if (flags === 0x10) {
        return;
      }
      if (flags === 0x04) {
        for (let left = offset; left > 0; ) {
          left -= addBlock().usedLength;
        }
        continue;
      }
      if ((flags & 0x20) === 0) {
        current = blocks.get(str8());
      }
      const page = current!.bytes.subarray(offset, offset + PAGE);
      switch (flags & ~0x20) {
        case 0x02:
          assert.equal(u8(), 0, 'fill byte of a zero page');
          page.fill(0);
          current!.stored[offset / PAGE] = 1;
          records.zero++;
          break;
        case 0x08:
          if (current!.name === 'pc.ram') {
            normalOffsets.push(at);
          }
          bytes.copy(page, 0, at, (at += PAGE));
          current!.stored[offset / PAGE] = 2;
          records.normal++;
          break;
        case 0x40: {
          assert.equal(u8(), 1, 'XBZRLE method');
          const length = be16();
          applyXbzrle(page, bytes.subarray(at, (at += length)));
          current!.stored[offset / PAGE] = 2;
          records.xbzrle++;
          break;
        }
        default:
          assert.fail(`record flags ${flags.toString(16)} at ${at - 8}`);
      }
    }
  };

  assert.equal(text(4), 'QEVM');
  assert.equal(be32(), 3);
  let ramSection = -1;
  for (let type = u8(); type !== 0x00; type = u8()) {
    if (type === 0x07) {
      configuration();
    } else if (type === 0x08) {
      commands.push(be16());
      const length = be16();
      at += length;
    } else {
      const section = be32();
      if (type === 0x02 || type === 0x03) {
        assert.equal(section, ramSection);
        ramBody();
      } else {
        assert.ok(type === 0x01 || type === 0x04, `element ${type} at ${at - 5}`);
        const name = str8();
        const instance = be32();
        const version = be32();
        if (type === 0x01) {
          assert.equal(name, 'ram');
          ramSection = section;
          ramBody();
        } else {
          const device = devices.find((entry) => entry.name === name && entry.instance_id === instance);
          assert.ok(device, `${name} is described`);
          sections.push({ section, name, instance, version, offset: at, bytes: bodyBytes(device) });
          at += bodyBytes(device);
        }
      }
      assert.equal(u8(), 0x7e, `footer at ${at - 1}`);
      assert.equal(be32(), section);
    }
  }
  assert.equal(sections.length, devices.length, 'every described device has a section');
  return { machine, capabilities, blocks, sections, commands, records, normalOffsets };
};

export const sha256 = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex');
