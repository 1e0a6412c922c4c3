// A switch to postcopy as the reader sees it: what it takes, byte by byte and in one piece, and what it refuses.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { randomChoices } from '../../../test/random.js';
import { patternPage, StreamBuilder, testDevice } from '../../../test/streams.js';
import { RamferryError } from '../../memory/errors.js';
import { ByteWriter } from '../byte-writer.js';
import { Command, ElementType } from './constants.js';
import { buildDeviceTail } from './device-tail.js';
import {
  askReceivedBitmap,
  DiscardWriter,
  postcopyAdvise,
  postcopyPackage,
  postcopyResume,
} from './postcopy-commands.js';
import { StreamReader, type StreamReaderOptions } from './read.js';
import type { StreamHandler } from './stream-handler.js';
import { command, normalRecord, ping, ramBodyEnd, ramPart } from './write.js';

const PAGE = 4096;
const BLOCKS = [
  { name: 'pc.ram', usedLength: 8 * PAGE },
  { name: 'vga.vram', usedLength: 2 * PAGE },
];
const devices = [testDevice('timer', 24), testDevice('cpu', 500)];
const open = command(Command.OPEN_RETURN_PATH);

const discard = (name: string, start: number, length: number): Uint8Array => {
  const writer = new DiscardWriter(name);
  writer.add(start, length);
  return writer.finish();
};

/** Notes what it is told. */
class Notes implements StreamHandler {
  readonly said: string[] = [];
  sections: Uint8Array | undefined;
  readonly postcopy = {
    advise: () => this.#say('advise'),
    discard: ({ name }: { name: string }, start: number, length: number) =>
      this.#say(`discard ${name} ${start / PAGE} ${length / PAGE}`),
    run: (
      { devices: found, tail }: { devices: readonly { name: string; bytes: number }[]; tail: { sections: Uint8Array } },
      pings: readonly number[],
    ) => {
      this.sections = tail.sections;
      this.#say(`run ${found.map(({ name, bytes }) => `${name}:${bytes}`).join()} pings ${pings.join()}`);
    },
    askReceived: ({ name }: { name: string }) => this.#say(`received? ${name}`),
    resume: () => this.#say('resume'),
  };
  ramSetup(): void {}
  zeroPage({ name }: { name: string }, page: number): void {
    this.#say(`zero ${name} ${page}`);
  }
  page({ name }: { name: string }, page: number): void {
    this.#say(`page ${name} ${page}`);
  }
  xbzrlePage(): void {}
  end(): void {
    this.#say('end');
  }
  #say(what: string): void {
    this.said.push(what);
  }
}

const start = (): StreamBuilder =>
  new StreamBuilder().header().raw(open).raw(postcopyAdvise(BLOCKS, PAGE)).ramStart(BLOCKS);

const switched = (): StreamBuilder =>
  start()
    .part([{ block: 'pc.ram', page: 1, kind: 'normal', content: patternPage(1) }])
    .raw(discard('pc.ram', PAGE, 2 * PAGE))
    .raw(ping(2))
    .raw(postcopyPackage(buildDeviceTail(devices).sections));

const read = (
  bytes: Uint8Array,
  pieceBytes = bytes.length,
  options: StreamReaderOptions = {},
): [StreamReader, Notes] => {
  const notes = new Notes();
  const reader = new StreamReader(notes, options);
  let held = new Uint8Array();
  for (let at = 0; at < bytes.length; at += pieceBytes) {
    held = Buffer.concat([held, bytes.subarray(at, at + pieceBytes)]);
    held = held.subarray(reader.push(held));
  }
  return [reader, notes];
};

test('advised, discarded, packaged, and pages until EOF, in pieces of any size', () => {
  const { bytes } = switched()
    .raw(ping(4))
    .end([{ block: 'vga.vram', page: 1, kind: 'zero' }])
    .raw(Uint8Array.of(ElementType.EOF));
  for (const pieceBytes of [1, 7, 1000, bytes.length]) {
    const [reader, notes] = read(bytes, pieceBytes);
    assert.deepEqual(notes.said, [
      'advise',
      'page pc.ram 1',
      'discard pc.ram 1 2',
      'run timer:24,cpu:500 pings 3',
      'zero vga.vram 1',
      'end',
    ]);
    assert.deepEqual(notes.sections, buildDeviceTail(devices).sections);
    assert.ok(reader.done);
  }
});

// RC-11
test('a new connection begins with questions, forgets what was half read, and names its blocks', () => {
  const half = Buffer.concat([switched().part([]).bytes, ramPart(ElementType.SECTION_PART, 1), Buffer.alloc(5)]);
  const [reader, notes] = read(half);
  notes.said.length = 0;
  reader.resume();
  const questions = Buffer.concat([askReceivedBitmap('pc.ram'), askReceivedBitmap('vga.vram'), postcopyResume()]);
  assert.equal(reader.push(questions), questions.length);
  assert.deepEqual(notes.said, ['received? pc.ram', 'received? vga.vram', 'resume']);
  const nameless = new ByteWriter().bytes(ramPart(ElementType.SECTION_PART, 1));
  normalRecord(nameless, 0, patternPage(0));
  assert.throws(() => reader.push(nameless.bytes(ramBodyEnd(1)).copy()), { code: 'NO_CURRENT_BLOCK' });
});

test('what makes no sense is refused', () => {
  const section = buildDeviceTail(devices).sections;
  const packaged = (bytes: number): Uint8Array => command(Command.PACKAGED, new ByteWriter().be32(bytes).copy());
  const cases: [string, string, StreamBuilder][] = [
    [
      'announced twice',
      'POSTCOPY_ORDER',
      new StreamBuilder().header().raw(postcopyAdvise(BLOCKS, PAGE)).raw(postcopyAdvise(BLOCKS, PAGE)),
    ],
    [
      'announced behind RAM',
      'POSTCOPY_ORDER',
      new StreamBuilder().header().ramStart(BLOCKS).raw(postcopyAdvise(BLOCKS, PAGE)),
    ],
    [
      'an announcement of something else',
      'COMMAND_LENGTH',
      new StreamBuilder().header().raw(command(Command.POSTCOPY_ADVISE)),
    ],
    ['unannounced', 'POSTCOPY_ORDER', new StreamBuilder().header().raw(open).ramStart(BLOCKS).raw(packaged(10))],
    [
      'a discard before RAM',
      'POSTCOPY_ORDER',
      new StreamBuilder()
        .header()
        .raw(postcopyAdvise(BLOCKS, PAGE))
        .raw(discard('pc.ram', 0, PAGE)),
    ],
    [
      'no return path',
      'POSTCOPY_WITHOUT_RETURN_PATH',
      new StreamBuilder().header().raw(postcopyAdvise(BLOCKS, PAGE)).ramStart(BLOCKS).raw(packaged(10)),
    ],
    ['half a page discarded', 'DISCARD_RANGE', start().raw(discard('pc.ram', 0, 100))],
    ['more than there is', 'DISCARD_RANGE', start().raw(discard('vga.vram', PAGE, 2 * PAGE))],
    ['an unknown block', 'UNKNOWN_RAM_BLOCK', start().raw(discard('nvram', 0, PAGE))],
    [
      'no ranges',
      'COMMAND_LENGTH',
      start().raw(command(Command.POSTCOPY_RAM_DISCARD, new ByteWriter().u8(0).str8('pc.ram').u8(0).copy())),
    ],
    [
      'another version',
      'DISCARD_VERSION',
      start().raw(
        command(Command.POSTCOPY_RAM_DISCARD, new ByteWriter().u8(1).str8('pc.ram').u8(0).be64(0).be64(PAGE).copy()),
      ),
    ],
    ['an endless package', 'DEVICE_STATE_TOO_LARGE', start().raw(packaged(0xffffffff))],
    ['an empty package', 'POSTCOPY_PACKAGE', start().raw(packaged(0))],
    ['a package that never runs', 'POSTCOPY_PACKAGE', start().raw(packaged(section.length)).raw(section)],
    ['half a device', 'STREAM_INCOMPLETE', start().raw(postcopyPackage(section.subarray(0, 3)))],
    ['devices behind the package', 'SECTION_ORDER', switched().raw(section)],
    ['a second package', 'POSTCOPY_ORDER', switched().raw(postcopyPackage(section))],
    ['questions without a break', 'POSTCOPY_ORDER', switched().raw(askReceivedBitmap('pc.ram'))],
    ['the end before that of RAM', 'STREAM_INCOMPLETE', switched().raw(Uint8Array.of(ElementType.EOF))],
  ];
  for (const [what, code, { bytes }] of cases) {
    assert.throws(() => read(bytes), { code }, what);
  }
});

test('a question is answered once', () => {
  const [reader] = read(switched().bytes);
  reader.resume();
  reader.push(askReceivedBitmap('pc.ram'));
  assert.throws(() => reader.push(askReceivedBitmap('pc.ram')), { code: 'POSTCOPY_ORDER', value: 'pc.ram' });
});

test('whatever is damaged, the reader says so or reads on', () => {
  const next = randomChoices(7);
  const { bytes } = switched()
    .raw(ping(4))
    .end([{ block: 'vga.vram', page: 1, kind: 'zero' }])
    .raw(Uint8Array.of(ElementType.EOF));
  const questions = Buffer.concat([askReceivedBitmap('pc.ram'), askReceivedBitmap('vga.vram'), postcopyResume()]);
  const damage = (original: Uint8Array): Uint8Array => {
    const copy = original.slice();
    for (let count = next(3); count >= 0; count -= 1) {
      copy[next(copy.length)] = next(256);
    }
    return copy;
  };
  let refused = 0;
  for (let round = 0; round < 3000; round += 1) {
    try {
      // Half of the damage where the commands are, not in a page.
      const [reader, notes] = read(
        round % 2 === 0 ? damage(bytes) : Buffer.concat([bytes.subarray(0, 4500), damage(bytes.subarray(4500))]),
      );
      if (!reader.done && notes.sections !== undefined) {
        reader.resume();
        reader.push(damage(questions));
      }
    } catch (error) {
      assert.ok(error instanceof RamferryError, String(error));
      refused += 1;
    }
  }
  assert.ok(refused > 300, `${refused} refused`);
});
