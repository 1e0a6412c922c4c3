// Files that real QEMUs of many architectures and ages left behind: their memory is what those QEMUs had.

import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { join } from 'node:path';
import { test } from 'node:test';
import { DescribedDevices } from '../../src/format/stream/device-fields.js';
import { pageIndex } from '../../src/memory/units.js';
import { openSnapshotFile } from '../../src/memory-file/open-snapshot-file-node.js';
import { recordedFiles, recordedFolder } from './recorded-files.js';

for (const recorded of recordedFiles()) {
  test(`${recorded.file}: the memory of ${recorded.machine || 'an old machine'} (QEMU ${recorded.qemu})`, async () => {
    const { snapshot, container, close } = await openSnapshotFile(join(recordedFolder, recorded.file));
    try {
      assert.equal(container.libvirt?.format, recorded.libvirt);
      const { targetPageSize, blocks } = snapshot.setup;
      assert.deepEqual([snapshot.configuration.machine, targetPageSize], [recorded.machine, recorded.pageSize]);
      const { index, usedLength } = blocks.find(({ name }) => name === recorded.block)!;
      const content = new Uint8Array(usedLength).fill(0xee);
      snapshot.readPages(index, pageIndex(0), usedLength / targetPageSize, content);
      const known = content.subarray(0, recorded.bytes);
      assert.equal(createHash('sha256').update(known).digest('hex'), recorded.sha256);
      assert.ok(content.subarray(recorded.bytes).every((byte) => byte === 0));
      const devices = new DescribedDevices(snapshot.summary);
      assert.ok(devices.sections.length > 0);
      // All their device state can be read by name, too, but for the oldest, which do not describe it.
      for (const section of devices.isDescribed ? devices.sections : []) {
        devices.fields(section);
      }
    } finally {
      close();
    }
  });
}
