// One way in for every memory file: what it is is decided by its content.

import assert from 'node:assert/strict';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { after, test } from 'node:test';
import * as zlib from 'node:zlib';
import { startCpuTimer } from '../../test/cpu-time.js';
import { libvirtHead } from '../../test/libvirt-images.js';
import { richMappedRamFile } from '../../test/mapped-ram-builder.js';
import { richStream, testConfiguration } from '../../test/streams.js';
import { mappedRamStart } from '../format/mapped-ram/layout.js';
import { ramBodyEnd, ramPart, streamEnd, streamHeader } from '../format/stream/write.js';
import { fileOffset, pageIndex } from '../memory/units.js';
import { openSnapshotFile } from './open-snapshot-file-node.js';

const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'ramferry-open-'));
after(() => fs.rmSync(folder, { recursive: true }));

const save = (name: string, ...parts: Uint8Array[]): string => {
  const file = path.join(folder, name);
  fs.writeFileSync(file, Buffer.concat(parts));
  return file;
};

const contents = async (operand: string): Promise<Map<string, Uint8Array>> => {
  const { snapshot, close } = await openSnapshotFile(operand);
  const memory = new Map<string, Uint8Array>();
  for (const { index, name, usedLength } of snapshot.setup.blocks) {
    const target = new Uint8Array(usedLength).fill(0xee);
    snapshot.readPages(index, pageIndex(0), usedLength / snapshot.setup.targetPageSize, target);
    memory.set(name, target);
  }
  close();
  return memory;
};

const stream = richStream();
const zstd = (zlib as { zstdCompressSync?: (bytes: Uint8Array) => Buffer }).zstdCompressSync;

test('streams: plain, at an offset, in libvirt images raw and packed', async () => {
  const files = [
    save('plain.mig', stream.bytes),
    `file:${save('offset.mig', new Uint8Array(777), stream.bytes)},offset=777`,
    save('raw.save', libvirtHead({ format: 0 }), stream.bytes),
    save('big-endian.save', libvirtHead({ format: 0, bigEndian: true }), stream.bytes),
    save('gzip.save', libvirtHead({ format: 1 }), zlib.gzipSync(stream.bytes)),
    ...(zstd === undefined ? [] : [save('zstd.save', libvirtHead({ format: 5 }), zstd(stream.bytes))]),
  ];
  for (const file of files) {
    assert.deepEqual(await contents(file), stream.memory, file);
  }
});

// MR-20
test('mapped-ram: plain, at an offset, in a libvirt image', async () => {
  const plain = richMappedRamFile();
  assert.deepEqual(await contents(save('plain.mapped', plain.bytes)), plain.memory);
  const moved = richMappedRamFile({ start: 5092 });
  const file = save('offset.mapped', moved.bytes);
  assert.deepEqual(await contents(`file:${file},offset=5092`), plain.memory);
  moved.bytes.set(libvirtHead({ format: 6 }));
  assert.deepEqual(await contents(save('sparse.save', moved.bytes)), plain.memory);
});

test('4096 blocks, as many as there may be, are opened in no time', async () => {
  const blocks = Array.from({ length: 4096 }, (_, index) => ({ name: `b${index}`, usedLength: 4096 }));
  const head = streamHeader(testConfiguration({ capabilities: ['mapped-ram'] }));
  const { pieces, end } = mappedRamStart(fileOffset(head.length), 1, blocks, 4096);
  const file = save('blocks.mapped', head);
  const descriptor = fs.openSync(file, 'r+');
  const rest = Buffer.concat([ramPart(3, 1), ramBodyEnd(1), streamEnd('')]);
  for (const { position, bytes } of [...pieces, { position: end, bytes: rest }]) {
    fs.writeSync(descriptor, bytes, 0, bytes.length, position);
  }
  fs.closeSync(descriptor);
  const cpuMs = startCpuTimer();
  const { snapshot, close } = await openSnapshotFile(file);
  assert.equal(snapshot.setup.blocks.length, 4096);
  // Of this process, whatever else the machine does: 0.4 s here, most of it the kernel's.
  assert.ok(cpuMs() < 1500, `${cpuMs()} ms`);
  close();
});

test('what cannot be opened says why, with the file', async () => {
  const packed = zlib.gzipSync(stream.bytes);
  for (const [name, bytes, code, hint] of [
    ['cut.save', libvirtHead({ format: 0 }).subarray(0, 50), 'LIBVIRT_INCOMPLETE', undefined],
    [
      'part.save',
      Buffer.concat([libvirtHead({ format: 0, magic: 'LibvirtQemudPart' }), stream.bytes]),
      'LIBVIRT_INCOMPLETE',
      /interrupted/,
    ],
    [
      'bzip2.save',
      libvirtHead({ format: 2 }),
      'COMPRESSED_FILE',
      /^Unpack it: tail -c \+5093 \S+bzip2\.save \| bzip2 -dc > \S+bzip2\.save\.mig$/,
    ],
    ['xz.save', libvirtHead({ format: 3 }), 'COMPRESSED_FILE', /\| xz -dc/],
    ['lzop.save', libvirtHead({ format: 4 }), 'COMPRESSED_FILE', /\| lzop -dc/],
    [
      'cut-gzip.save',
      Buffer.concat([libvirtHead({ format: 1 }), packed.subarray(0, 5000)]),
      'COMPRESSED_DATA',
      undefined,
    ],
    ['not-gzip.save', Buffer.concat([libvirtHead({ format: 1 }), stream.bytes]), 'COMPRESSED_DATA', undefined],
    [
      'gzip-of-cut.save',
      Buffer.concat([libvirtHead({ format: 1 }), zlib.gzipSync(stream.bytes.subarray(0, 9000))]),
      'STREAM_INCOMPLETE',
      undefined,
    ],
    ['nothing-inside.save', libvirtHead({ format: 0 }), 'STREAM_INCOMPLETE', undefined],
  ] as const) {
    const file = save(name, bytes);
    await assert.rejects(openSnapshotFile(file), (error: Error & Record<string, unknown>) => {
      assert.deepEqual([error['kind'], error['code'], error['file']], ['invalid', code, file]);
      if (hint !== undefined) {
        assert.match(String(error['hint']), hint);
      }
      return true;
    });
  }
  await assert.rejects(openSnapshotFile(`file:${save('short.mig', stream.bytes)},offset=99999999`), {
    code: 'EMPTY_FILE',
  });
  await assert.rejects(openSnapshotFile('file:x,offset=y'), { kind: 'usage' });
});

test('unpacking leaves no file behind, whether it succeeds or not', async () => {
  const before = process.env['TMPDIR'];
  const temporary = fs.mkdtempSync(path.join(folder, 'tmp-'));
  process.env['TMPDIR'] = temporary;
  try {
    const { snapshot, close } = await openSnapshotFile(path.join(folder, 'gzip.save'));
    assert.deepEqual(fs.readdirSync(temporary), []);
    assert.equal(snapshot.setup.blocks.length, 3);
    close();
    const aborted = AbortSignal.abort(new Error('enough'));
    await assert.rejects(openSnapshotFile(path.join(folder, 'gzip.save'), { signal: aborted }), /enough/);
    assert.deepEqual(fs.readdirSync(temporary), []);
    process.env['TMPDIR'] = path.join(temporary, 'missing');
    await assert.rejects(openSnapshotFile(path.join(folder, 'gzip.save')), { kind: 'failed' });
  } finally {
    if (before === undefined) {
      delete process.env['TMPDIR'];
    } else {
      process.env['TMPDIR'] = before;
    }
  }
});
