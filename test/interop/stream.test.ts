// ramferry and real QEMU, in QEMU's stream format: files read and verified, a live guest received, a saved guest sent.

import assert from 'node:assert/strict';
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { basename, dirname } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { type CorpusKind, corpusDestination, corpusStream, startFromCorpus } from './corpus.js';
import { interopTest, type Lab, type LabGuest, liveInteropTest } from './lab.js';
import { Ramferry, type RamferryExit } from './ramferry.js';
import { type ReferenceStream, readReference, sha256 } from './reference-reader.js';
import { ALL_RELEASES } from './releases.js';

/** The JSON of a verb that succeeded; what went wrong otherwise. */
const document = ({ status, signal, stdout, stderr }: RamferryExit): Record<string, unknown> => {
  assert.deepEqual({ status, signal }, { status: 0, signal: null }, `${stdout}\n${stderr}`);
  return JSON.parse(stdout) as Record<string, unknown>;
};

const byName = (a: { name: string }, b: { name: string }): number => (a.name < b.name ? -1 : 1);

/** The blocks as `inspect --digest --json` shall list them, counted by the reference reader. */
const expectedBlocks = (stream: ReferenceStream) =>
  [...stream.blocks.values()]
    .map(({ name, usedLength, bytes, stored }) => ({
      name,
      usedLength,
      pageSize: 4096,
      presentPages: stored.filter((kind) => kind === 2).length,
      zeroPages: stored.filter((kind) => kind === 1).length,
      absentPages: stored.filter((kind) => kind === 0).length,
      sha256: sha256(bytes),
    }))
    .sort(byName);

/** What every x86 machine that QEMU 7.2 and 10 build has as RAM blocks (spec/qemu-wire-format.md 2.1). */
const COMMON_BLOCKS = [
  '/rom@etc/acpi/rsdp',
  '/rom@etc/acpi/tables',
  '/rom@etc/table-loader',
  'pc.bios',
  'pc.ram',
  'pc.rom',
];

for (const kind of ['plain', 'xbzrle', 'tiny', 'devices'] satisfies CorpusKind[]) {
  interopTest(
    `inspect: the ${kind} file of QEMU, named to the last page and section`,
    async (lab) => {
      const { file, truth } = await corpusStream(lab, kind);
      const shown = document(await Ramferry.run(lab, 'inspect', file, '--digest', '--json')) as {
        blocks: { name: string; sha256: string; presentPages: number }[];
        ram: Record<string, number>;
        devices: unknown[];
        [name: string]: unknown;
      };
      const stream = readReference(file);
      const blocks = expectedBlocks(stream);
      const sum = (field: 'usedLength' | 'presentPages' | 'zeroPages' | 'absentPages'): number =>
        blocks.reduce((total, block) => total + block[field], 0);

      assert.deepEqual([...shown.blocks].sort(byName), blocks);
      assert.deepEqual(shown.ram, {
        totalBytes: sum('usedLength'),
        pageSize: 4096,
        presentPages: sum('presentPages'),
        zeroPages: sum('zeroPages'),
        absentPages: sum('absentPages'),
      });
      assert.deepEqual(shown.devices, stream.sections);
      const { container, format, streamVersion, machine, targetPageSize, capabilities, complete, warnings } = shown;
      assert.deepEqual(
        { container, format, streamVersion, machine, targetPageSize, capabilities, complete, warnings },
        {
          ...{ container: 'qemu', format: 'stream', streamVersion: 3, machine: truth.machine, targetPageSize: 4096 },
          ...{ capabilities: [], complete: true, warnings: [] },
        },
      );

      // Not only what the reference reader says: what QEMU itself holds.
      const digests = (list: readonly { name: string; sha256: string }[]) =>
        list.map(({ name, sha256: digest }) => ({ name, digest })).sort(byName);
      assert.deepEqual(digests(shown.blocks), digests(truth.blocks));
      if (truth.ramSha256 !== undefined) {
        assert.equal(shown.blocks.find(({ name }) => name === 'pc.ram')?.sha256, truth.ramSha256);
      }
      const names = shown.blocks.map(({ name }) => name);
      assert.deepEqual(
        COMMON_BLOCKS.filter((name) => !names.includes(name)),
        [],
      );
    },
    ALL_RELEASES,
  );
}

interopTest('inspect without --json names every block and section', async (lab) => {
  const { file } = await corpusStream(lab, 'devices');
  const { status, stdout } = await Ramferry.run(lab, 'inspect', file);
  assert.equal(status, 0);
  const stream = readReference(file);
  for (const name of [...stream.blocks.keys(), ...stream.sections.map((section) => section.name)]) {
    assert.ok(stdout.includes(name), name);
  }
});

interopTest('verify: real files are whole; a cut one is status 3 with an offset', async (lab) => {
  for (const kind of ['xbzrle', 'tiny', 'devices'] satisfies CorpusKind[]) {
    const { file } = await corpusStream(lab, kind);
    document(await Ramferry.run(lab, 'verify', file, '--json'));
  }
  const { file } = await corpusStream(lab, 'tiny');
  const cut = lab.path('cut.mig');
  writeFileSync(cut, readFileSync(file).subarray(0, 100_000));
  const { status, stdout } = await Ramferry.run(lab, 'verify', cut, '--json');
  assert.equal(status, 3);
  const { error } = JSON.parse(stdout) as { error: { code: string; message: string; offset: number; file: string } };
  assert.match(error.code, /^[A-Z][A-Z_]+$/);
  assert.ok(error.offset > 0 && error.offset <= 100_000, `offset ${error.offset}`);
  assert.equal(error.file, cut);
});

/** A guest that arrived is the one that left: it runs on, and its verifier finds every page as it was. */
const assertRunsOn = async (guest: LabGuest, heartbeatBefore: number): Promise<void> => {
  assert.equal(await guest.verifyAll(), 0);
  assert.ok(guest.heartbeat() > heartbeatBefore, `${guest.heartbeat()} > ${heartbeatBefore}`);
  assert.equal(await guest.status(), 'running');
};

/** Nothing that could be mistaken for an output file lies in its folder. */
const assertNoOutput = (out: string): void => {
  assert.equal(existsSync(out), false);
  const left = readdirSync(dirname(out)).filter(
    (name) => name.endsWith('.mig') && name.startsWith(basename(out, '.mig')),
  );
  assert.deepEqual(left, []);
};

const receive = async (lab: Lab, out: string): Promise<{ ramferry: Ramferry; uri: string }> => {
  const ramferry = Ramferry.start(lab, 'receive', `unix:${lab.path('receive')}`, out, '--json');
  return { ramferry, uri: await ramferry.listening() };
};

for (const returnPath of [true, false]) {
  const how = `return path ${returnPath ? 'on' : 'off'}`;

  liveInteropTest(
    `receive, ${how}: a guest churning 300 MB is saved live, and a fresh QEMU runs it on`,
    async (lab) => {
      const ramFile = lab.path('source.ram');
      const source = await startFromCorpus(lab, 'busy', lab.release, { ramFile });
      await source.verifyAll();
      const out = lab.path('out.mig');
      const { ramferry, uri } = await receive(lab, out);
      await source.migrate(uri, { capabilities: { 'return-path': returnPath } });
      const info = await source.waitMigration();
      assert.ok(info.ram!['dirty-sync-count'] >= 2);
      const result = document(await ramferry.exited);
      assert.equal(result['status'], 'completed');
      assert.equal(await source.status(), 'postmigrate');
      assert.equal(source.bad(), 0);

      const blocks = document(await Ramferry.run(lab, 'inspect', out, '--digest', '--json'))['blocks'] as {
        name: string;
        sha256: string;
      }[];
      assert.equal(blocks.find(({ name }) => name === 'pc.ram')?.sha256, sha256(readFileSync(ramFile)));

      const heartbeat = source.heartbeat();
      await source.qemu.quit();
      const fresh = await corpusDestination(lab, 'busy');
      await fresh.loadStream(out);
      await assertRunsOn(fresh, heartbeat);
    },
  );

  interopTest(`send, ${how}: into qemu -incoming tcp:, memory equal, the guest runs on`, async (lab) => {
    const { file, truth } = await corpusStream(lab, 'busy');
    const ramFile = lab.path('destination.ram');
    const destination = await corpusDestination(lab, 'busy', lab.release, { ramFile });
    const uri = await destination.listenTcp({ capabilities: { 'return-path': returnPath } });
    const result = document(await Ramferry.run(lab, 'send', file, uri, '--json'));
    assert.equal(result['status'], 'completed');
    await destination.waitMigration();
    // The file says `paused`, so nothing has touched the memory yet.
    assert.equal(await destination.status(), 'paused');
    assert.equal(sha256(readFileSync(ramFile)), truth.ramSha256);
    await destination.resume();
    await assertRunsOn(destination, -1);
  });

  interopTest(`receive killed midway, ${how}: the guest runs on at the source, no file is left`, async (lab) => {
    const source = await startFromCorpus(lab, 'busy');
    await source.verifyAll();
    const out = lab.path('out.mig');
    const { ramferry, uri } = await receive(lab, out);
    await source.migrate(uri, {
      capabilities: { 'return-path': returnPath },
      parameters: { 'max-bandwidth': 50e6 },
    });
    await source.waitMigration(['active']);
    await delay(1000);
    ramferry.kill('SIGKILL');
    await source.waitMigration(['failed']);
    const heartbeat = source.heartbeat();
    await assertRunsOn(source, heartbeat);
    assertNoOutput(out);
  });
}

interopTest(
  'receive: a stopped guest, back into the QEMU it came from',
  async (lab) => {
    const { truth } = await corpusStream(lab, 'plain');
    const source = await corpusDestination(lab, 'plain');
    await source.loadStream((await corpusStream(lab, 'plain')).file);
    const out = lab.path('out.mig');
    const { ramferry, uri } = await receive(lab, out);
    await source.migrate(uri, { capabilities: { 'return-path': true } });
    await source.waitMigration();
    document(await ramferry.exited);
    await source.qemu.quit();
    const ramFile = lab.path('destination.ram');
    const fresh = await corpusDestination(lab, 'plain', lab.release, { ramFile });
    await fresh.loadStream(out);
    assert.equal(sha256(readFileSync(ramFile)), truth.ramSha256);
    await fresh.resume();
    await assertRunsOn(fresh, -1);
  },
  ['7.2'],
);

// XBZRLE pages are resolved by us: a receiver that has no page yet could not apply a delta.
interopTest(
  'send: a file with XBZRLE pages, over a unix socket',
  async (lab) => {
    const { file, truth } = await corpusStream(lab, 'xbzrle');
    const ramFile = lab.path('destination.ram');
    const destination = await corpusDestination(lab, 'xbzrle', lab.release, { ramFile });
    const uri = `unix:${lab.path('incoming')}`;
    // The file says `running`: a stopped destination stays so.
    await destination.stop();
    await destination.migrateIncoming(uri);
    document(await Ramferry.run(lab, 'send', file, uri, '--json'));
    await destination.waitMigration();
    assert.equal(sha256(readFileSync(ramFile)), truth.blocks.find(({ name }) => name === 'pc.ram')?.sha256);
    // 7.2's live stream may lack guest writes (corpus.ts), so its guest cannot be asked to verify itself.
    if (lab.release !== '7.2') {
      await destination.resume();
      await assertRunsOn(destination, -1);
    }
  },
  ALL_RELEASES,
);

interopTest(
  'receive: a migration that the source cancels is status 1, and a file that was there stays',
  async (lab) => {
    const source = await startFromCorpus(lab, 'busy');
    const out = lab.path('out.mig');
    writeFileSync(out, 'precious');
    const { ramferry, uri } = await receive(lab, out);
    await source.migrate(uri, { parameters: { 'max-bandwidth': 50e6 } });
    await source.waitMigration(['active']);
    await delay(500);
    await source.qmp.execute('migrate_cancel');
    await source.waitMigration(['cancelled']);
    const { status, stdout } = await ramferry.exited;
    assert.equal(status, 1);
    assert.match((JSON.parse(stdout) as { error: { code: string } }).error.code, /^[A-Z][A-Z_]+$/);
    assert.equal(readFileSync(out, 'utf8'), 'precious');
    await assertRunsOn(source, source.heartbeat());
  },
);
