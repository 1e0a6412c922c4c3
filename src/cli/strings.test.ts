// `strings` from outside the process: what it prints, where nothing is cut, and what it needs.

import assert from 'node:assert/strict';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { after, test } from 'node:test';
import { bin, RunningCommand, runCommand } from '../../test/command.js';
import { clockDevice, pcStream } from '../../test/pc-memory.js';
import { type ToyBlock, toySnapshot } from '../../test/toy-snapshot.js';
import { MemorySearch } from '../format/search/memory-search.js';
import { SearchMemory } from '../format/search/search-memory.js';
import { memoryStretches } from '../format/search/stretches.js';
import { LONGEST_TEXT, TextMatcher, type TextWidth } from '../format/search/text-matcher.js';

const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'ramferry-strings-'));
after(() => fs.rmSync(folder, { recursive: true }));

const MIB = 2 ** 20;
const PAGE = 4096;

const content = (...texts: readonly [at: number, text: string | Uint8Array][]): Uint8Array => {
  const bytes = new Uint8Array(2 * PAGE);
  for (const [at, text] of texts) {
    bytes.set(Buffer.from(text), at);
  }
  return bytes;
};

const file = path.join(folder, 'guest.mig');
fs.writeFileSync(
  file,
  pcStream({
    blocks: [
      { name: 'pc.ram', usedLength: 48 * MIB },
      { name: 'vga.vram', usedLength: MIB },
    ],
    devices: [clockDevice(32 * MIB, 16 * MIB)],
    pages: [
      {
        block: 'pc.ram',
        offset: PAGE,
        content: content(
          [PAGE - 4, 'across pages\x1b[2J'],
          [8, 'abc'],
          [20, 'a\tb "c"'],
          [60, Buffer.from('wide text', 'utf16le')],
        ),
      },
      { block: 'pc.ram', offset: 40 * MIB, content: content([0, 'high']) },
      { block: 'vga.vram', offset: 0, content: content([1, 'screen']) },
    ],
  }),
);

test('a line for each text, with the address or the place in the block', async () => {
  const { status, stdout, stderr } = await runCommand('strings', file);
  assert.deepEqual([status, stderr], [0, '']);
  assert.equal(
    stdout,
    [
      String.raw`0x000001014  a\tb "c"`,
      '0x000001ffc  across pages',
      '0x100800000  high',
      'vga.vram+0x1  screen',
      '',
    ].join('\n'),
  );
  assert.equal((await runCommand('strings', file, '--encoding', 'utf-16le')).stdout, '0x00000103c  wide text\n');
  assert.equal((await runCommand('strings', file, '--min', '8')).stdout, '0x000001ffc  across pages\n');
  assert.equal((await runCommand('strings', file, '--block', 'vga.vram')).stdout, 'vga.vram+0x1  screen\n');
});

test('JSON is one document', async () => {
  const { status, stdout } = await runCommand('strings', file, '--json', '--min', '5');
  assert.equal(status, 0);
  assert.deepEqual(JSON.parse(stdout), {
    file,
    strings: [
      { address: 0x1014, block: 'pc.ram', offset: 0x1014, text: 'a\tb "c"' },
      { address: 0x1ffc, block: 'pc.ram', offset: 0x1ffc, text: 'across pages' },
      { block: 'vga.vram', offset: 1, text: 'screen' },
    ],
    count: 3,
    notSearched: [],
  });
  const none = await runCommand('strings', file, '--json', '--min', '500');
  assert.deepEqual(JSON.parse(none.stdout), { file, strings: [], count: 0, notSearched: [] });
  assert.equal((await runCommand('strings', file, '--min', '1')).status, 2);
});

test('a reader that goes away ends it quietly', async () => {
  const many = path.join(folder, 'many.mig');
  const text = Buffer.from('0123456\n'.repeat(MIB / 8));
  fs.writeFileSync(
    many,
    pcStream({
      blocks: [{ name: 'pc.ram', usedLength: 48 * MIB }],
      devices: [clockDevice(48 * MIB)],
      pages: [{ block: 'pc.ram', offset: MIB, content: text }],
    }),
  );
  const script = '"$0" "$1" strings "$2" | head -n 2; echo $PIPESTATUS';
  const program = ['bash', '-c', script, process.execPath, bin, many];
  const { stdout, stderr } = await new RunningCommand([], {}, { program }).ended;
  assert.deepEqual([stdout, stderr], ['0x000100000  0123456\n0x000100008  0123456\n0\n', '']);
  const all = await runCommand('strings', many);
  assert.equal(all.stdout.split('\n').length, MIB / 8 + 1);
});

const found = (blocks: readonly ToyBlock[], encoding: TextWidth, least: number): [number, number][] => {
  const pageSize = blocks[0]!.pages[0]!.length;
  const { snapshot } = toySnapshot(blocks, pageSize);
  const memory = new SearchMemory(128 * 1024);
  const places: [number, number][] = [];
  const stretches = memoryStretches(snapshot, undefined, new Set([0]));
  const search = new MemorySearch(snapshot, stretches, memory, new TextMatcher(memory, { encoding, least }), {
    limit: 1e6,
    visit: ({ offset, bytes }) => places.push([offset, bytes.length]),
  });
  while (search.step() > 0) {}
  return places;
};

test('texts across windows are whole; longer ones than any come in pieces that leave nothing out', () => {
  for (const [encoding, width] of [
    ['utf-8', 1],
    ['utf-16le', 2],
    ['utf-16be', 2],
  ] as const) {
    const expected: [number, number][] = [];
    const bytes = new Uint8Array(512 * 1024);
    const put = (at: number, characters: number): void => {
      for (let index = 0; index < characters; index += 1) {
        bytes[at + index * width + (encoding === 'utf-16be' ? 1 : 0)] = 0x61 + (index % 26);
      }
      for (let done = 0; done < characters; done += LONGEST_TEXT) {
        expected.push([at + done * width, Math.min(LONGEST_TEXT, characters - done) * width]);
      }
    };
    for (let at = 2; at < 300_000; at += 1009) {
      put(at, 100);
    }
    put(310_001, 5);
    put(320_000, 3 * LONGEST_TEXT + 700);
    const pages = Array.from({ length: bytes.length / 4096 }, (_, index) =>
      bytes.subarray(index * 4096, (index + 1) * 4096),
    );
    assert.deepEqual(found([{ name: 'a', pages }], encoding, 5), expected, encoding);
  }
});

test('memory in front of device state that is cut: its texts, by block, and a warning', async () => {
  const whole = fs.readFileSync(file);
  const cut = path.join(folder, 'cut.mig');
  fs.writeFileSync(cut, whole.subarray(0, whole.indexOf('mc146818rtc') + 40));
  const { status, stdout, stderr } = await runCommand('strings', cut, '--block', 'vga.vram');
  assert.deepEqual([status, stdout], [0, 'vga.vram+0x1  screen\n']);
  assert.match(stderr, /warning: .*The memory before it is whole; no device state is read\./);
});
