// What `serve` and `clone --by serve` refuse before anybody hears of them. What they do is tested with a real QEMU, in
// test/interop/serve.test.ts and clone.test.ts.

import assert from 'node:assert/strict';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { after, test } from 'node:test';
import { RunningCommand } from '../../test/command.js';
import { patternPage, StreamBuilder, testDevice } from '../../test/streams.js';
import { refusePinningCommand } from '../migration/postcopy-obstacles.js';

const base = fs.mkdtempSync(path.join(os.tmpdir(), 'ramferry-serve-'));
after(() => fs.rmSync(base, { recursive: true }));

const savedGuest = (...devices: readonly string[]): string => savedWith(devices);

const savedWith = (devices: readonly string[], iterable: readonly string[] = []): string => {
  const builder = new StreamBuilder().header().ramStart([{ name: 'pc.ram', usedLength: 16 * 4096 }]);
  for (const name of iterable) {
    builder.iterable(name);
  }
  const { bytes } = builder
    .part([{ block: 'pc.ram', page: 3, kind: 'normal', content: patternPage(3) }])
    .end()
    .devices(devices.map((name) => testDevice(name, 20)));
  const file = path.join(base, [...devices, ...iterable].join().replaceAll('/', '-'));
  fs.writeFileSync(file, bytes);
  return file;
};

const errorOf = async (...args: readonly string[]): Promise<Record<string, string>> => {
  const { status, stdout } = await new RunningCommand([...args, '--json']).ended;
  const { error } = JSON.parse(stdout) as { error: Record<string, string> };
  return { ...error, status: String(status) };
};

const nowhere = `unix:${path.join(base, 'nobody')}`;

test('a guest with a VFIO device is not served, unless it runs there already', async () => {
  const file = savedGuest('timer', '0000:00:04.0/vfio');
  const refused = await errorOf('serve', file, nowhere);
  assert.deepEqual([refused['status'], refused['code']], ['3', 'POSTCOPY_OBSTACLE']);
  assert.match(refused['message']!, /pins its memory/);
  assert.match(refused['hint']!, /ramferry send/);
  assert.equal((await errorOf('serve', file, nowhere, '--recover'))['code'], 'NOT_FOUND');
  assert.equal((await errorOf('serve', savedGuest('timer', 'vfio-less'), nowhere))['code'], 'NOT_FOUND');
  const iterating = await errorOf('serve', savedWith(['timer'], ['0000:00:05.0/vfio']), nowhere);
  assert.deepEqual([iterating['status'], iterating['code']], ['3', 'POSTCOPY_OBSTACLE']);
});

test('serve goes where somebody can ask, and nowhere else', async () => {
  const file = savedGuest('timer');
  for (const uri of ['file:/tmp/x', 'exec:cat', '-']) {
    const { status, code } = await errorOf('serve', file, uri);
    assert.deepEqual([status, code], ['2', 'NOT_A_DESTINATION'], uri);
  }
});

test('a QEMU that pins guest memory gets no served guest', () => {
  const qemu = ['qemu-system-x86_64', '-m', '1G'];
  for (const pinning of [
    ['-device', 'vfio-pci,host=01:00.0'],
    ['-device', '{"driver":"vfio-pci","host":"01:00.0"}'],
    ['-netdev', 'vhost-vdpa,id=n0,vhostdev=/dev/vhost-vdpa-0'],
    ['-netdev', 'type=vhost-vdpa,id=n0'],
    ['-drive', 'file=nvme://0000:01:00.0/1,if=virtio'],
    ['-blockdev', 'nvme,node-name=n,device=0000:01:00.0,namespace=1'],
    ['-overcommit', 'mem-lock=on'],
  ]) {
    assert.throws(() => refusePinningCommand([...qemu, ...pinning]), { code: 'POSTCOPY_OBSTACLE' }, pinning.join(' '));
  }
  refusePinningCommand([...qemu, '-netdev', 'user,id=n0', '-device', 'virtio-net-pci', '-overcommit', 'cpu-pm=on']);
});
