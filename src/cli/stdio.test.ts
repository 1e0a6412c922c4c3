// `-`, pipes and devices: what is read from them, what is written there, and where the report goes meanwhile.

import assert from 'node:assert/strict';
import { execFile, execFileSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { after, test } from 'node:test';
import { bin, RunningCommand } from '../../test/command.js';
import { describedTail } from '../../test/described-stream.js';
import { withLoopDevice } from '../../test/loop-device.js';
import { clockDevice } from '../../test/pc-memory.js';
import { patternPage, StreamBuilder } from '../../test/streams.js';
import { until } from '../../test/until.js';

const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'ramferry-stdio-'));
after(() => fs.rmSync(folder, { recursive: true }));
const at = (name: string): string => path.join(folder, name);

const PAGE = 4096;
const { bytes } = new StreamBuilder()
  .header()
  .ramStart([{ name: 'pc.ram', usedLength: 600 * PAGE }])
  .part([
    { block: 'pc.ram', page: 3, kind: 'normal', content: patternPage(3) },
    { block: 'pc.ram', page: 555, kind: 'normal', content: patternPage(555) },
  ])
  .end()
  .tail(describedTail([clockDevice(600 * PAGE)]));
const file = at('guest.mig');
fs.writeFileSync(file, bytes);

/** The command in one word, wherever this checkout lies. */
const command = at('ramferry');
fs.writeFileSync(command, `#!/bin/sh\nexec "${process.execPath}" "${bin}" "$@"\n`, { mode: 0o755 });

interface ShellResult {
  readonly status: number;
  readonly stdout: Buffer;
  readonly stderr: string;
}

/** A line of a shell, in which $R is the command, $F the file; in the test's folder. */
const shell = (line: string): Promise<ShellResult> =>
  new Promise((resolve) => {
    const env = { ...process.env, R: command, F: file };
    execFile(
      'bash',
      ['-c', line],
      { env, cwd: folder, encoding: 'buffer', timeout: 60_000, maxBuffer: 2 ** 26 },
      (error, stdout, stderr) => {
        resolve({ status: error === null ? 0 : Number(error.code), stdout, stderr: stderr.toString() });
      },
    );
  });

const codeIn = (text: string | Buffer): string =>
  (JSON.parse(text.toString()) as { error: { code: string } }).error.code;

test('a memory file is read from stdin and from pipes, whatever the shell calls them', async () => {
  for (const line of [
    '$R inspect --json - < $F',
    'cat $F | $R inspect --json -',
    '$R inspect --json <(cat $F)',
    '$R inspect --json /dev/fd/5 5< $F',
    'mkfifo named; (sleep 0.2; cat $F > named) & $R inspect --json named',
  ]) {
    const { status, stdout, stderr } = await shell(line);
    assert.equal(status, 0, `${line}: ${stderr}`);
    const { complete, blocks } = JSON.parse(stdout.toString()) as {
      complete: boolean;
      blocks: { presentPages: number }[];
    };
    assert.deepEqual([complete, blocks[0]?.presentPages], [true, 2], line);
  }
  const equal = await shell(
    'cat $F | $R diff - $F && cat $F | $R convert - from-pipe.mapped --to mapped-ram && $R diff from-pipe.mapped $F',
  );
  assert.equal(equal.status, 0, equal.stderr);
  for (const [line, code] of [
    ['$R inspect --json /dev/null', 'NOT_A_FILE'],
    ['$R inspect --json .', 'NOT_A_FILE'],
    ['cat $F | $R diff --json - -', 'STDIN_TWICE'],
    ['cat $F | $R clone --json - -- qemu', 'NOT_A_FILE'],
    ['$R inspect --json - < /dev/zero', 'NOT_A_FILE'],
  ] as const) {
    const { stdout } = await shell(line);
    assert.equal(codeIn(stdout), code, line);
  }
});

test('a named pipe without a writer can be cancelled', async () => {
  execFileSync('mkfifo', [at('nobody')]);
  for (const args of [
    ['inspect', at('nobody')],
    ['receive', `file:${at('nobody')}`, at('never')],
  ]) {
    const running = new RunningCommand([...args, '--json']);
    // Once it has the pipe open a writer finds a reader.
    await until(() => {
      try {
        fs.closeSync(fs.openSync(`/proc/${running.child.pid}/fd`, 'r'));
        return fs.readdirSync(`/proc/${running.child.pid}/fd`).some((name) => {
          try {
            return fs.readlinkSync(`/proc/${running.child.pid}/fd/${name}`) === at('nobody');
          } catch {
            return false;
          }
        });
      } catch {
        return false;
      }
    });
    running.child.kill('SIGINT');
    const { status, stdout } = await running.ended;
    assert.deepEqual([status, codeIn(stdout)], [1, 'CANCELLED'], args[0]);
  }
  assert.equal(fs.existsSync(at('never')), false);
});

test('data on stdout are alone there: the report goes to stderr', async () => {
  const saved = await shell('$R receive file:$F saved.mig --quiet --no-digest');
  assert.equal(saved.status, 0, saved.stderr);
  const expected = fs.readFileSync(at('saved.mig'));
  for (const line of [
    '$R receive file:$F - --json --quiet',
    '$R receive file:$F /dev/stdout --json --quiet',
    '$R receive file:$F /dev/fd/1 --json --quiet | cat',
    'mkfifo p; (cat p & exec 1> p; $R receive file:$F p --json --quiet)',
    '$R receive "exec:cat $F" - --json --quiet > redirected; cat redirected',
  ]) {
    const { status, stdout, stderr } = await shell(line);
    assert.equal(status, 0, stderr);
    assert.ok(stdout.equals(expected), line);
    assert.equal((JSON.parse(stderr) as { fileBytes: number }).fileBytes, expected.length, line);
  }
  // What a file that is appended to held before stays.
  const appended = await shell('echo before > both; $R receive file:$F - --quiet >> both; cat both');
  assert.ok(appended.stdout.equals(Buffer.concat([Buffer.from('before\n'), expected])));
  assert.match(appended.stderr, /saved/);
  assert.equal(fs.existsSync(at('-')), false);
  assert.deepEqual(
    fs.readdirSync(folder).filter((name) => name.endsWith('.digest') && !name.startsWith('from-pipe')),
    [],
  );
});

test('convert to stdout: the same bytes as in a file, in every format that has an order', async () => {
  const stream = await shell('$R convert $F - --to stream | $R diff - $F');
  assert.equal(stream.status, 0, stream.stderr);
  for (const format of ['elf', 'raw --block pc.ram']) {
    const { status, stdout, stderr } = await shell(
      `$R convert $F out --to ${format} --quiet >&2 && $R convert $F - --to ${format}`,
    );
    assert.equal(status, 0, stderr);
    assert.ok(stdout.equals(fs.readFileSync(at('out'))), format);
    assert.match(stderr, /complete/);
  }
  for (const [line, code] of [
    ['$R convert $F - --to mapped-ram --json', 'NOT_SEEKABLE'],
    ['$R convert $F - --to raw --json', 'NOT_SEEKABLE'],
    ['$R receive file:$F - --to mapped-ram --json', 'NOT_SEEKABLE'],
    ['$R convert $F - --to stream --json > /dev/full', 'NO_SPACE'],
    ['$R convert $F - --to raw --block pc.ram --json | true', 'PEER_CLOSED'],
    ['mkfifo unread; $R receive file:$F unread --json >&2', 'NO_READER'],
    ['$R receive file:$F nowhere/x --json >&2', 'NOT_FOUND'],
  ] as const) {
    const { stderr } = await shell(line);
    assert.equal(codeIn(stderr.slice(stderr.indexOf('{'))), code, line);
  }
  const { stderr } = await shell('$R receive file:$F nowhere/x');
  assert.match(stderr, /there is no folder nowhere\./);
});

test('a block device is read by page, and written in order, zeros included', async (context) => {
  fs.writeFileSync(at('disk'), Buffer.alloc(4 * 2 ** 20, 0xee));
  await withLoopDevice(context, at('disk'), async (device) => {
    const itself = await shell(`$R convert disk ${device} --to raw --json`);
    assert.equal(codeIn(itself.stdout), 'OUTPUT_IS_INPUT');
    const written = await shell(`$R convert $F ${device} --to raw --block pc.ram && sync ${device}`);
    assert.equal(written.status, 0, written.stderr);
    const expected = await shell('$R convert $F - --to raw --block pc.ram --quiet');
    assert.ok(
      fs
        .readFileSync(device)
        .subarray(0, 600 * PAGE)
        .equals(expected.stdout),
    );
    assert.equal((await shell(`cat $F > ${device}; sync ${device}; $R diff ${device} $F`)).status, 0);
    const { stdout } = await shell(`$R verify ${device} --json`);
    const { checked } = JSON.parse(stdout.toString()) as { checked: { ofBytes: number } };
    assert.equal(checked.ofBytes, 4 * 2 ** 20);
    // A device has the size it has: what is behind the stream there is nothing to warn of, as in the file it is.
    const behind = /bytes follow the stream/;
    assert.doesNotMatch(stdout.toString(), behind);
    assert.match((await shell('$R verify disk --json')).stdout.toString(), behind);
  });
});
