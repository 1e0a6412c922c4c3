// A handover of a guest that is made up, before the real one: while it happens the guest stands still, and code that runs
// for the first time takes 50 ms longer (rehearsal.ts).

import type { PositionedFile } from '../channel/positioned-file.js';
import { MappedRamTarget } from '../destination/mapped-ram-target.js';
import { openSnapshot } from '../format/open-snapshot.js';
import { buildDeviceTail } from '../format/stream/device-tail.js';
import { fileOffset, pageIndex } from '../memory/units.js';
import { SnapshotGuest } from '../memory-file/snapshot-guest.js';
import { rehearsePostcopy } from './rehearsal.js';

const PAGE = 4096;
const PAGES = 512;

/** As many as a large machine has. */
const DEVICES = 200;

/** Twice: the compiler wants to see some things again. */
const TIMES = 2;

export const rehearseRelay = async (): Promise<void> => {
  for (let time = 0; time < TIMES; time += 1) {
    await rehearsePostcopy(savedGuest());
  }
};

const savedGuest = (): SnapshotGuest => {
  const bytes = new Uint8Array(2 ** 21 + (PAGES + DEVICES) * PAGE);
  const target = new MappedRamTarget(fileIn(bytes));
  const usedLength = PAGES * PAGE;
  const block = { index: 0, name: 'pc.ram', usedLength, address: undefined, lengthOffset: 0 };
  target.configuration({ machine: 'none', targetPageBits: undefined, capabilities: [], uuid: undefined });
  target.ramSetup({ sectionId: 1, targetPageSize: PAGE, totalBytes: usedLength, blocks: [block] });
  const content = new Uint8Array(PAGE).fill(1);
  for (let page = 0; page < PAGES; page += 1) {
    target.page(block, pageIndex(page), content, 0);
  }
  void target.finish();
  const devices = Array.from({ length: DEVICES }, (_, instance) => ({
    name: 'x',
    instance,
    version: 1,
    body: content,
  }));
  target.writeDevices(buildDeviceTail(devices));
  const readAt = (position: number, into: Uint8Array): void =>
    into.set(bytes.subarray(position, position + into.length));
  return new SnapshotGuest(openSnapshot(readAt, target.fileBytes));
};

/** Only what a target does with a file. */
const fileIn = (bytes: Uint8Array): PositionedFile => ({
  name: 'rehearsal',
  start: fileOffset(0),
  pendingBytes: 0,
  write: (given, position) => bytes.set(given, position),
  writeOnce: (given, position) => bytes.set(given, position),
  writePages: (given, at, length, position) => bytes.set(given.subarray(at, at + length), position),
  barrier: () => {},
  read: () => {},
  punchHole: () => {},
  commit: async () => {},
  abort: () => {},
});
