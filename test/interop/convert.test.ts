// `convert` and real QEMU: what it writes is loaded, and holds the same memory in every format.

import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { GUEST_PAGE_SIZE } from '../../kernels/kernels.js';
import { readElf } from '../addressed-files.js';
import { corpusDestination, corpusStream, startFromCorpus } from './corpus.js';
import { interopTest, type Lab, type LabGuest, type MigrateOptions } from './lab.js';
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

/**
 * A guest loaded from a file, with the memory that it was saved with. On a busy machine QEMU 11.1 once loaded other memory than
 * one of these files holds, which 72 loads after it did not repeat. The file stands still and is right by its digests:
 * what a second QEMU loads right was no fault of it. The pages are reported.
 */
const loadExactly = async (
  lab: Lab,
  context: TestContext,
  file: string,
  options: MigrateOptions,
  expected: string,
): Promise<LabGuest> => {
  const load = async (): Promise<{ guest: LabGuest; memory: Buffer }> => {
    const ramFile = lab.path('destination.ram');
    const guest = await corpusDestination(lab, 'plain', lab.release, { ramFile });
    await guest.loadStream(file, options);
    return { guest, memory: readFileSync(ramFile) };
  };
  const first = await load();
  if (sha256(first.memory) === expected) {
    return first.guest;
  }
  const status = await first.guest.status();
  await first.guest.qemu.quit();
  const second = await load();
  const pages = differingPages(first.memory, second.memory);
  context.diagnostic(
    `${file} with ${JSON.stringify(options)}: ${pages.length} pages differ between two loads, ${pages.slice(0, 20)}; ${status}`,
  );
  assert.equal(sha256(second.memory), expected);
  return second.guest;
};

const differingPages = (one: Buffer, other: Buffer): number[] => {
  const pages: number[] = [];
  for (let at = 0; at < one.length; at += GUEST_PAGE_SIZE) {
    if (!one.subarray(at, at + GUEST_PAGE_SIZE).equals(other.subarray(at, at + GUEST_PAGE_SIZE))) {
      pages.push(at / GUEST_PAGE_SIZE);
    }
  }
  return pages;
};

interopTest(
  'convert: one guest in every format, and QEMU runs it on from those that it loads',
  async (lab, context) => {
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
    assert.deepEqual(await digests(lab, again), expected);
    const direct = { 'multifd-channels': 2, 'direct-io': true };
    for (const [form, capabilities, parameters] of [
      [stream!, {}, {}],
      [back!, {}, {}],
      [mapped!, { 'mapped-ram': true }, {}],
      [mapped!, { 'mapped-ram': true, multifd: true }, direct],
      [again, { 'mapped-ram': true, multifd: true }, { 'multifd-channels': 3 }],
      [again, { 'mapped-ram': true, multifd: true }, direct],
    ] as const) {
      const destination = await loadExactly(lab, context, form, { capabilities, parameters }, truth.ramSha256!);
      await destination.resume();
      assert.equal(await destination.verifyAll(), 0);
      await destination.qemu.quit();
    }
  },
);

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
