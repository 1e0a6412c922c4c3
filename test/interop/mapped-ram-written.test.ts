// mapped-ram files that ramferry writes, loaded by real QEMU.

import assert from 'node:assert/strict';
import { readFileSync, rmSync, statSync } from 'node:fs';
import { Migration } from '../../src/migration/migration.js';
import type { MappedRamOptions } from '../../src/migration/source-messages.js';
import { readMappedFile } from '../mapped-ram-file.js';
import { corpusDestination, corpusStream, startFromCorpus } from './corpus.js';
import { interopTest, type Lab, liveInteropTest, type MigrateOptions } from './lab.js';
import { Ramferry } from './ramferry.js';
import { sha256 } from './reference-reader.js';

/** With `multifd` QEMU reads by several threads, with `direct-io` past the page cache. */
const loadModes: readonly (readonly [string, MigrateOptions])[] = [
  ['one reader', { capabilities: { 'mapped-ram': true } }],
  ['multifd', { capabilities: { 'mapped-ram': true, multifd: true }, parameters: { 'multifd-channels': 3 } }],
  [
    'multifd and direct-io',
    { capabilities: { 'mapped-ram': true, multifd: true }, parameters: { 'multifd-channels': 2, 'direct-io': true } },
  ],
];

/** `receive --to mapped-ram`, listening. */
const receive = async (lab: Lab, out: string): Promise<{ ramferry: Ramferry; uri: string }> => {
  const ramferry = Ramferry.start(lab, 'receive', `unix:${lab.path('receive')}`, out, '--to', 'mapped-ram', '--json');
  return { ramferry, uri: await ramferry.listening() };
};

liveInteropTest('receive --to mapped-ram from a live churning QEMU: QEMU loads it in every mode', async (lab) => {
  const ramFile = lab.path('source.ram');
  const source = await startFromCorpus(lab, 'busy', lab.release, { ramFile });
  await source.verifyAll();
  const out = lab.path('out.mapped');
  const { ramferry, uri } = await receive(lab, out);
  await source.migrate(uri, { capabilities: { 'return-path': true }, parameters: { 'max-bandwidth': 300e6 } });
  const info = await source.waitMigration();
  assert.ok(info.ram!['dirty-sync-count'] >= 2);
  const { status, stdout, stderr } = await ramferry.exited;
  assert.equal(status, 0, stderr);
  const document = JSON.parse(stdout) as { status: string; format: string; fileBytes: number };
  assert.deepEqual(
    [document.status, document.format, document.fileBytes],
    ['completed', 'mapped-ram', statSync(out).size],
  );
  const file = readMappedFile(out);
  assert.equal(sha256(file.blocks.find(({ name }) => name === 'pc.ram')!.content), sha256(readFileSync(ramFile)));
  const present = file.blocks.reduce((sum, block) => sum + block.present * 4096, 0);
  // MR-7, MR-10
  assert.ok(statSync(out).size < file.totalBytes + 2 ** 20 * (file.blocks.length + 1) + file.tail.length);
  assert.ok(statSync(out).blocks * 512 < present * 1.02 + 2 ** 20 * file.blocks.length);
  const heartbeat = source.heartbeat();
  await source.qemu.quit();
  rmSync(ramFile);
  for (const [mode, options] of loadModes) {
    const fresh = await corpusDestination(lab, 'busy');
    await fresh.loadStream(out, options);
    assert.equal(await fresh.verifyAll(), 0, mode);
    assert.ok(fresh.heartbeat() > heartbeat, mode);
    await fresh.qemu.quit();
  }
});

// XBZRLE pages are decoded against what the file holds.
interopTest('receive --to mapped-ram: deltas, rounds of them, and a stream file as the source', async (lab) => {
  for (const kind of ['xbzrle', 'devices'] as const) {
    const { file, truth } = await corpusStream(lab, kind);
    const out = lab.path(`${kind}.mapped`);
    const { status, stderr } = await Ramferry.run(lab, 'receive', `file:${file}`, out, '--to', 'mapped-ram', '--json');
    assert.equal(status, 0, stderr);
    const { blocks } = readMappedFile(out);
    const digests = blocks.map(({ name, usedLength, content }) => ({ name, usedLength, sha256: sha256(content) }));
    const byName = (a: { name: string }, b: { name: string }): number => (a.name < b.name ? -1 : 1);
    assert.deepEqual(digests.sort(byName), [...truth.blocks].sort(byName));
    const fresh = await corpusDestination(lab, kind);
    await fresh.loadStream(out, { capabilities: { 'mapped-ram': true } });
    if (kind === 'xbzrle') {
      assert.equal(await fresh.verifyAll(), 0);
    }
    await fresh.qemu.quit();
  }
});

const sinkModes: MappedRamOptions[] = [{}, { channels: 2 }, { channels: 2, directIo: true }];
for (const mappedRam of sinkModes) {
  interopTest(
    `the sink, ${JSON.stringify(mappedRam)}: a saved QEMU guest, at an offset, loaded by QEMU`,
    async (lab) => {
      const { file, truth } = await corpusStream(lab, 'busy');
      const out = lab.path('out.mapped');
      const uri = `file:${out},offset=0x10000`;
      const { error } = await new Migration({ guest: { kind: 'snapshot-file', file }, uri, mappedRam }).ended;
      assert.equal(error, undefined);
      const ram = readMappedFile(out, 0x10000).blocks.find(({ name }) => name === 'pc.ram')!;
      assert.equal(sha256(ram.content), truth.ramSha256);
      const [mode, options] = loadModes[mappedRam.channels === undefined ? 0 : mappedRam.directIo ? 2 : 1]!;
      const fresh = await corpusDestination(lab, 'busy');
      await fresh.migrateIncoming(uri, options);
      await fresh.waitMigration();
      await fresh.resume();
      assert.equal(await fresh.verifyAll(), 0, mode);
    },
  );
}
