// Guests whose RAM is mapped out of a mapped-ram file, on stock QEMU: they run at once, and their verifiers stay quiet.

import assert from 'node:assert/strict';
import { MapRestore } from '../../src/monitor/map-restore.js';
import { interopTest, type Lab, LabGuest, qemuProgram } from './lab.js';

const mappedRam = { capabilities: { 'mapped-ram': true } };
const workload = 'churn:200:20';

/** The command line of a lab guest, without its monitor; `serial` is a file. */
const labCommand = async (lab: Lab, memory: number, serial: string): Promise<string[]> => [
  await qemuProgram('10'),
  ...['-accel', 'tcg', '-nodefaults', '-no-user-config', '-display', 'none', '-machine', 'pc', '-m', `${memory}M`],
  ...['-kernel', lab.toolbox.kernel, '-initrd', lab.toolbox.initramfs],
  ...['-chardev', `file,id=serial0,path=${serial}`, '-serial', 'chardev:serial0'],
];

/** A busy guest, saved while it runs. */
const saveBusyGuest = async (lab: Lab, file: string, memory: number): Promise<void> => {
  const source = await lab.startGuest({ memory, workload, heartbeatMs: 50 });
  await source.waitReady();
  await source.stop();
  await source.saveStream(file, mappedRam);
  assert.equal(source.bad(), 0);
  await source.qemu.quit();
};

interopTest('a guest runs from a mapped file', async (lab) => {
  const file = lab.path('guest.mapped');
  await saveBusyGuest(lab, file, 512);
  const serial = lab.path('serial');
  const command = await labCommand(lab, 512, serial);
  const restore = await MapRestore.prepare(file, command);
  lab.onClose(() => restore.close());
  assert.deepEqual([restore.mapped, restore.source, restore.obstacles], [['pc.ram'], 'file', []]);
  const { qemu, resumeMs } = await restore.start(command);
  lab.onClose(() => qemu.kill());
  assert.ok(resumeMs > 0 && resumeMs < 5000);
  const guest = new LabGuest(qemu, '10', serial, workload);
  assert.equal(await guest.verifyAll(), 0);
});
