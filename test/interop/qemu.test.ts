// The lab checks itself: that both QEMUs run the guest, that a migration QEMU to QEMU keeps its verifier quiet, and
// that the verifier is not blind.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { copyFileSync, existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import net from 'node:net';
import { text } from 'node:stream/consumers';
import { RamferryError } from '../../src/memory/errors.js';
import { QemuProcess } from '../../src/qemu/qemu-process.js';
import { QmpCommandError } from '../../src/qemu/qmp-client.js';
import type { MigrationStatus } from '../../src/qemu/qmp-commands.js';
import { type CorpusKind, corpusDestination, corpusStream } from './corpus.js';
import { interopTest, liveInteropTest, poll } from './lab.js';
import { readReference, sha256 } from './reference-reader.js';
import { ALL_RELEASES, isKnownVersion, versionText } from './releases.js';

interopTest(
  'this version of QEMU is one that the whole suite has passed with',
  async (lab, context) => {
    const { program, version } = await lab.qemu();
    context.diagnostic(`QEMU ${versionText(version)}, ${program}`);
    assert.ok(isKnownVersion(version), `QEMU ${versionText(version)} is new`);
  },
  ALL_RELEASES,
);

interopTest('a QEMU that cannot start says why', async (lab) => {
  const program = await lab.program();
  await assert.rejects(QemuProcess.start([program, '-machine', 'none-such']), (error: unknown) => {
    assert.ok(error instanceof RamferryError);
    assert.equal(error.code, 'QEMU_EXITED');
    assert.match(error.message, /exited with status 1: .*none-such/s);
    return true;
  });
  await assert.rejects(QemuProcess.start(['/nonexistent/qemu']), { code: 'QEMU_EXITED' });
});

for (const end of ['process.exit()', "process.kill(process.pid, 'SIGKILL')"]) {
  interopTest(`a QEMU does not outlive the process that started it, and leaves no file: ${end}`, async (lab) => {
    const script = `
      import { QemuProcess } from ${JSON.stringify(new URL('../../src/qemu/qemu-process.js', import.meta.url).href)};
      const qemu = await QemuProcess.start(JSON.parse(process.argv[1]));
      console.log(qemu.pid);
      ${end};`;
    const command = [await lab.program(), '-S', '-nodefaults', '-display', 'none'];
    const child = spawn(process.execPath, ['--input-type=module', '--eval', script, JSON.stringify(command)], {
      env: { ...process.env, TMPDIR: lab.folder },
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    const pid = Number(await text(child.stdout));
    assert.ok(pid > 0);
    await poll(
      () => (existsSync(`/proc/${pid}`) ? undefined : true),
      () => `process ${pid} still runs`,
    );
    assert.deepEqual(readdirSync(lab.folder), []);
  });
}

interopTest('QEMU refuses a second migrate with the words the specification captured', async (lab) => {
  const guest = await lab.startGuest({ memory: 16 });
  assert.deepEqual(await guest.qmp.execute('query-migrate'), {});
  await guest.saveStream(lab.path('out.mig'));
  // Between `completed` and this state QEMU does not refuse in these words.
  assert.equal(await guest.status(), 'postmigrate');
  await assert.rejects(guest.qmp.execute('migrate', { uri: 'unix:x' }), (error: unknown) => {
    assert.ok(error instanceof QmpCommandError);
    assert.equal(error.errorClass, 'GenericError');
    return /paused due to previous migration/.test(error.description);
  });
  assert.deepEqual(await guest.qemu.quit(), { code: 0, signal: null });
});

// `failing` since 11.0, in front of `failed`.
interopTest(
  'a migration that nobody takes is reported in states that the types name, and ends as failed',
  async (lab) => {
    const guest = await lab.startGuest({ memory: 16 });
    const states: string[] = [];
    guest.qmp.onEvent(({ event, data }) => event === 'MIGRATION' && states.push(String(data['status'])));
    const listener = net.createServer((socket) => socket.destroy());
    lab.onClose(() => void listener.close());
    const path = lab.path('deaf');
    await new Promise<void>((resolve) => listener.listen(path, resolve));
    await guest.migrate(`unix:${path}`, { capabilities: { 'return-path': true } });
    await guest.waitMigration(['failed']);
    const known: readonly MigrationStatus[] = ['setup', 'active', 'device', 'failing', 'failed'];
    assert.deepEqual(
      states.filter((state) => !(known as readonly string[]).includes(state)),
      [],
    );
    assert.equal(states.includes('failing'), lab.release === '11');
  },
  ALL_RELEASES,
);

// QEMU 7.2 is migrated stopped: before 9.0 its dirty log misses writes under TCG (corpus.ts says more).
liveInteropTest(
  'QEMU to QEMU: the guest goes on with bad=0',
  async (lab) => {
    const live = lab.release !== '7.2';
    const churn = { memory: 256, workload: 'churn:100:40', heartbeatMs: 50 };
    const socket = `unix:${lab.path('migration')}`;
    const [source, destination] = await Promise.all([
      lab.startGuest(churn),
      lab.startGuest({ ...churn, incoming: socket }),
    ]);
    await source.waitReady();
    if (!live) {
      await source.stop();
    }
    await source.migrate(socket);
    const info = await source.waitMigration();
    assert.ok(info.ram!['dirty-sync-count'] >= 2);
    assert.equal(await source.status(), 'postmigrate');
    if (!live) {
      await destination.waitMigration();
      await destination.resume();
    }
    assert.equal(await destination.verifyAll(), 0);
    assert.ok(destination.heartbeat() > source.heartbeat());
  },
  ALL_RELEASES,
);

// Positive: the untouched file. Negative: the same file with a byte changed in 16 pages of the churner.
interopTest('the verifier in the guest finds corrupted pages', async (lab) => {
  const { file } = await corpusStream(lab, 'plain');
  const load = async (stream: string): Promise<{ bad: number; pages: number }> => {
    const guest = await corpusDestination(lab, 'plain');
    await guest.loadStream(stream);
    await guest.resume();
    const bad = await guest.verifyAll();
    await guest.qemu.quit();
    return { bad, pages: guest.badPages() };
  };
  assert.deepEqual(await load(file), { bad: 0, pages: 0 });

  const corrupted = lab.path('corrupted.mig');
  copyFileSync(file, corrupted);
  const bytes = readFileSync(corrupted);
  // wl.c: the words of a churner's page go v = s, then v = v * 6364136223846793005 + s.
  const isChurned = (offset: number): boolean => {
    const [first, second] = [bytes.readBigUInt64LE(offset), bytes.readBigUInt64LE(offset + 8)];
    return first % 2n === 1n && second === BigInt.asUintN(64, first * 6364136223846793005n + first);
  };
  const churned = readReference(file).normalOffsets.filter(isChurned);
  assert.ok(churned.length >= 60 * 256, `${churned.length} pages of the churner found`);
  for (const offset of churned.slice(1000, 1016)) {
    bytes[offset + 100]! ^= 1;
  }
  writeFileSync(corrupted, bytes);
  const { bad, pages } = await load(corrupted);
  assert.equal(pages, 16);
  assert.ok(bad >= 16);
});

const kinds: readonly CorpusKind[] = ['plain', 'xbzrle', 'tiny', 'devices'];
for (const kind of kinds) {
  interopTest(
    `corpus ${kind}: the reference reader sees what QEMU holds`,
    async (lab) => {
      const { file, truth } = await corpusStream(lab, kind);
      const stream = readReference(file);
      const blocks = [...stream.blocks.values()].map(({ name, usedLength, bytes }) => ({
        name,
        usedLength,
        sha256: sha256(bytes),
      }));
      const byName = (a: { name: string }, b: { name: string }): number => a.name.localeCompare(b.name);
      assert.deepEqual(blocks.sort(byName), [...truth.blocks].sort(byName));
      if (truth.ramSha256 !== undefined) {
        assert.equal(blocks.find(({ name }) => name === 'pc.ram')?.sha256, truth.ramSha256);
      }
      assert.equal(stream.machine, truth.machine);
      if (kind === 'xbzrle') {
        // The statistic counts every page found in the cache, also those that were skipped or overflowed.
        assert.ok(stream.records.xbzrle > 100 && stream.records.xbzrle <= truth.migration['xbzrle-cache']!.pages);
      } else {
        assert.equal(stream.records.xbzrle, 0);
      }
      assert.equal(stream.records.zero, truth.migration.ram!.duplicate);
    },
    ALL_RELEASES,
  );
}
