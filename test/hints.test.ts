// A hint that is a command works when it is typed. Every one is made to be printed somewhere in the tests, found in what was
// printed, and typed (`typeHint`); this file holds that none is left out, and has the cases that need no QEMU.

import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { after, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { parseCommandLine } from '../src/cli/parse-command-line.js';
import { verbs } from '../src/cli/verbs.js';
import { shellCommand, shellWord } from '../src/memory/shell-command.js';
import { bin, RunningCommand, runCommand } from './command.js';
import { describedStream } from './described-stream.js';
import { libvirtHead } from './libvirt-images.js';
import { qcow2Image } from './qcow2-images.js';
import { patternPage, StreamBuilder, testDevice } from './streams.js';
import { typeHint } from './type-hint.js';

const root = fileURLToPath(new URL('../../', import.meta.url));
const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'ramferry-hints-'));
after(() => fs.rmSync(folder, { recursive: true }));

const sourcesIn = (part: string): { file: string; text: string }[] =>
  fs
    .readdirSync(path.join(root, part), { recursive: true, encoding: 'utf8' })
    .filter((file) => file.endsWith('.ts'))
    .map((file) => ({ file: path.join(part, file), text: fs.readFileSync(path.join(root, part, file), 'utf8') }));

const isTest = (file: string): boolean => file.endsWith('.test.ts') || file.startsWith('test');

/** What is put into a template looks like this in its test. */
const withoutValues = (template: string): string => template.replace(/\$\{[^}]*\}/g, '…');

test('every command in a hint is typed by a test', () => {
  const sources = [...sourcesIn('src'), ...sourcesIn('test')];
  const printed = sources
    .filter(({ file }) => !isTest(file))
    .flatMap(({ text }) => [...text.matchAll(/shellCommand`([^`]*)`/g)].map((match) => withoutValues(match[1]!)));
  const typed = sources
    .filter(({ file }) => isTest(file))
    .flatMap(({ text }) => [...text.matchAll(/typeHint\(\s*(['"`])(.*?)\1,/g)].map((match) => match[2]!));
  assert.ok(printed.length > 10);
  assert.deepEqual([...new Set(typed)].sort(), [...new Set(printed)].sort());
});

/** Texts that are no hints: comments, help, examples. */
const HELP =
  /\/\*\*[\s\S]*?\*\/|^ *\/\/.*$|const \w*HELP = `[^`]*`|\bexamples: \[[\s\S]*?^ {2}\],|^ *example: .*$|^.*addHelpText\(.*$/gm;
const names = verbs.map(({ name }) => name).join('|');
const COMMANDS = new RegExp(
  String.raw`\bramferry (?:${names}|help|\$\{|--)|\b(?:npm|npx|apt|apt-get|qemu-img|gzip|zstd|xz|tail|head|dd|fuser|sysctl|kill|virsh) (?:-[a-z]|\$\{|(?:run|test|install|create)\b)`,
);

test('a command in a hint is marked as one: it is a shellCommand', () => {
  const unmarked = sourcesIn('src')
    .filter(({ file }) => !isTest(file))
    .flatMap(({ file, text }) =>
      text
        .replaceAll(HELP, '')
        .replaceAll(/shellCommand`[^`]*`/g, '')
        .split('\n')
        .filter((line) => COMMANDS.test(line))
        .map((line) => `${file}: ${line.trim()}`),
    );
  assert.deepEqual(unmarked, []);
});

test('options that are named in messages exist', async () => {
  const helps = await Promise.all(verbs.map(({ name }) => parseCommandLine(verbs, ['help', name])));
  const known = new Set(helps.flatMap((help) => ('text' in help ? (help.text.match(/--[a-z][a-z-]*/g) ?? []) : [])));
  // Of other programs, or code.
  const foreign = ['--pdeathsig', '--version', '--prefix', '--this'];
  const unknown = sourcesIn('src')
    .filter(({ file }) => !isTest(file))
    .flatMap(({ file, text }) =>
      (text.replaceAll(HELP, '').match(/(?<![\w`'-])--[a-z][a-z-]+(?![\w=])/g) ?? [])
        .filter((option) => !known.has(option) && !foreign.includes(option))
        .map((option) => `${file}: ${option}`),
    );
  assert.deepEqual(unknown, []);
});

test('what is put into a command is quoted for the shell', () => {
  const odd = ["it's", 'a b', '$HOME', 'x;y', '"', '\\', '*', '-', '', 'ü', '\x1b[2J', 'a\nb', "\x07'\\"];
  for (const word of odd) {
    const command = shellCommand`printf %s ${word}`;
    assert.equal(spawnSync('/bin/bash', ['-c', command], { encoding: 'utf8' }).stdout, word, command);
    // Nothing that a terminal would act on.
    assert.doesNotMatch(command, /\p{Cc}/u);
  }
  assert.equal(shellWord('/run/a-b_c.mig,offset=4:5'), '/run/a-b_c.mig,offset=4:5');
});

const smallStream = (...devices: readonly string[]): Uint8Array =>
  new StreamBuilder()
    .header()
    .ramStart([{ name: 'pc.ram', usedLength: 16 * 4096 }])
    .part([{ block: 'pc.ram', page: 3, kind: 'normal', content: patternPage(3) }])
    .end()
    .devices(['timer', ...devices].map((name) => testDevice(name, 20))).bytes;

/** A small memory file in a folder with an awkward name. */
const savedGuest = (name: string, bytes: Uint8Array = smallStream()): string => {
  const place = fs.mkdtempSync(path.join(folder, "it's a "));
  const file = path.join(place, name);
  fs.writeFileSync(file, bytes);
  return file;
};

const hintOf = async (...args: readonly string[]): Promise<string> => {
  const { stdout, stderr } = await runCommand('--json', ...args);
  const { error } = JSON.parse(stdout) as { error?: { hint?: string } };
  assert.ok(error?.hint !== undefined, stdout + stderr);
  return error.hint;
};

test('wrong usage: the help that it points to', async () => {
  const [verb, overview] = await Promise.all([hintOf('inspect', '--sise'), hintOf('inspcet')]);
  const [one, other] = await Promise.all([
    typeHint('ramferry … --help', verb).ended,
    typeHint('ramferry --help', overview).ended,
  ]);
  assert.deepEqual([one.status, other.status], [0, 0]);
  assert.match(one.stdout, /Usage: ramferry inspect/);
  assert.match(other.stdout, /Usage: ramferry VERB/);
});

test('a packed file: how it is unpacked', async () => {
  const xz = (bytes: Uint8Array): Buffer => spawnSync('xz', ['-c'], { input: bytes }).stdout;
  const packed = savedGuest('guest.xz', xz(smallStream()));
  const unpacking = typeHint('… -dc … > ….mig', await hintOf('inspect', packed));
  assert.equal((await unpacking.ended).status, 0);
  assert.deepEqual(fs.readFileSync(`${packed}.mig`), Buffer.from(smallStream()));

  const image = savedGuest('guest.save', Buffer.concat([libvirtHead({ format: 3 }), xz(smallStream())]));
  const hint = await hintOf('inspect', image);
  assert.equal((await typeHint('tail -c +… … | … -dc > ….mig', hint).ended).status, 0);
  assert.deepEqual(fs.readFileSync(`${image}.mig`), Buffer.from(smallStream()));
});

test('an archive: what is in it', async () => {
  const content = savedGuest('guest.mig');
  const archive = path.join(path.dirname(content), 'guest.tar');
  assert.equal(spawnSync('tar', ['-cf', archive, '-C', path.dirname(content), 'guest.mig']).status, 0);
  const { status, stdout } = await typeHint('tar -tf …', await hintOf('verify', archive)).ended;
  assert.deepEqual([status, stdout], [0, 'guest.mig\n']);
});

test('a disk image: how a snapshot in it is opened', async () => {
  const disk = savedGuest('disk.qcow2', qcow2Image([{ id: '1', tag: 'my tag', vmState: smallStream() }]));
  const { status, stdout } = await typeHint('ramferry inspect file:…,snapshot=…', await hintOf('verify', disk)).ended;
  assert.equal(status, 0);
  assert.match(stdout, /snapshot +my tag, made/);
});

test('a terminal where a file should be: a file is fed in', async () => {
  const file = savedGuest('guest.mig');
  const onTerminal = `'${process.execPath}' '${bin}' inspect -`;
  const { stdout } = spawnSync('script', ['-qec', onTerminal, '/dev/null'], { input: '', encoding: 'utf8' });
  const fed = typeHint('ramferry inspect - < guest.mig', stdout.replaceAll('\r', ''), { cwd: path.dirname(file) });
  assert.equal((await fed.ended).status, 0);
});

test('a guest of another architecture: its vCPUs as they were saved', async () => {
  const description = { fields: [{ name: 'env.xregs', array_len: 32, type: 'uint64', size: 8 }] };
  const file = savedGuest('arm.mig', describedStream([{ name: 'cpu', body: new Uint8Array(256), description }]));
  const { status, stdout } = await typeHint('ramferry device … cpu', await hintOf('registers', file)).ended;
  assert.equal(status, 0);
  assert.match(stdout, /xregs/);
});

test('a device that is not described: its bytes', async () => {
  const device = { name: "0000:00:02.0/it's a device", body: new Uint8Array([0xca, 0xfe]), description: {} };
  const file = savedGuest('without description.mig', describedStream([device], ''));
  const { status, stdout } = await typeHint('ramferry device … … --raw', await hintOf('device', file, device.name))
    .ended;
  assert.equal(status, 0);
  assert.match(stdout, /0000 {2}ca fe/);
});

test('a guest that cannot be served: it is sent', async () => {
  const file = savedGuest('guest.mig', smallStream('0000:00:04.0/vfio'));
  const uri = `unix:${path.join(folder, 'in.sock')}`;
  const hint = await hintOf('serve', file, uri);
  const receiving = new RunningCommand(['receive', uri, path.join(folder, 'received.mig')]);
  await receiving.listening();
  const { status, stderr } = await typeHint('ramferry send … …', hint).ended;
  assert.equal(status, 0, stderr);
  assert.equal((await receiving.ended).status, 0);
});
