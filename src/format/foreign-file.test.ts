// Heads of files that people take for migration streams. The compressed ones were made with the tools themselves.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { richStream } from '../../test/streams.js';
import { foreignFile } from './foreign-file.js';

const hex = (digits: string): Uint8Array => Buffer.from(digits, 'hex');

const tarHead = (): Uint8Array => {
  const head = new Uint8Array(512);
  head.set(Buffer.from('guest.mig'));
  head.set(Buffer.from('ustar\x0000'), 257);
  return head;
};

/** As SeaBIOS leaves the first page: vectors into its segment. */
const pcMemory = (): Uint8Array => {
  const head = new Uint8Array(4096);
  for (let vector = 0; vector < 256; vector += 1) {
    head.set([0x53, 0xff, 0x00, 0xf0], 4 * vector);
  }
  return head;
};

for (const [what, head, code, hint] of [
  ['nothing', new Uint8Array(), 'EMPTY_FILE', undefined],
  ['xz', hex('fd377a585a000004e6d6b446'), 'COMPRESSED_FILE', 'Decompress it first: xz -dc x.mig > x.mig.mig'],
  ['bzip2', hex('425a6839314159265359'), 'COMPRESSED_FILE', 'Decompress it first: bzip2 -dc x.mig > x.mig.mig'],
  ['lzop', hex('894c5a4f000d0a1a0a1040'), 'COMPRESSED_FILE', 'Decompress it first: lzop -dc x.mig > x.mig.mig'],
  ['an ELF core, little-endian', hex(`7f454c46020101${'00'.repeat(9)}04003e00`), 'ELF_CORE', undefined],
  ['an ELF core, big-endian', hex(`7f454c46020201${'00'.repeat(9)}00040015`), 'ELF_CORE', undefined],
  ['an ELF program', hex(`7f454c46020101${'00'.repeat(9)}03003e00`), 'ELF_FILE', undefined],
  ['kdump', Buffer.from('KDUMP   \x06\0\0\0'), 'KDUMP_FILE', undefined],
  ['LiME', hex('454d694c01000000'), 'LIME_FILE', undefined],
  ['AVML', hex('41564d4c02000000'), 'AVML_FILE', undefined],
  ['a Windows crash dump', Buffer.from('PAGEDU64'), 'WINDOWS_DUMP', undefined],
  ['VMware .vmss', hex('d2bed2be08000000'), 'VMWARE_STATE', undefined],
  ['VMware .vmsn', hex('d3bed3be08000000'), 'VMWARE_STATE', undefined],
  ['Xen, libxl', Buffer.from('LibxlFmt\0\0\0\x02'), 'XEN_SAVE', undefined],
  ['Xen, xl', Buffer.from('Xen saved domain, xl format\n \0 \r'), 'XEN_SAVE', undefined],
  ['Xen, libxc', hex('ffffffffffffffff58454e46'), 'XEN_SAVE', undefined],
  ['VirtualBox .sav', Buffer.from('\x7fVirtualBox SavedState V2.0\n'), 'VIRTUALBOX_STATE', undefined],
  ['v86', hex('768676860100000000'), 'V86_STATE', undefined],
  ['Firecracker', hex('0100648684191007'), 'FIRECRACKER_STATE', undefined],
  ['Firecracker on ARM', hex('0000aaaa84191007'), 'FIRECRACKER_STATE', undefined],
  ['Cloud Hypervisor', Buffer.from('{"id":"","snapshots":{}}'), 'CLOUD_HYPERVISOR_STATE', undefined],
  ['tar', tarHead(), 'TAR_FILE', 'See what is in it: tar -tf x.mig'],
  ["a PC's memory", pcMemory(), 'RAW_MEMORY', undefined],
  ['memory that begins with zeros', new Uint8Array(4096), 'RAW_MEMORY', undefined],
  ['a VMDK disk', Buffer.from('KDMV\x01\0\0\0'), 'DISK_IMAGE', undefined],
  ['text', Buffer.from('<domain type="kvm">\n  <name>guest</name>\n'), 'TEXT_FILE', undefined],
] as const) {
  test(`${what} is recognised`, () => {
    const error = foreignFile(head, 'x.mig');
    assert.deepEqual([error?.kind, error?.code, error?.file, error?.offset], ['invalid', code, 'x.mig', 0]);
    assert.match(error!.message, /^x\.mig is .*\.$/);
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
