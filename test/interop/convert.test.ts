// `convert` and real QEMU: what it writes is loaded, and holds the same memory in every format.

import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { readElf } from '../addressed-files.js';
import { corpusDestination, corpusStream, startFromCorpus } from './corpus.js';
import { interopTest, type Lab } from './lab.js';
import { Ramferry } from './ramferry.js';
import { sha256 } from './reference-reader.js';

const run = async (lab: Lab, ...args: readonly string[]): Promise<Record<string, unknown>> => {
  const { status, stdout, stderr } = await Ramferry.run(lab, ...args, '--json');
  assert.equal(status, 0, `${stdout}\n${stderr}`);
  return JSON.parse(stdout) as Record<string, unknown>;
};

/** SHA-256 of every RAM block, by name. */
const digests = async (lab: Lab, file: string): Promise<Record<string, string>> => {
  const { blocks } = (await run(lab, 'inspect', file, '--digest')) as { blocks: { name: string; sha256: string }[] };
  return Object.fromEntries(blocks.map(({ name, sha256: digest }) => [name, digest]));
};

interopTest('convert: one guest in every format, and QEMU 10 runs it on from those that it loads', async (lab) => {
  const { file, truth } = await corpusStream(lab, 'plain');
  const expected = Object.fromEntries(truth.blocks.map(({ name, sha256: digest }) => [name, digest]));
  const [stream, mapped, back, raw, elf] = ['stream', 'mapped', 'back', 'raw', 'elf'].map((name) => lab.path(name));
  await run(lab, 'convert', file, stream!, '--to', 'stream');
  await run(lab, 'convert', file, mapped!, '--to', 'mapped-ram');
  await run(lab, 'convert', mapped!, back!, '--to', 'stream');
  for (const form of [stream!, mapped!, back!]) {
    assert.deepEqual(await digests(lab, form), expected);
    assert.equal((await run(lab, 'diff', file, form))['equal'], true);
  }

  const { blocks } = (await run(lab, 'convert', mapped!, raw!, '--to', 'raw')) as {
    blocks: { name: string; file: string }[];
  };
  const rawDigests = blocks.map((block) => [block.name, sha256(readFileSync(join(raw!, block.file)))]);
  assert.deepEqual(Object.fromEntries(rawDigests), expected);
  rmSync(raw!, { recursive: true });
  const { ranges } = (await run(lab, 'convert', mapped!, elf!, '--to', 'elf')) as { ranges: object[] };
  assert.deepEqual(ranges, [
    { block: 'pc.ram', address: 0, offset: 0, bytes: 256 * 2 ** 20 },
    { block: 'pc.bios', address: 2 ** 32 - 256 * 1024, offset: 0, bytes: 256 * 1024 },
  ]);
  assert.equal(sha256(readElf(elf!)(0, 256 * 2 ** 20)!), expected['pc.ram']);
  const readelf = spawnSync('readelf', ['--file-header', '--segments', '--notes', elf!], { encoding: 'utf8' });
  if (readelf.error === undefined) {
    assert.deepEqual([readelf.status, readelf.stderr], [0, '']);
    assert.match(readelf.stdout, /CORE \(Core file\)/);
    assert.match(readelf.stdout, /LOAD +0x[0-9a-f]+000 0x0+ 0x0+\s+0x0+10000000 0x0+10000000/);
    assert.match(readelf.stdout, /CORE +0x[0-9a-f]+\s+NT_PRSTATUS/);
  }
  rmSync(elf!);

  // There and back, and there again.
  const again = lab.path('again');
  await run(lab, 'convert', back!, again, '--to', 'mapped-ram');
  const direct = { 'multifd-channels': 2, 'direct-io': true };
  for (const [form, capabilities, parameters] of [
    [stream!, {}, {}],
    [back!, {}, {}],
    [mapped!, { 'mapped-ram': true }, {}],
    [mapped!, { 'mapped-ram': true, multifd: true }, direct],
    [again, { 'mapped-ram': true, multifd: true }, { 'multifd-channels': 3 }],
    [again, { 'mapped-ram': true, multifd: true }, direct],
  ] as const) {
    const ramFile = lab.path('destination.ram');
    const destination = await corpusDestination(lab, 'plain', lab.release, { ramFile });
    await destination.loadStream(form, { capabilities, parameters });
    assert.equal(sha256(readFileSync(ramFile)), truth.ramSha256);
    await destination.resume();
    assert.equal(await destination.verifyAll(), 0);
    await destination.qemu.quit();
  }
});

interopTest('convert: a machine with virtio-mem and its early section', async (lab) => {
  const { file, truth } = await corpusStream(lab, 'devices');
  const mapped = lab.path('mapped');
  await run(lab, 'convert', file, mapped, '--to', 'mapped-ram');
  assert.equal((await run(lab, 'diff', file, mapped))['equal'], true);
  const stream = lab.path('stream');
  await run(lab, 'convert', mapped, stream, '--to', 'stream');
  assert.deepEqual(
    await digests(lab, stream),
    Object.fromEntries(truth.blocks.map(({ name, sha256: digest }) => [name, digest])),
  );
  for (const [form, capabilities] of [
    [stream, {}],
    [mapped, { 'mapped-ram': true }],
  ] as const) {
    const destination = await corpusDestination(lab, 'devices');
    await destination.loadStream(form, { capabilities });
    await destination.qemu.quit();
  }
});

for (const to of ['stream', 'mapped-ram']) {
  interopTest(`digest: of a guest that writes while it is received, --to ${to}`, async (lab) => {
    const source = await startFromCorpus(lab, 'busy');
    await source.verifyAll();
    const out = lab.path('out');
    const ramferry = Ramferry.start(lab, 'receive', `unix:${lab.path('receive')}`, out, '--to', to, '--json');
    await source.migrate(await ramferry.listening(), { capabilities: { 'return-path': true } });
    const info = await source.waitMigration();
    assert.ok(info.ram!['dirty-sync-count'] >= 2);
    const { status, stdout, stderr } = await ramferry.exited;
    assert.equal(status, 0, `${stdout}\n${stderr}`);
    // Pages came several times; the digest is of what is in the file.
    const { digest } = await run(lab, 'verify', out);
    assert.deepEqual(digest, { file: `${out}.digest`, checked: true, mismatches: 0 });
  });
}
