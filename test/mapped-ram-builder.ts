// mapped-ram files for tests, in memory, together with the memory that whoever loads them must end up with.

import { type MappedRamLayout, mappedRamStart } from '../src/format/mapped-ram/layout.js';
import { buildDeviceTail, type DeviceTail } from '../src/format/stream/device-tail.js';
import * as write from '../src/format/stream/write.js';
import { fileOffset } from '../src/memory/units.js';
import { patternPage, testConfiguration, testDevice } from './streams.js';

export interface TestBlock {
  readonly name: string;
  readonly pages: number;
  /** Pages whose bit is set; their content is `patternPage(page)`. */
  readonly present?: readonly number[];
  /** Pages that hold bytes although their bit is clear. */
  readonly stale?: readonly number[];
}

export interface TestFile {
  readonly bytes: Uint8Array;
  readonly memory: ReadonlyMap<string, Uint8Array>;
  readonly layouts: readonly MappedRamLayout[];
  /** Where the RAM section ends, and what follows begins. */
  readonly streamOffset: number;
  readonly tail: DeviceTail;
}

export interface TestFileOptions {
  /** File position of the stream; what is before it is 0xee. */
  readonly start?: number;
  readonly pageSize?: number;
  /** Whether RAM has an END section; bitmaps are written in any case. */
  readonly end?: boolean;
  /** Whether the bitmaps are written. */
  readonly bitmaps?: boolean;
}

export const mappedRamFile = (
  blocks: readonly TestBlock[],
  { start = 0, pageSize = 4096, end = true, bitmaps = true }: TestFileOptions = {},
): TestFile => {
  const tail = buildDeviceTail([testDevice('timer', 24), testDevice('cpu', 5000)]);
  const targetPageBits = pageSize === 4096 ? undefined : Math.log2(pageSize);
  const head = write.streamHeader(testConfiguration({ capabilities: ['mapped-ram'], targetPageBits }));
  const listed = blocks.map(({ name, pages }) => ({ name, usedLength: pages * pageSize }));
  const section = mappedRamStart(fileOffset(start + head.length), 1, listed, pageSize);
  const rest = [write.ramPart(2, 1), write.ramBodyEnd(1)];
  if (end) {
    rest.push(write.command(11), write.ramPart(3, 1), write.ramBodyEnd(1));
  }
  rest.push(tail.sections, write.streamEnd(tail.description));
  const bytes = new Uint8Array(section.end + rest.reduce((sum, { length }) => sum + length, 0));
  bytes.fill(0xee, 0, start);
  bytes.set(head, start);
  for (const piece of section.pieces) {
    bytes.set(piece.bytes, piece.position);
  }
  let at: number = section.end;
  for (const piece of rest) {
    bytes.set(piece, at);
    at += piece.length;
  }
  const memory = new Map<string, Uint8Array>();
  blocks.forEach(({ name, pages, present = [], stale = [] }, index) => {
    const { bitmapOffset, pagesOffset } = section.layouts[index]!;
    const content = new Uint8Array(pages * pageSize);
    for (const page of present) {
      content.set(patternPage(page, pageSize), page * pageSize);
      bytes.set(patternPage(page, pageSize), pagesOffset + page * pageSize);
      if (bitmaps) {
        bytes[bitmapOffset + Math.floor(page / 8)]! |= 1 << (page % 8);
      }
    }
    for (const page of stale) {
      bytes.set(patternPage(page, pageSize), pagesOffset + page * pageSize);
    }
    memory.set(name, content);
  });
  return { bytes, memory, layouts: section.layouts, streamOffset: section.end, tail };
};

/** Three blocks with runs, single pages, stale pages, and nothing. */
export const richMappedRamFile = (options: TestFileOptions = {}): TestFile =>
  mappedRamFile(
    [
      { name: 'pc.ram', pages: 300, present: [0, 1, 2, 31, 32, 63, 64, 65, 66, 200, 299], stale: [5, 100] },
      { name: '/rom@etc/acpi/tables', pages: 1, present: [0] },
      { name: '0000:00:02.0/vga.vram', pages: 65, stale: [64] },
    ],
    options,
  );

/** The header of block `index` of a file, to be changed: its offset in `bytes`. */
export const headerOffset = ({ layouts }: TestFile, index: number): number => layouts[index]!.bitmapOffset - 28;
