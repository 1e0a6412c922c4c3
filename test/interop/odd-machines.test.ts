// Machine types whose streams are odd, saved by the QEMU that still has them: without configuration and footers, without a
// description, with a device listed twice.

import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { patternPage } from '../streams.js';
import { interopTest } from './lab.js';
import { Ramferry } from './ramferry.js';

const MEBIBYTES = 16;

interface Inspected {
  readonly machine: string;
  readonly warnings: readonly string[];
  readonly blocks: readonly { readonly name: string; readonly sha256: string }[];
  readonly devices: readonly { readonly name: string }[];
}

interopTest(
  'files of machine types up to 2.3, and of an ISA-only PC: the memory of the guest, the rest a warning',
  async (lab) => {
    for (const [machine, warning] of [
      ['pc-i440fx-2.0', /no configuration.*description is missing/s],
      ['pc-i440fx-2.3', /no configuration/],
      ['isapc', /"isa-ide" \(instance 0\)/],
    ] as const) {
      const ramFile = lab.path(`${machine}.ram`);
      writeFileSync(ramFile, Buffer.concat([patternPage(1), new Uint8Array(5 * 4096), patternPage(2, 9 * 4096)]));
      truncateSync(ramFile, MEBIBYTES * 1024 * 1024);
      const guest = await lab.startGuest({ machine, memory: MEBIBYTES, ramFile });
      await guest.stop();
      const file = lab.path(`${machine}.mig`);
      await guest.saveStream(file);
      const truth = createHash('sha256').update(readFileSync(ramFile)).digest('hex');
      await guest.qemu.quit();
      const { status, stdout, stderr } = await Ramferry.run(lab, 'inspect', file, '--digest', '--json');
      assert.equal(status, 0, `${machine}: ${stdout}\n${stderr}`);
      const { blocks, devices, warnings } = JSON.parse(stdout) as Inspected;
      // A backend's block is called by its whole path in the older ones.
      assert.equal(blocks.find(({ name }) => name.endsWith('pc.ram'))?.sha256, truth, machine);
      assert.match(warnings.join('\n'), warning);
      assert.ok(devices.some(({ name }) => name === 'cpu'));
    }
  },
  ['7.2'],
);
