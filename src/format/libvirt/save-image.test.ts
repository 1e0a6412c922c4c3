import assert from 'node:assert/strict';
import { test } from 'node:test';
import { libvirtHead } from '../../../test/libvirt-images.js';
import { RamferryError } from '../../memory/errors.js';
import { isLibvirtImage, readLibvirtImage } from './save-image.js';

test('a header, in either byte order', () => {
  for (const bigEndian of [false, true]) {
    const head = libvirtHead({ format: 5, xmlBytes: 6789, wasRunning: true, bigEndian });
    assert.ok(isLibvirtImage(head));
    assert.deepEqual(readLibvirtImage(head), {
      complete: true,
      version: 2,
      wasRunning: true,
      format: 'zstd',
      xmlBytes: 6789,
      cookieOffset: 0,
      dataOffset: 92 + 6789,
    });
  }
  const partial = readLibvirtImage(libvirtHead({ magic: 'LibvirtQemudPart', format: 6 }));
  assert.deepEqual([partial.complete, partial.wasRunning, partial.format], [false, false, 'sparse']);
  assert.equal(isLibvirtImage(Buffer.from('LibvirtQemudSav')), false);
});

test('refused with offset and value', () => {
  for (const [head, code, offset, value] of [
    [libvirtHead({ format: 0 }).subarray(0, 91), 'LIBVIRT_INCOMPLETE', 91, undefined],
    [libvirtHead({ format: 0, version: 4 }), 'LIBVIRT_VERSION', 16, 4],
    [libvirtHead({ format: 7 }), 'LIBVIRT_FORMAT', 28, 7],
    [libvirtHead({ format: 0, xmlBytes: 0xffff_ffff }), 'LIBVIRT_HEADER', 20, 0xffff_ffff],
  ] as const) {
    assert.throws(
      () => readLibvirtImage(head),
      (error) => {
        assert.ok(error instanceof RamferryError);
        assert.deepEqual([error.kind, error.code, error.offset, error.value], ['invalid', code, offset, value]);
        return true;
      },
    );
  }
});
