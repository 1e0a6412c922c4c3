// Heads of files that people take for migration streams. The compressed ones were made with the tools themselves.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { gzipSync } from 'node:zlib';
import { richStream } from '../../test/streams.js';
import { foreignFile } from './foreign-file.js';

const hex = (digits: string): Uint8Array => Buffer.from(digits, 'hex');

for (const [what, head, code, hint] of [
  ['nothing', new Uint8Array(), 'EMPTY_FILE', undefined],
  ['gzip', gzipSync('guest'), 'COMPRESSED_FILE', 'Decompress it first: gzip -dc x.mig > x.mig.mig'],
  ['zstd', hex('28b52ffd0458290000'), 'COMPRESSED_FILE', 'Decompress it first: zstd -dc x.mig > x.mig.mig'],
  ['xz', hex('fd377a585a000004e6d6b446'), 'COMPRESSED_FILE', 'Decompress it first: xz -dc x.mig > x.mig.mig'],
  ['bzip2', hex('425a6839314159265359'), 'COMPRESSED_FILE', 'Decompress it first: bzip2 -dc x.mig > x.mig.mig'],
  ['lzop', hex('894c5a4f000d0a1a0a1040'), 'COMPRESSED_FILE', 'Decompress it first: lzop -dc x.mig > x.mig.mig'],
  ['qcow2', hex('514649fb00000003'), 'DISK_IMAGE', undefined],
  ['an ELF core, little-endian', hex(`7f454c46020101${'00'.repeat(9)}04003e00`), 'ELF_CORE', undefined],
  ['an ELF core, big-endian', hex(`7f454c46020201${'00'.repeat(9)}00040015`), 'ELF_CORE', undefined],
  ['an ELF program', hex(`7f454c46020101${'00'.repeat(9)}03003e00`), 'ELF_FILE', undefined],
  ['kdump', Buffer.from('KDUMP   \x06\0\0\0'), 'KDUMP_FILE', undefined],
  ['text', Buffer.from('<domain type="kvm">\n  <name>guest</name>\n'), 'TEXT_FILE', undefined],
] as const) {
  test(`${what} is recognised`, () => {
    const error = foreignFile(head, 'x.mig');
    assert.deepEqual([error?.kind, error?.code, error?.file, error?.offset], ['invalid', code, 'x.mig', 0]);
    if (hint !== undefined) {
      assert.equal(error?.hint, hint);
    }
  });
}

test('streams, and what nobody knows, are left to the stream reader', () => {
  assert.equal(foreignFile(richStream().bytes, 'x'), undefined);
  assert.equal(foreignFile(hex('deadbeef'), 'x'), undefined);
  // Cut magic.
  assert.equal(foreignFile(hex('1f'), 'x'), undefined);
});
