// The contract of DESIGN section 4 about stdout, stderr, exit status and signals, seen from outside the process.

import assert from 'node:assert/strict';
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import { createRequire } from 'node:module';
import os from 'node:os';
import path from 'node:path';
import { after, test } from 'node:test';
import { fileURLToPath } from 'node:url';

const sample = fileURLToPath(new URL('../../test/sample-command-line.js', import.meta.url));
const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'ramferry-cli-'));
after(() => fs.rmSync(folder, { recursive: true }));

const start = (args: readonly string[], env: Record<string, string> = {}): ChildProcess =>
  spawn(process.execPath, [sample, ...args], { stdio: ['ignore', 'pipe', 'pipe'], env: { ...process.env, ...env } });

interface Ended {
  readonly status: number | null;
  readonly signal: string | null;
  readonly stdout: string;
  readonly stderr: string;
}

const ended = async (child: ChildProcess): Promise<Ended> => {
  const texts = ['', ''];
  for (const [index, stream] of [child.stdout!, child.stderr!].entries()) {
    stream.on('data', (data: Buffer) => {
      texts[index] += data.toString();
    });
  }
  const [status, signal] = await once(child, 'close');
  return { status, signal, stdout: texts[0]!, stderr: texts[1]! };
};

const run = (...args: string[]): Promise<Ended> => ended(start(args));

test('a verb that ends well: its text on stdout, progress and notes on stderr, status 0, although a timer is left', async () => {
  const { status, stdout, stderr } = await run('end', 'well', '--size', '4K');
  assert.deepEqual([status, stdout], [0, 'ended well\n']);
  assert.equal(stderr, 'active, 50 %, 50 B left\nlistening on unix:/tmp/x\n');
});

test('--json: one document on stdout, nothing else; --quiet: no progress, but notes', async () => {
  const { status, stdout, stderr } = await run(
    'end',
    '--quiet',
    '--json',
    '--size',
    '0x1000',
    'well',
    '--',
    '--json',
    '-x',
  );
  assert.equal(status, 0);
  assert.deepEqual(JSON.parse(stdout), { operands: ['well', '--json', '-x'], size: 4096 });
  assert.equal(stderr, 'listening on unix:/tmp/x\n');
});

test('an option behind -- is not an option of ours', async () => {
  assert.equal((await run('end', 'well', '--', '--json')).stdout, 'ended well --json\n');
});

for (const [how, status, error] of [
  ['failed', 1, { code: 'PEER_CLOSED', message: 'The peer closed.', file: 'unix:x', hint: 'look there' }],
  ['usage', 2, { code: 'INVALID_URI', message: 'Not a URI.' }],
  ['invalid', 3, { code: 'BAD_MAGIC', message: 'Bad magic.', file: 'x.mig', offset: 4096 }],
] as const) {
  test(`a failure of kind ${how} is status ${status}, as text and as JSON`, async () => {
    const [text, json] = await Promise.all([run('end', how), run('end', how, '--json')]);
    assert.deepEqual([text.status, text.stdout], [status, '']);
    assert.ok(text.stderr.includes(`ramferry: ${error.message}\n`));
    assert.equal(json.status, status);
    assert.deepEqual(JSON.parse(json.stdout), { error });
  });
}

test('a failure with a result shows both', async () => {
  const [text, json] = await Promise.all([run('end', 'mismatch'), run('end', 'mismatch', '--json')]);
  assert.deepEqual([text.status, text.stdout], [1, '8 pages\n']);
  assert.match(text.stderr, /ramferry: Page 7 differs\.\n$/);
  assert.equal(json.status, 1);
  assert.deepEqual(JSON.parse(json.stdout), { pages: 8, error: { code: 'MISMATCH', message: 'Page 7 differs.' } });
});

for (const how of ['defect', 'later']) {
  test(`a defect of ours (${how}) is INTERNAL, status 1, with a stack only on demand`, async () => {
    const [json, text, debug] = await Promise.all([
      run('end', how, '--json'),
      run('end', how),
      ended(start(['end', how], { RAMFERRY_DEBUG: '1' })),
    ]);
    assert.equal(json.status, 1);
    assert.equal(JSON.parse(json.stdout).error.code, 'INTERNAL');
    assert.equal(text.status, 1);
    assert.match(text.stderr, /ramferry: Unexpected: .*\.\n {2}.*RAMFERRY_DEBUG=1/);
    assert.doesNotMatch(text.stderr, /^ +at /m);
    assert.match(debug.stderr, /^ +at /m);
  });
}

test('a system call that fails says what it means', async () => {
  const { status, stdout } = await run('end', 'missing', '--json');
  assert.equal(status, 1);
  assert.deepEqual(JSON.parse(stdout).error, {
    code: 'NOT_FOUND',
    message: 'Cannot open /nonexistent/file: there is no such file or directory.',
    file: '/nonexistent/file',
  });
});

for (const [args, code, message] of [
  [['edn'], 'UNKNOWN_VERB', /unknown command 'edn'/i],
  [['end', 'well', '--sise', '4K'], 'UNKNOWN_OPTION', /unknown option '--sise'/i],
  [['end'], 'MISSING_OPERAND', /missing required argument 'how'/i],
  [['lots', 'more'], 'TOO_MANY_OPERANDS', /too many arguments/i],
  [['end', 'well', '--size'], 'MISSING_VALUE', /argument missing/i],
  [['end', 'well', '--size', 'big'], 'INVALID_VALUE', /'big' is invalid.*512M/i],
] as const) {
  test(`wrong usage: ${args.join(' ')} is ${code}, status 2`, async () => {
    const [text, json] = await Promise.all([run(...args), run(args[0], '--json', ...args.slice(1))]);
    assert.deepEqual([text.status, text.stdout], [2, '']);
    assert.match(text.stderr, /^ramferry: .*\n.*see ramferry (end |lots )?--help\n$/);
    assert.equal(json.status, 2);
    assert.equal(json.stderr, '');
    const { error } = JSON.parse(json.stdout);
    assert.equal(error.code, code);
    assert.match(error.message, message);
  });
}

test('a misspelt verb or option gets a suggestion', async () => {
  assert.match((await run('edn')).stderr, /did you mean end\? see ramferry --help/);
  assert.match((await run('end', 'well', '--sise')).stderr, /did you mean --size\? see ramferry end --help/);
});

test('without arguments, and with --help: the overview, on stdout, without loading a verb', async () => {
  const [bare, help] = await Promise.all([run(), run('--help')]);
  for (const { status, stdout, stderr } of [bare, help]) {
    assert.deepEqual([status, stderr], [0, '']);
    assert.match(stdout, /^ {2}end .*ends$/m);
    assert.match(stdout, /\$ ramferry lots \| head/);
    assert.match(stdout, /Exit status: 0 done/);
  }
  assert.equal(bare.stdout, help.stdout);
});

test('--help of a verb: its options, the common ones, its examples', async () => {
  const [help, word] = await Promise.all([run('end', '--help'), run('help', 'end')]);
  for (const { status, stdout } of [help, word]) {
    assert.equal(status, 0);
    for (const part of ['--size <size>', '--json', '--quiet', '--help', '$ ramferry end well', 'Exit status']) {
      assert.ok(stdout.includes(part), `${part} in ${stdout}`);
    }
  }
});

test('the version, asked for in any way', async () => {
  const { version } = createRequire(import.meta.url)('../../../package.json');
  for (const word of ['--version', '-V', 'version']) {
    assert.deepEqual(await run(word), { status: 0, signal: null, stdout: `${version}\n`, stderr: '' });
    for (const words of [
      [word, '--json'],
      ['--json', word],
    ]) {
      assert.deepEqual(JSON.parse((await run(...words)).stdout), { version });
    }
  }
});

test('--json and --quiet may stand in front of the verb; help is a document then, too', async () => {
  const { status, stdout, stderr } = await run('--json', '--quiet', 'end', 'well', '--', '--json');
  assert.deepEqual([status, JSON.parse(stdout)], [0, { operands: ['well', '--json'] }]);
  assert.equal(stderr, 'listening on unix:/tmp/x\n');
  for (const words of [['help'], ['help', 'end'], ['end', '--help'], ['--help']]) {
    const [text, json] = await Promise.all([run(...words), run('--json', ...words)]);
    assert.deepEqual(JSON.parse(json.stdout), { help: text.stdout });
  }
  const alone = await run('--json');
  assert.deepEqual([alone.status, JSON.parse(alone.stdout).error.code], [2, 'MISSING_VERB']);
});

for (const how of ['well', 'failed']) {
  test(`what a verb publishes is on stdout while it runs, and stays all that is there when it ends ${how}`, async () => {
    const child = start(['publish', how, '--json']);
    const end = ended(child);
    await once(child.stdout!, 'data');
    assert.equal(child.exitCode, null);
    child.kill('SIGINT');
    const { status, stdout, stderr } = await end;
    assert.deepEqual(JSON.parse(stdout), { running: 3 });
    assert.equal(status, how === 'well' ? 0 : 1);
    assert.equal(/ramferry: The clone died\./.test(stderr), how === 'failed');
  });
}

test('a terminal that is dumb gets no escape codes', {
  skip: spawnSync('script', ['--version']).status !== 0 && 'there is no script(1)',
}, () => {
  const command = [process.execPath, sample, 'end', 'failed'].map((word) => `'${word}'`).join(' ');
  const printed = (TERM: string): string =>
    spawnSync('script', ['-qec', command, '/dev/null'], {
      env: { ...process.env, TERM, NO_COLOR: '' },
      input: '',
      encoding: 'utf8',
    }).stdout;
  const xterm = printed('xterm');
  assert.ok(xterm.includes('\x1b[K') && xterm.includes('\x1b[31m'), xterm);
  assert.match(printed('dumb'), /^active, 50 %.*\r\n.*ramferry: The peer closed\.\r\n/s);
  assert.ok(!printed('dumb').includes('\x1b'));
});

test('a reader of stdout that goes away is no failure', async () => {
  const child = start(['lots']);
  child.stdout!.once('data', () => child.stdout!.destroy());
  const { status, stderr } = await ended(child);
  assert.deepEqual([status, stderr], [0, '']);
});

test('a stdout that is full is a failure', { skip: !fs.existsSync('/dev/full') }, async () => {
  const full = fs.openSync('/dev/full', 'w');
  const child = spawn(process.execPath, [sample, 'lots'], { stdio: ['ignore', full, 'pipe'] });
  let stderr = '';
  child.stderr!.on('data', (data: Buffer) => {
    stderr += data.toString();
  });
  const [status] = await once(child, 'close');
  fs.closeSync(full);
  assert.equal(status, 1);
  assert.match(stderr, /no space is left/);
});

/** Starts the verb that writes `file` until it is cancelled, and returns once it writes. */
const startWriting = async (...args: string[]): Promise<ChildProcess> => {
  const child = start(['write', ...args]);
  await once(child.stderr!, 'data');
  return child;
};

test('Ctrl-C: the verb cleans up, status 1, CANCELLED; the file that was there is unharmed', async () => {
  const file = path.join(folder, 'cancelled');
  fs.writeFileSync(file, 'precious');
  const child = await startWriting(file, '--json');
  child.kill('SIGINT');
  const { status, stdout, stderr } = await ended(child);
  assert.equal(status, 1);
  assert.deepEqual(JSON.parse(stdout), { error: { code: 'CANCELLED', message: 'Cancelled.' } });
  assert.match(stderr, /cleaning up/);
  assert.deepEqual(fs.readdirSync(folder), ['cancelled']);
  assert.equal(fs.readFileSync(file, 'utf8'), 'precious');
});

test('a second Ctrl-C ends it at once, and leaves only a name that says so', async () => {
  const file = path.join(folder, 'killed');
  const child = await startWriting(file, 'slowly');
  child.kill('SIGINT');
  await once(child.stderr!, 'data');
  child.kill('SIGINT');
  const { signal } = await ended(child);
  assert.equal(signal, 'SIGINT');
  assert.ok(!fs.existsSync(file));
  assert.equal(fs.readFileSync(`${file}.ramferry-partial-${child.pid}`, 'utf8'), 'new content');
});
