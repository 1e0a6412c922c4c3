// A real QEMU 10 guest with a virtio-mem device: a region of 4 GiB of which 512 MiB are plugged, and used by the guest.

import assert from 'node:assert/strict';
import { statSync } from 'node:fs';
import { deviceStates } from '../../src/format/stream/index.js';
import { decodeVirtioMemSizes, decodeVirtioState, memoryDevices } from '../../src/format/virtio/index.js';
import { openSnapshotFile } from '../../src/memory-file/open-snapshot-file-node.js';
import { type Lab, type LabGuest, liveInteropTest, poll } from './lab.js';
import { Ramferry } from './ramferry.js';

const MIB = 2 ** 20;
const REGION = 4096 * MIB;
const PLUGGED = 512 * MIB;
const DEVICE = '/machine/peripheral/vm0';

/** The churner starts when there is memory for it: filling and freeing comes first. */
const machine = {
  memory: 256,
  workload: 'fillfree:60,fillfree:60,churn:400:40',
  heartbeatMs: 100,
  kernelArguments: 'online=1',
  extraArguments: [
    ...['-m', '256M,maxmem=8G', '-object', `memory-backend-ram,id=vmem0,size=${REGION}`],
    ...['-device', 'virtio-mem-pci,id=vm0,memdev=vmem0,requested-size=0'],
  ],
};

const request = (guest: LabGuest, bytes: number): Promise<unknown> =>
  guest.qmp.execute('qom-set', { path: DEVICE, property: 'requested-size', value: bytes });

const pluggedSize = (guest: LabGuest): Promise<unknown> =>
  guest.qmp.execute('qom-get', { path: DEVICE, property: 'size' });

const waitPlugged = (guest: LabGuest, bytes: number): Promise<boolean> =>
  poll(
    async () => ((await pluggedSize(guest)) === bytes ? true : undefined),
    () => `the guest has not plugged ${bytes} bytes`,
  );

const startGuest = async (lab: Lab): Promise<LabGuest> => {
  const guest = await lab.startGuest(machine);
  await guest.waitSerial(/INIT up/);
  await request(guest, PLUGGED);
  await guest.waitReady();
  assert.equal(await pluggedSize(guest), PLUGGED);
  return guest;
};

/** Sends a file into a new QEMU, whose guest has to go on. */
const resume = async (lab: Lab, file: string): Promise<LabGuest> => {
  const guest = await lab.startGuest({ ...machine, incoming: 'defer' });
  const uri = await guest.listenTcp({ capabilities: { 'return-path': true } });
  const { status, stdout, stderr } = await Ramferry.run(lab, 'send', file, uri, '--json');
  assert.equal(status, 0, stderr);
  const document = JSON.parse(stdout) as { ram: { transferred: number }; ramferry: { discardedPages: number } };
  assert.ok(document.ramferry.discardedPages >= (REGION - PLUGGED) / 4096);
  // A mark for each page that is not plugged would be 8 MiB.
  assert.ok(document.ram.transferred < PLUGGED + 256 * MIB, `${document.ram.transferred} bytes`);
  await guest.waitMigration();
  await assertGoesOn(guest);
  return guest;
};

const assertGoesOn = async (guest: LabGuest): Promise<void> => {
  await guest.resume().catch(() => {});
  assert.equal(await guest.verifyAll(), 0);
  assert.equal(await pluggedSize(guest), PLUGGED);
};

interface Block {
  readonly usedLength: number;
  readonly presentPages: number;
  readonly zeroPages: number;
  readonly absentPages: number;
}

const inspect = async (lab: Lab, file: string): Promise<Block> => {
  const { status, stdout, stderr } = await Ramferry.run(lab, 'inspect', file, '--json');
  assert.equal(status, 0, stderr);
  const { blocks, memoryDevices: devices } = JSON.parse(stdout) as { blocks: Block[]; memoryDevices: object[] };
  assert.deepEqual(devices, [{ name: '0000:00:02.0', regionSize: REGION, blockSize: 2 * MIB, pluggedSize: PLUGGED }]);
  return blocks.find(({ usedLength }) => usedLength === REGION)!;
};

liveInteropTest(
  'virtio-mem, a live QEMU received as a stream and sent back: only what is plugged moves',
  async (lab) => {
    const source = await startGuest(lab);
    const out = lab.path('out.mig');
    const ramferry = Ramferry.start(lab, 'receive', `unix:${lab.path('in')}`, out, '--json');
    await source.migrate(await ramferry.listening(), { capabilities: { 'return-path': true } });
    await source.waitMigration();
    assert.equal((await ramferry.exited).status, 0);
    await source.qemu.quit();

    const { presentPages, zeroPages, absentPages } = await inspect(lab, out);
    assert.deepEqual([absentPages, presentPages + zeroPages], [(REGION - PLUGGED) / 4096, PLUGGED / 4096]);
    // Both device sections say what QMP does.
    const { snapshot, close } = await openSnapshotFile(out);
    const [device] = memoryDevices(snapshot.summary);
    assert.deepEqual([device!.name, device!.regionSize, device!.pluggedSize], ['0000:00:02.0', REGION, PLUGGED]);
    const states = deviceStates(snapshot.summary.tail, snapshot.summary.devices);
    const saved = decodeVirtioState(states.find(({ name }) => name === '0000:00:02.0/virtio-mem')!.body, {
      transport: 'pci',
      fieldBytes: 16,
    });
    assert.equal(decodeVirtioMemSizes(saved.fields).requestedSize, PLUGGED);
    assert.ok(saved.state.queues[0]!.next > 0);
    assert.equal(saved.state.features & (1n << 32n), 1n << 32n);
    close();

    const guest = await resume(lab, out);
    await request(guest, PLUGGED + 128 * MIB);
    await waitPlugged(guest, PLUGGED + 128 * MIB);
    assert.equal(await guest.verifyAll(), 0);
  },
);

liveInteropTest('virtio-mem, mapped-ram of QEMU and of ours: inspected, converted, sent, loaded', async (lab) => {
  const source = await startGuest(lab);
  await source.stop();
  const saved = lab.path('saved.mapped');
  await source.saveStream(saved, { capabilities: { 'mapped-ram': true } });
  await source.qemu.quit();
  const { presentPages, absentPages } = await inspect(lab, saved);
  assert.ok(presentPages > 0 && presentPages <= PLUGGED / 4096);
  assert.equal(presentPages + absentPages, REGION / 4096);

  const converted = lab.path('converted.mig');
  assert.equal((await Ramferry.run(lab, 'convert', saved, converted, '--to', 'stream')).status, 0);
  const { absentPages: discarded } = await inspect(lab, converted);
  assert.equal(discarded, (REGION - PLUGGED) / 4096, 'convert wrote marks of discarded pages');
  const guest = await resume(lab, saved);

  // And back, live, into a mapped-ram file that QEMU loads by itself.
  const out = lab.path('out.mapped');
  const ramferry = Ramferry.start(lab, 'receive', `unix:${lab.path('in')}`, out, '--to', 'mapped-ram', '--json');
  await guest.migrate(await ramferry.listening(), { capabilities: { 'return-path': true } });
  await guest.waitMigration();
  assert.equal((await ramferry.exited).status, 0);
  await guest.qemu.quit();
  assert.ok(statSync(out).blocks * 512 < PLUGGED + 256 * MIB, `${statSync(out).blocks * 512} bytes on disk`);
  const last = await lab.startGuest({ ...machine, incoming: 'defer' });
  await last.loadStream(out, { capabilities: { 'mapped-ram': true } });
  await assertGoesOn(last);
});
