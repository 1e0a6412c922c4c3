// Whether a guest that comes from a file runs at its destination: by what QEMU saved, by libvirt's flag, by its user.

import assert from 'node:assert/strict';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { after, test } from 'node:test';
import { libvirtHead } from '../../test/libvirt-images.js';
import { StreamBuilder, testDevice } from '../../test/streams.js';
import { savedRunState } from '../format/stream/global-state.js';
import { openSnapshotFile } from '../memory-file/open-snapshot-file-node.js';
import { attachGuest } from './guests.js';

const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'ramferry-guests-'));
after(() => fs.rmSync(folder, { recursive: true }));
let files = 0;

/** `asleep`: it slept before it was paused. */
interface Saved {
  readonly name: string;
  readonly asleep?: boolean;
  /** libvirt's own flag, in an image of libvirt; else the file is QEMU's. */
  readonly flag?: boolean;
}

const write = ({ name, asleep = false, flag }: Saved): string => {
  const body = new Uint8Array(104);
  body[3] = name.length + 1;
  body.set(new TextEncoder().encode(name), 4);
  body.set([1, Number(asleep)], 36);
  const { bytes } = new StreamBuilder()
    .header()
    .ramStart([{ name: 'pc.ram', usedLength: 16 * 4096 }])
    .end()
    .devices([testDevice('cpu', 90), { name: 'globalstate', instance: 0, version: 1, body }, testDevice('rtc', 9)]);
  const file = path.join(folder, `${files++}`);
  fs.writeFileSync(
    file,
    Buffer.concat([flag === undefined ? Buffer.alloc(0) : libvirtHead({ format: 0, wasRunning: flag }), bytes]),
  );
  return file;
};

/** The state that the destination is told, and what is said of the guest here. */
const sent = async (saved: Saved, run: boolean) => {
  const file = write(saved);
  const { guest, facts } = await attachGuest({ kind: 'snapshot-file', file, run });
  const { snapshot, close } = await openSnapshotFile(file);
  const { devices } = snapshot.summary;
  close();
  const tail = guest.saveDevices();
  return { runs: facts?.runs, savedAs: facts?.savedAs, told: savedRunState({ tail, devices })?.name };
};

for (const [what, saved, alone, withRun] of [
  // What QEMU saved.
  ['running', { name: 'running' }, [true, 'running', 'running'], [true, 'running', 'running']],
  ['paused', { name: 'paused' }, [false, 'paused', 'paused'], [true, 'paused', 'running']],
  [
    'asleep (suspended): it is live, and sleeps on',
    { name: 'suspended', asleep: true },
    [true, 'suspended', 'suspended'],
    [true, 'suspended', 'suspended'],
  ],
  [
    'asleep and then paused: when it goes on, it sleeps',
    { name: 'paused', asleep: true },
    [false, 'paused', 'paused'],
    [true, 'paused', 'suspended'],
  ],
  // libvirt pauses every guest before it saves it: its flag says how it was.
  ['running, by libvirt', { name: 'paused', flag: true }, [true, 'running', 'running'], [true, 'running', 'running']],
  ['paused, by libvirt', { name: 'paused', flag: false }, [false, 'paused', 'paused'], [true, 'paused', 'running']],
  [
    'asleep, by libvirt',
    { name: 'paused', asleep: true, flag: true },
    [true, 'running', 'suspended'],
    [true, 'running', 'suspended'],
  ],
  [
    "paused by libvirt's flag, although QEMU saved it as running",
    { name: 'running', flag: false },
    [false, 'running', 'paused'],
    [true, 'running', 'running'],
  ],
] as const) {
  test(`a guest that was saved ${what}`, async () => {
    for (const [run, [runs, savedAs, told]] of [
      [false, alone],
      [true, withRun],
    ] as const) {
      assert.deepEqual(await sent(saved, run), { runs, savedAs, told }, `--run: ${run}`);
    }
  });
}

test('a guest that had ended stays as it is, and is not told to run', async () => {
  for (const name of ['shutdown', 'guest-panicked', 'internal-error']) {
    assert.deepEqual(await sent({ name }, false), { runs: false, savedAs: name, told: name });
    await assert.rejects(sent({ name }, true), { code: 'CANNOT_RUN', value: name });
  }
});
