// `search` from outside the process.

import assert from 'node:assert/strict';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { after, test } from 'node:test';
import { runCommand } from '../../test/command.js';
import { describedTail } from '../../test/described-stream.js';
import { mappedRamFile } from '../../test/mapped-ram-builder.js';
import { clockDevice } from '../../test/pc-memory.js';
import { patternPage, StreamBuilder, type TestRecord } from '../../test/streams.js';

const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'ramferry-search-'));
after(() => fs.rmSync(folder, { recursive: true }));

const MIB = 2 ** 20;
const PAGE = 4096;
const GIB = 2 ** 30;

const save = (name: string, bytes: Uint8Array): string => {
  const file = path.join(folder, name);
  fs.writeFileSync(file, bytes);
  return file;
};

const page = (
  block: string,
  index: number,
  ...texts: readonly [at: number, text: string | Uint8Array][]
): TestRecord => {
  const content = new Uint8Array(PAGE);
  for (const [at, text] of texts) {
    content.set(Buffer.from(text), at);
  }
  return { block, page: index, kind: 'normal', content };
};

/** 48 MiB of RAM, of which the last 16 lie from 4 GiB on, in a stream with five pages. */
const pc = save(
  'pc.mig',
  new StreamBuilder()
    .header({ machine: 'pc-q35-10.0' })
    .ramStart([
      { name: 'pc.ram', usedLength: 48 * MIB },
      { name: 'vga.vram', usedLength: 16 * MIB },
    ])
    .end([
      page('pc.ram', 16, [4090, 'Linux ']),
      page('pc.ram', 17, [0, 'version 6.1'], [100, Buffer.from('password', 'utf16le')]),
      page('pc.ram', (32 * MIB) / PAGE, [0, 'Linux version 9']),
      page('vga.vram', 1, [16, 'Linux version 7\x1b[2J']),
      { block: 'pc.ram', page: 20, kind: 'zero' },
    ])
    .tail(describedTail([clockDevice(32 * MIB, 16 * MIB)])).bytes,
);

interface Answer {
  readonly status: number | null;
  readonly document: {
    readonly count: number;
    readonly searchedBytes: number;
    readonly notSearched: readonly string[];
    readonly noAddresses?: string;
    readonly matches: readonly {
      readonly block: string;
      readonly offset: number;
      readonly address?: number;
      readonly encoding?: string;
      readonly hex: string;
    }[];
    readonly error?: { readonly code: string; readonly file?: string };
  };
}

const ask = async (...args: readonly string[]): Promise<Answer> => {
  const { status, stdout } = await runCommand('search', ...args, '--json');
  return { status, document: JSON.parse(stdout) as Answer['document'] };
};

test('addresses, across pages and above 4 GiB; memory of a device has none', async () => {
  const { status, document } = await ask(pc, 'Linux version');
  assert.equal(status, 0);
  assert.deepEqual([document.count, document.searchedBytes], [3, 4 * PAGE]);
  assert.deepEqual(
    document.matches.map(({ block, offset, address, encoding }) => ({ block, offset, address, encoding })),
    [
      { block: 'pc.ram', offset: 0x10ffa, address: 0x10ffa, encoding: 'utf-8' },
      { block: 'pc.ram', offset: 32 * MIB, address: 4 * GIB, encoding: 'utf-8' },
      { block: 'vga.vram', offset: 0x1010, address: undefined, encoding: 'utf-8' },
    ],
  );
});

test('the text: a line for each match, nothing in it that a terminal obeys', async () => {
  const { status, stdout, stderr } = await runCommand('search', pc, 'Linux version');
  assert.deepEqual([status, stderr], [0, '']);
  assert.match(stdout, /^0x000010ffa {2}pc\.ram\+0x10ffa {4}utf-8 {2}\.{16}Linux version 6\.1/m);
  assert.match(stdout, /^0x100000000 {2}pc\.ram\+0x2000000 {2}utf-8 {2}Linux version 9/m);
  assert.match(stdout, /^- {12}vga\.vram\+0x1010 /m);
  assert.match(stdout, /^3 matches found in 16\.0 KiB of content\.$/m);
  assert.ok(!stdout.includes('\x1b'));
});

test('other encodings, letters of either case, bytes, one block, some of many', async () => {
  const matches = async (...args: readonly string[]): Promise<(string | number)[][]> =>
    (await ask(...args)).document.matches.map(({ offset, encoding, hex }) => [offset, encoding ?? '', hex.slice(0, 8)]);
  assert.deepEqual(await matches(pc, 'PassWord', '-i'), [[0x11064, 'utf-16le', '70006100']]);
  assert.deepEqual(await matches(pc, 'PassWord'), []);
  assert.deepEqual(await matches(pc, 'password', '--encoding', 'utf-8', 'utf-16be'), [
    [0x11063, 'utf-16be', '00700061'],
  ]);
  assert.deepEqual(await matches(pc, '--hex', '36 2e ?1', '--limit', '1'), [[0x11008, '', '362e31']]);
  assert.deepEqual(await matches(pc, 'version', '--block', 'vga.vram'), [[0x1016, 'utf-8', '76657273']]);
  const limited = await ask(pc, 'version', '--limit', '1');
  assert.deepEqual([limited.document.count, limited.document.matches.length], [3, 1]);
  assert.match((await runCommand('search', pc, 'version', '--limit', '1')).stdout, /^… and 2 more/m);
});

test('regular expressions, across pages', async () => {
  const matches = async (...args: readonly string[]): Promise<[number, string][]> =>
    (await ask(pc, '-e', ...args)).document.matches.map(({ offset, hex }) => [
      offset,
      Buffer.from(hex, 'hex').toString(),
    ]);
  assert.deepEqual(await matches(String.raw`\w+ version [0-9](\.[0-9])?`), [
    [0x10ffa, 'Linux version 6.1'],
    [32 * MIB, 'Linux version 9'],
    [0x1010, 'Linux version 7'],
  ]);
  assert.deepEqual(await matches('LINUX V[a-z]+', '-i', '--block', 'vga.vram'), [[0x1010, 'Linux version']]);
});

test('nothing found is an answer', async () => {
  const { status, stdout } = await runCommand('search', pc, 'no such text');
  assert.deepEqual([status, stdout], [0, 'Nothing found in 16.0 KiB of content.\n']);
});

test('a mapped-ram file, of a machine whose addresses are not known; and of one block, they are given', async () => {
  const { bytes } = mappedRamFile([{ name: 'ram', pages: 300, present: [3, 4, 200] }]);
  const file = save('mapped', bytes);
  const needle = Buffer.from(patternPage(4).subarray(8, 24)).toString('hex');
  const { document } = await ask(file, '--hex', needle);
  assert.deepEqual(
    document.matches.map(({ block, offset }) => [block, offset]),
    [['ram', 4 * PAGE + 8]],
  );
  assert.match(document.noAddresses ?? '', /\.$/);
  assert.match((await runCommand('search', file, '--hex', needle)).stdout, /^warning: No addresses are known: /m);
});

test('memory that the file leaves out is said, with status 1', async () => {
  const capabilities = ['x-ignore-shared'];
  const shared = new StreamBuilder()
    .header({ capabilities })
    .ramStart(
      [
        { name: 'mem', usedLength: 16 * MIB, address: 0 },
        { name: 'pc.rom', usedLength: 64 * 1024, address: 0xc0000 },
      ],
      capabilities,
    )
    .end([page('pc.rom', 0, [0, 'needle'])])
    .tail(describedTail([clockDevice(16 * MIB)])).bytes;
  const { status, document } = await ask(save('shared.mig', shared), 'needle');
  assert.deepEqual([status, document.error?.code, document.count], [1, 'MEMORY_ELSEWHERE', 1]);
  assert.deepEqual(document.notSearched, ['mem']);
});

test('wrong usage has a code', async () => {
  const failure = async (...args: readonly string[]): Promise<[number | null, string | undefined]> => {
    const { status, document } = await ask(...args);
    return [status, document.error?.code];
  };
  assert.deepEqual(await failure(pc, '--hex', 'xyz'), [2, 'INVALID_PATTERN']);
  assert.deepEqual(await failure(pc, '--hex', '00'), [2, 'PATTERN_MATCHES_ZEROS']);
  assert.deepEqual(await failure(pc, '--hex', '01', '-i'), [2, 'OPTION_CONFLICT']);
  assert.deepEqual(await failure(pc, '--hex', '01', '--regex'), [2, 'OPTION_CONFLICT']);
  assert.deepEqual(await failure(pc, '--regex', '(x'), [2, 'INVALID_REGEX']);
  assert.deepEqual(await failure(pc, '--regex', 'x*'), [2, 'INVALID_REGEX']);
  assert.deepEqual(await failure(pc, 'x', '--block', 'dimm0'), [2, 'NO_SUCH_BLOCK']);
  assert.deepEqual(await failure(pc, 'x', '--at', 'pc.rom=0'), [2, 'BLOCK_PLACE']);
  assert.equal((await failure(path.join(folder, 'none'), 'x'))[0], 1);
});

test('a file whose device state is damaged is searched, without addresses', async () => {
  const whole = fs.readFileSync(pc);
  const cut = save('cut.mig', whole.subarray(0, whole.indexOf('mc146818rtc') + 40));
  // A clock that is not as long as the description says of its fields.
  const wrong = save('wrong.mig', Buffer.from(whole.toString('latin1').replace('"size":128', '"size":127'), 'latin1'));
  for (const file of [cut, wrong]) {
    const { status, stdout } = await runCommand('search', file, 'version', '--json');
    assert.equal(status, 0, file);
    const { count, matches, noAddresses } = JSON.parse(stdout) as {
      count: number;
      matches: { address?: number }[];
      noAddresses?: string;
    };
    assert.equal(count, 3);
    assert.ok(matches.every(({ address }) => address === undefined) && noAddresses !== undefined);
  }
});
