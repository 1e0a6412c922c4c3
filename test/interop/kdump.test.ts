// Our kdump-compressed dump of a saved guest against QEMU's own dump of the same guest, stopped.

import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { openKdump, unflatten } from '../addressed-files.js';
import { interopTest } from './lab.js';
import { Ramferry } from './ramferry.js';

interopTest(
  'kdump: the same page frames, content and registers as in a dump of QEMU',
  async (lab) => {
    const guest = await lab.startGuest({ workload: 'churn:16:8', memory: 96 });
    await guest.waitReady();
    await guest.stop();
    const [stream, flat, theirs, ours] = ['guest.mig', 'flat', 'theirs', 'ours'].map((name) => lab.path(name)) as [
      string,
      string,
      string,
      string,
    ];
    await guest.qmp.execute('dump-guest-memory', { paging: false, protocol: `file:${flat}`, format: 'kdump-zlib' });
    await guest.saveStream(stream);
    writeFileSync(theirs, unflatten(readFileSync(flat)));
    const { status, stderr } = await Ramferry.run(lab, 'convert', stream, ours, '--to', 'kdump');
    assert.equal(status, 0, stderr);
    const [expected, actual] = [openKdump(theirs), openKdump(ours)];
    assert.deepEqual(actual.frames, expected.frames);
    assert.equal(actual.frameEnd, expected.frameEnd);
    assert.equal(actual.processors, expected.processors);
    // Ours are followed by VMCOREINFO, which QEMU knows of only where the guest has a vmcoreinfo device.
    const registers = actual.notes.subarray(0, expected.notes.length);
    assert.ok(expected.notes.length > 0 && registers.equals(expected.notes), 'the notes are those of QEMU');
    for (const frame of expected.frames) {
      assert.ok(actual.page(frame)!.equals(expected.page(frame)!), `page frame ${frame}`);
    }
  },
  ['11'],
);
