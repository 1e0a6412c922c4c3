// Guests started from a file, mapped and served, with a QEMU that a script plays: what is said of the file's digest, and what is
// left behind where a start fails. The real ones are started in test/interop.

import assert from 'node:assert/strict';
import fs from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { after, test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { runCommand } from '../../test/command.js';
import { richStream } from '../../test/streams.js';
import { until } from '../../test/until.js';
import type { Snapshot } from '../format/snapshot.js';
import { openSnapshotFile } from '../memory-file/open-snapshot-file-node.js';
import { MapRestore } from './map-restore.js';
import { writeRestoreStream } from './restore-stream.js';
import { ServeRestore } from './serve-restore.js';

const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'ramferry-restore-'));
after(() => fs.rmSync(folder, { recursive: true }));

const stream = path.join(folder, 'guest.mig');
fs.writeFileSync(stream, richStream().bytes);

/** Says its version, takes the commands of its monitor, and dies when it is told which capabilities to have. */
const qemu = path.join(folder, 'qemu-system-x86_64');
fs.writeFileSync(
  qemu,
  `#!${process.execPath}
if (process.argv.includes('--version')) {
  console.log('QEMU emulator version 10.0.2');
} else {
  const monitor = new (require('node:net').Socket)({ fd: 3 });
  monitor.write('{"QMP":{"version":{"qemu":{"micro":2,"minor":0,"major":10},"package":""},"capabilities":[]}}\\r\\n');
  monitor.on('data', (text) => {
    for (const line of String(text).split('\\n').filter(Boolean)) {
      const { execute, id } = JSON.parse(line);
      if (execute === 'migrate-set-capabilities') {
        console.error('out of luck');
        setTimeout(() => process.exit(1), 200);
        return;
      }
      monitor.write(JSON.stringify({ return: {}, id }) + '\\r\\n');
    }
  });
}
`,
  { mode: 0o700 },
);

const openUnnamed = (): number =>
  fs.readdirSync('/proc/self/fd').filter((name) => {
    try {
      return /\.ramferry-.* \(deleted\)$/.test(fs.readlinkSync(`/proc/self/fd/${name}`));
    } catch {
      return false;
    }
  }).length;

test('a digest of another file: whoever maps or serves the file says that nothing was compared', async () => {
  const mapped = path.join(folder, 'guest.mapped');
  assert.equal((await runCommand('convert', stream, mapped, '--to', 'mapped-ram', '--no-digest')).status, 0);
  for (const prepare of [
    (checksDigest: boolean) => MapRestore.prepare(mapped, [qemu, '-m', '1M'], { checksDigest }),
    (checksDigest: boolean) => ServeRestore.prepare(mapped, { checksDigest }),
  ]) {
    fs.writeFileSync(`${mapped}.digest`, '{"format":"ramferry digest 1"}');
    for (const checksDigest of [true, false]) {
      const guests = await prepare(checksDigest);
      const warnings = [`${mapped}.digest is no digest: the content was not checked.`];
      assert.deepEqual(guests.warnings, checksDigest ? warnings : []);
      guests.close();
    }
    fs.rmSync(`${mapped}.digest`);
    const guests = await prepare(true);
    assert.deepEqual(guests.warnings, []);
    guests.close();
  }
});

test('a QEMU that dies before it listens: nobody goes on trying to connect to it', async () => {
  const source = await ServeRestore.prepare(stream);
  const socket = path.join(folder, 'in.sock');
  await assert.rejects(source.start([qemu], { socket }), { code: 'QEMU_EXITED', message: /out of luck/ });
  let connections = 0;
  const stranger = net.createServer((connection) => {
    connections += 1;
    connection.destroy();
  });
  await new Promise<void>((resolve) => stranger.listen(socket, resolve));
  await delay(200);
  stranger.close();
  source.close();
  assert.equal(connections, 0);
});

test('a restore stream that cannot be written leaves no file open', async () => {
  const { snapshot, container } = await openSnapshotFile(stream);
  const unreadable: Snapshot = Object.create(snapshot, {
    setup: { value: snapshot.setup },
    summary: { value: snapshot.summary },
    configuration: { value: snapshot.configuration },
    counts: { value: (block: number) => snapshot.counts(block) },
    kindOf: { value: (...page: Parameters<Snapshot['kindOf']>) => snapshot.kindOf(...page) },
    nextPresent: { value: (...from: Parameters<Snapshot['nextPresent']>) => snapshot.nextPresent(...from) },
    presentBitmap: { value: (block: number, bits: Uint8Array) => snapshot.presentBitmap(block, bits) },
    forEachDiscarded: {
      value: (...visit: Parameters<Snapshot['forEachDiscarded']>) => snapshot.forEachDiscarded(...visit),
    },
    readPages: {
      value: () => {
        throw new Error('cannot be read');
      },
    },
  });
  const before = openUnnamed();
  await assert.rejects(writeRestoreStream(unreadable, stream, {}), /cannot be read/);
  await until(() => openUnnamed() === before);
  const signal = AbortSignal.abort(new Error('enough'));
  await assert.rejects(writeRestoreStream(snapshot, stream, {}, signal), /enough/);
  await until(() => openUnnamed() === before);
  container.close();
});
