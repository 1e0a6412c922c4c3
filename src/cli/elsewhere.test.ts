// Memory that x-ignore-shared leaves out is known to every verb, and nowhere taken for zero.

import assert from 'node:assert/strict';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { after, test } from 'node:test';
import { runCommand } from '../../test/command.js';
import { describedTail } from '../../test/described-stream.js';
import { clockDevice } from '../../test/pc-memory.js';
import { patternPage, StreamBuilder } from '../../test/streams.js';
import { pageIndex } from '../memory/units.js';
import { openSnapshotFile } from '../memory-file/open-snapshot-file-node.js';
import { SnapshotGuest } from '../memory-file/snapshot-guest.js';

const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'ramferry-elsewhere-'));
after(() => fs.rmSync(folder, { recursive: true }));

const MIB = 2 ** 20;
const at = (name: string): string => path.join(folder, name);

/** A guest whose RAM is shared, with a ROM that is not. */
const save = (name: string, capabilities: readonly string[]): string => {
  const blocks = [
    { name: 'mem', usedLength: 16 * MIB, address: 0 },
    { name: 'pc.rom', usedLength: 128 * 1024, address: 0xc0000 },
  ];
  const stream = new StreamBuilder()
    .header({ capabilities: [...capabilities] })
    .ramStart(blocks, capabilities)
    .end(
      Array.from({ length: 32 }, (_, page) => ({
        block: 'pc.rom',
        page,
        kind: 'normal' as const,
        content: patternPage(page),
      })),
    )
    .tail(describedTail([clockDevice(16 * MIB)]));
  fs.writeFileSync(at(name), stream.bytes);
  return at(name);
};

const shared = save('shared.mig', ['x-ignore-shared']);
const plain = save('plain.mig', []);

interface Answer {
  readonly status: number | null;
  readonly document: {
    readonly error?: { readonly code: string; readonly message: string };
    readonly blocks: readonly { readonly name: string; readonly sha256?: string; readonly elsewhere?: boolean }[];
    readonly warnings: readonly string[];
    readonly findings: readonly { readonly code: string; readonly severity: string; readonly message: string }[];
    readonly elsewhere: readonly string[];
    readonly equal: boolean;
  };
}

const run = async (...args: readonly string[]): Promise<Answer> => {
  const { status, stdout } = await runCommand(...args, '--json');
  return { status, document: JSON.parse(stdout) as Answer['document'] };
};

test('convert refuses what it would write zeros for, by name, and writes what is there', async () => {
  for (const args of [['raw'], ['raw', '--block', 'mem'], ['elf'], ['elf', '--block', 'mem'], ['stream']]) {
    const { status, document } = await run('convert', shared, at('out'), '--to', ...args);
    assert.deepEqual([status, document.error?.code], [1, 'MEMORY_ELSEWHERE'], args.join(' '));
    assert.match(document.error!.message, /RAM block "mem" is not in the file/);
    assert.ok(!fs.existsSync(at('out')), args.join(' '));
  }
  assert.notEqual((await run('convert', shared, at('out'), '--to', 'mapped-ram')).status, 0);
  assert.ok(!fs.existsSync(at('out')));
  assert.equal((await run('convert', shared, at('rom'), '--to', 'raw', '--block', 'pc.rom')).status, 0);
  assert.deepEqual(fs.readFileSync(at('rom')).subarray(0, 4096), Buffer.from(patternPage(0)));
});

test('inspect and verify say it, and no digest is made of it', async () => {
  const { status, document } = await run('inspect', shared, '--digest');
  assert.equal(status, 0);
  assert.deepEqual(
    document.blocks.map(({ name, sha256, elsewhere }) => [name, sha256 === undefined, elsewhere]),
    [
      ['mem', true, true],
      ['pc.rom', false, undefined],
    ],
  );
  assert.match(document.warnings.join(), /"mem" is not in the file/);
  const verified = await run('verify', shared);
  assert.equal(verified.status, 0);
  assert.ok(verified.document.findings.some(({ message }) => message.includes('"mem" is not in the file')));
  const other = await run('inspect', plain, '--digest');
  assert.ok(other.document.blocks.every(({ sha256, elsewhere }) => sha256 !== undefined && elsewhere === undefined));
});

test('diff compares the rest, and does not call the two equal', async () => {
  for (const [a, b] of [
    [shared, shared],
    [shared, plain],
    [plain, shared],
  ] as const) {
    const { status, document } = await run('diff', a, b);
    assert.deepEqual([status, document.equal, document.elsewhere], [1, false, ['mem']]);
    assert.equal(document.error?.code, 'MEMORY_ELSEWHERE');
    assert.deepEqual(
      document.blocks.map(({ name }) => name),
      ['pc.rom'],
    );
  }
  assert.equal((await run('diff', plain, plain)).document.equal, true);
});

test('the library refuses to read it, and to send it on', async () => {
  const { snapshot, close } = await openSnapshotFile(shared);
  try {
    const page = new Uint8Array(4096);
    assert.throws(() => snapshot.readPages(0, pageIndex(5), 1, page), { code: 'MEMORY_ELSEWHERE', value: 'mem' });
    snapshot.readPages(1, pageIndex(5), 1, page);
    assert.deepEqual(page, patternPage(5));
    assert.throws(() => new SnapshotGuest(snapshot, shared), { code: 'MEMORY_ELSEWHERE', file: shared });
  } finally {
    close();
  }
});
