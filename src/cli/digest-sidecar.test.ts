// FILE.digest from outside the process: who writes it, and what is found with it that no check of the structure finds.

import assert from 'node:assert/strict';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { after, test } from 'node:test';
import { type CommandResult, runCommand } from '../../test/command.js';
import { patternPage, StreamBuilder, type TestRecord, testDevice } from '../../test/streams.js';

const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'ramferry-digest-'));
after(() => fs.rmSync(folder, { recursive: true }));

const at = (name: string): string => path.join(folder, name);

const MIB = 2 ** 20;
const PAGES = 3 * 256;

/** A guest of 3 MiB, every third page of which is not zero; page 0 is sent twice, page 3 became zero. */
const guest = (deviceBytes = 500, shift = 0): Uint8Array => {
  const page = (index: number, seed = index + 1 + shift): TestRecord => ({
    block: 'pc.ram',
    page: index,
    kind: 'normal',
    content: patternPage(seed),
  });
  const pages = Array.from(
    { length: PAGES },
    (_, index): TestRecord => (index % 3 === 0 ? page(index) : { block: 'pc.ram', page: index, kind: 'zero' }),
  );
  return (
    new StreamBuilder()
      .header()
      // Not in the order in which the engine has them, by size.
      .ramStart([
        { name: 'pc.rom', usedLength: 4096 },
        { name: 'pc.ram', usedLength: 3 * MIB },
      ])
      .part([{ block: 'pc.rom', page: 0, kind: 'normal', content: patternPage(9999) }, ...pages])
      .end([page(0, 7777), { block: 'pc.ram', page: 3, kind: 'zero' }])
      .devices([testDevice('cpu', deviceBytes)]).bytes
  );
};
const input = at('input.mig');
fs.writeFileSync(input, guest());

interface Verdict {
  readonly valid: boolean;
  readonly digest?: { readonly file: string; readonly checked: boolean; readonly mismatches: number };
  readonly findings: readonly {
    readonly severity: string;
    readonly code: string;
    readonly message: string;
    readonly offset?: number;
  }[];
  readonly error?: { readonly code: string; readonly message: string; readonly offset?: number; readonly file: string };
}

const verify = async (file: string): Promise<{ status: number | null; verdict: Verdict }> => {
  const { status, stdout } = await runCommand('verify', file, '--json');
  return { status, verdict: JSON.parse(stdout) as Verdict };
};

const run = async (...args: string[]): Promise<CommandResult> => {
  const result = await runCommand(...args, '--json');
  assert.equal(result.status, 0, result.stdout + result.stderr);
  return result;
};

/** The files with a sidecar, made of `input` in each way there is. */
const made: Readonly<Record<string, (out: string) => Promise<CommandResult>>> = {
  'convert to stream': (out) => run('convert', input, out, '--to', 'stream'),
  'convert to mapped-ram': (out) => run('convert', input, out, '--to', 'mapped-ram'),
  'receive to stream': (out) => run('receive', `exec:cat ${input}`, out),
  'receive to mapped-ram': (out) => run('receive', `exec:cat ${input}`, out, '--to', 'mapped-ram'),
};

const digests: string[] = [];

for (const [how, make] of Object.entries(made)) {
  test(`${how}: the file is what its digest says; one flipped byte of memory or devices is found`, async () => {
    const out = at(how.replaceAll(' ', '-'));
    const { stdout } = await make(out);
    assert.equal((JSON.parse(stdout) as { digest: string }).digest, `${out}.digest`);
    const sidecar = JSON.parse(fs.readFileSync(`${out}.digest`, 'utf8')) as Record<string, unknown>;
    const blocks = (sidecar['blocks'] as { name: string }[]).sort((a, b) => (a.name < b.name ? -1 : 1));
    digests.push(JSON.stringify([blocks, sidecar['devices']]));
    const whole = await verify(out);
    assert.deepEqual(
      [whole.status, whole.verdict.digest],
      [0, { file: `${out}.digest`, checked: true, mismatches: 0 }],
    );

    const bytes = fs.readFileSync(out);
    const flip = async (position: number): Promise<{ status: number | null; verdict: Verdict }> => {
      bytes[position]! ^= 0x10;
      fs.writeFileSync(out, bytes);
      bytes[position]! ^= 0x10;
      return verify(out);
    };
    // Page 600 is in the third MiB.
    const page = bytes.indexOf(Buffer.from(patternPage(601)));
    const memory = await flip(page + 1234);
    assert.deepEqual(
      [memory.status, memory.verdict.valid, memory.verdict.error?.code, memory.verdict.digest?.mismatches],
      [1, false, 'DIGEST_MISMATCH', 1],
    );
    assert.match(memory.verdict.error!.message, /^MiB 2 of RAM block "pc\.ram" \(from offset 0x200000 in it/);
    if (how.endsWith('mapped-ram')) {
      assert.equal(memory.verdict.error!.offset, page - 600 * 4096 + 2 * MIB);
      // A cleared bit of the bitmap: a page that is gone. The bitmap is the first 8 bytes that are not zero behind the head.
      const bitmap = bytes.indexOf(Buffer.from([0x41, 0x92, 0x24, 0x49]));
      assert.ok(bitmap > 0);
      const lost = await flip(bitmap + 1);
      assert.deepEqual([lost.status, lost.verdict.error?.code], [1, 'DIGEST_MISMATCH']);
      assert.match(lost.verdict.error!.message, /^MiB 0 /);
    }
    const devices = await flip(bytes.indexOf(Buffer.from(testDevice('cpu', 500).body)) + 77);
    assert.deepEqual([devices.status, devices.verdict.error?.code], [1, 'DIGEST_MISMATCH']);
    assert.match(devices.verdict.error!.message, /^The device state/);

    // The same file in the other way of writing it: its digest is looked for, too.
    const named = await runCommand('send', `file:${out},offset=0`, 'exec:cat > /dev/null', '--json');
    assert.equal((JSON.parse(named.stdout) as { error?: { code: string } }).error?.code, 'DIGEST_MISMATCH');
    const sent = await runCommand('send', out, 'exec:cat > /dev/null', '--json');
    assert.deepEqual([sent.status, (JSON.parse(sent.stdout) as Verdict).error?.code], [1, 'DIGEST_MISMATCH']);
    assert.equal((await runCommand('send', out, 'exec:cat > /dev/null', '--no-digest')).status, 0);
    fs.writeFileSync(out, bytes);
    assert.equal((await runCommand('send', out, 'exec:cat > /dev/null')).status, 0);
  });
}

test('the same guest has the same digest, whoever wrote it and in whatever format', () => {
  assert.equal(digests.length, 4);
  assert.equal(new Set(digests).size, 1);
});

// qemu-lab.md F: what QEMU loads without a word. The offset is that of the MiB in the file.
test('64 pages with 8 flipped bytes each, one bit of a bitmap, one byte of device state', async () => {
  const out = at('damaged');
  await run('convert', input, out, '--to', 'mapped-ram');
  const whole = fs.readFileSync(out);
  const pagesOffset = whole.indexOf(Buffer.from(patternPage(7777)));
  const damages: Readonly<Record<string, (bytes: Buffer) => number[]>> = {
    'pages of every MiB': (bytes) => {
      for (let damaged = 0; damaged < 64; damaged += 1) {
        const page = pagesOffset + (12 * damaged + 6) * 4096;
        for (let index = 0; index < 8; index += 1) {
          bytes[page + index * 500 + damaged]! ^= 1 << index;
        }
      }
      return [0, 1, 2].map((mebibyte) => pagesOffset + mebibyte * MIB);
    },
    'a bit': (bytes) => {
      // Page 600, in the third MiB.
      bytes[bytes.indexOf(Buffer.from([0x41, 0x92, 0x24, 0x49])) + 75]! ^= 1;
      return [pagesOffset + 2 * MIB];
    },
    'device state': (bytes) => {
      const device = bytes.indexOf(Buffer.from(testDevice('cpu', 500).body));
      bytes[device + 499]! ^= 0x80;
      return [device];
    },
  };
  for (const [what, damage] of Object.entries(damages)) {
    const bytes = Buffer.from(whole);
    const offsets = damage(bytes);
    fs.writeFileSync(out, bytes);
    const { status, verdict } = await verify(out);
    const found = verdict.findings.filter(({ code }) => code === 'DIGEST_MISMATCH');
    assert.deepEqual([status, verdict.digest?.mismatches], [1, offsets.length], what);
    assert.deepEqual(
      found.map(({ offset }) => offset),
      offsets,
      what,
    );
  }
});

test('another file of the same guest under the same name is not taken for a damaged one', async () => {
  const later = at('later.mig');
  for (const [to, changed] of [
    // The same size: a mapped-ram file is as long as RAM, whatever is in it.
    ['mapped-ram', guest(500, 1)],
    ['stream', guest(504)],
  ] as const) {
    fs.writeFileSync(later, changed);
    const out = at(`replaced-${to}`);
    await run('convert', input, out, '--to', to);
    const old = fs.statSync(out).size;
    await run('convert', later, out, '--to', to, '--no-digest');
    assert.equal(fs.statSync(out).size === old, to === 'mapped-ram');
    const { status, verdict } = await verify(out);
    assert.deepEqual(
      [status, verdict.valid, verdict.digest?.checked, verdict.findings.map(({ code }) => code)],
      [0, true, false, ['DIGEST_NOT_CHECKED']],
    );
    await run('convert', later, at('with'), '--to', to);
    fs.copyFileSync(at('with'), out);
    assert.equal((await verify(out)).verdict.digest?.checked, false);
    fs.copyFileSync(at('with.digest'), `${out}.digest`);
    assert.deepEqual((await verify(out)).verdict.digest, { file: `${out}.digest`, checked: true, mismatches: 0 });
  }
});

test('receive of a stream with differences (XBZRLE): a digest as well', async () => {
  const source = at('differences.mig');
  const changed = patternPage(1);
  changed[100]! ^= 1;
  const builder = new StreamBuilder()
    .header()
    .ramStart([{ name: 'pc.ram', usedLength: 4 * 4096 }])
    .part([{ block: 'pc.ram', page: 2, kind: 'normal', content: patternPage(1) }])
    .end([{ block: 'pc.ram', page: 2, kind: 'xbzrle', content: changed }])
    .devices([testDevice('cpu', 40)]);
  fs.writeFileSync(source, builder.bytes);
  for (const to of ['stream', 'mapped-ram']) {
    const out = at(`differences-${to}`);
    await run('receive', `exec:cat ${source}`, out, '--to', to);
    const { status, verdict } = await verify(out);
    assert.deepEqual([status, verdict.digest?.checked, verdict.digest?.mismatches], [0, true, 0]);
  }
});

test('a digest that is not of the file, or none at all, is a warning; none is nothing', async () => {
  const out = at('foreign');
  await run('convert', input, out, '--to', 'stream', '--no-digest');
  assert.equal(fs.existsSync(`${out}.digest`), false);
  assert.equal((await verify(out)).verdict.digest, undefined);
  await run('convert', at('differences.mig'), at('other'), '--to', 'stream');
  for (const text of [
    fs.readFileSync(at('other.digest'), 'utf8'),
    '',
    '{}',
    'null',
    '[1]',
    '{"format":"ramferry digest 1","of":{},"blocks":[]}',
    '{"format":"ramferry digest 2","of":null,"blocks":[]}',
    '{"format":"ramferry digest 2","of":{},"blocks":[null]}',
  ]) {
    fs.writeFileSync(`${out}.digest`, text);
    const { status, verdict } = await verify(out);
    assert.deepEqual(
      [status, verdict.valid, verdict.digest?.checked, verdict.findings.map(({ code }) => code)],
      [0, true, false, ['DIGEST_NOT_CHECKED']],
      text,
    );
  }
});

test('a digest that cannot be written: status 1, and the file is complete', async () => {
  const out = at('blocked');
  const command = `exec:cat ${input}; mkdir ${out}.digest`;
  const result = await runCommand('receive', command, out, '--json');
  const { error } = JSON.parse(result.stdout) as Verdict;
  assert.deepEqual([result.status, error?.code], [1, 'DIGEST_NOT_WRITTEN']);
  assert.equal((await runCommand('diff', input, out)).status, 0);
});

test('what stands where the digest shall be, and is none, is refused before the work begins', async () => {
  const out = at('taken');
  fs.mkdirSync(`${out}.digest`);
  for (const args of [
    ['convert', input, out, '--to', 'mapped-ram'],
    ['receive', `exec:cat ${input}`, out],
  ]) {
    const result = await runCommand(...args, '--json');
    const { error } = JSON.parse(result.stdout) as Verdict;
    assert.deepEqual([result.status, error?.code, fs.existsSync(out)], [2, 'FILE_EXISTS', false]);
  }
});
