// What clones of one command line may not share, and what they may. That QEMU locks what is refused here, or damages it, was
// tried (spec cases `clones_same_disk`).

import assert from 'node:assert/strict';
import { tmpdir } from 'node:os';
import { test } from 'node:test';
import { refuseSharedResources } from './exclusive-resources.js';

const check = (...words: readonly string[]): void => refuseSharedResources(['nice', 'qemu-system-x86_64', ...words], 2);
const blockdev = (node: object): string[] => ['-blockdev', JSON.stringify(node)];
const disk = ['-device', 'virtio-blk-pci,drive=d0'];
const qcow2 = (more: object = {}, file: object = {}): string[] =>
  blockdev({ driver: 'qcow2', 'node-name': 'd0', file: { driver: 'file', filename: '/d.qcow2', ...file }, ...more });

const refused: readonly (readonly string[])[] = [
  ['-drive', 'file=/d.qcow2,if=virtio'],
  ['--drive', 'file=/d.qcow2,if=none,id=d0', ...disk],
  ['-drive', 'file=OVMF_VARS.fd,if=pflash,format=raw'],
  ['-drive', 'file=nbd://host/disk,if=virtio'],
  ['-hda', '/d.img'],
  ['-pflash', 'vars.fd'],
  // A device without a medium says nothing about a drive without a name.
  ['-drive', 'file=/d.qcow2,format=qcow2', '-device', 'ide-cd'],
  ['-drive', 'file=/d.qcow2,format=qcow2', '-device', 'virtio-net-pci,share-rw=on'],
  // A number in a name does not make the disk another one.
  ['-drive', 'file=/d.qcow2,if=none,id=d{i}', '-device', 'virtio-blk-pci,drive=d{i}'],
  ['-drive', 'file.driver=nbd,file.host=h,file.export=e,if=none,id=d{i}', '-device', 'virtio-blk-pci,drive=d{i}'],
  [...qcow2({ 'node-name': 'd{i}' }, { 'node-name': 'f{i}' }), '-device', 'virtio-blk-pci,drive=d{i}'],
  [...qcow2({}, { 'pr-manager': 'pr{i}' }), ...disk],
  [...qcow2(), ...disk],
  ['-blockdev', 'qcow2,node-name=d0,file.driver=file,file.filename=/d.qcow2', ...disk],
  [...blockdev({ driver: 'file', 'node-name': 'f0', filename: '/d' }), ...qcow2({ file: 'f0' }), ...disk],
  // The base may be one for all, the overlay may not.
  [...qcow2({ backing: { driver: 'raw', file: { driver: 'file', filename: '/base{i}' } } }), ...disk],
  ['-object', 'memory-backend-file,id=m,size=1G,mem-path=/dev/shm/m,share=on'],
  ['-object', '{"qom-type":"memory-backend-file","id":"m","size":1,"mem-path":"/dev/shm/m","share":true}'],
];

const accepted: readonly (readonly string[])[] = [
  ['-drive', 'file=/d{i}.qcow2,if=virtio', '-hda', 'a{i}.img'],
  ['-drive', 'file=/d.qcow2,if=virtio,readonly=on', '-drive', 'file=/d.qcow2,if=virtio,snapshot=on'],
  ['-drive', 'file=/cd.iso,media=cdrom', '-cdrom', '/cd.iso', '-drive', 'if=none,id=empty'],
  ['-drive', 'file=null-co://,if=virtio', '-snapshot'],
  ['-hda', '/d.img', '-snapshot'],
  ['-drive', 'file=/d.raw,if=none,id=d0', '-device', 'virtio-blk-pci,drive=d0,share-rw=on'],
  [...qcow2({}, { filename: '/d{i}.qcow2' }), ...disk],
  ['-drive', 'file.driver=nbd,file.host=h,file.export=e{i},if=virtio'],
  ['-drive', 'driver=raw,file.driver=null-co,if=virtio'],
  [...blockdev({ driver: 'nbd', 'node-name': 'd0', server: { type: 'unix', path: '/n' }, export: 'e{i}' }), ...disk],
  ['-drive', 'file=/d.qcow2,if=virtio,readonly=true', '-drive', 'file=/d.qcow2,if=virtio,snapshot=y'],
  [...qcow2({ 'read-only': true }), ...disk],
  [...qcow2(), '-device', 'virtio-blk-pci,drive=d0,share-rw=on'],
  [...qcow2(), '-device', 'scsi-cd,drive=d0'],
  // A node that no device writes to.
  qcow2(),
  [
    ...blockdev({ driver: 'file', 'node-name': 'base', filename: '/base' }),
    ...qcow2({ backing: 'base' }, { filename: '{i}' }),
    ...disk,
  ],
  [...blockdev({ driver: 'null-co', 'node-name': 'd0' }), ...disk],
  ['-object', 'memory-backend-file,id=m,size=1G,mem-path=/dev/shm/m{i},share=on'],
  ['-object', 'memory-backend-file,id=m,size=1G,mem-path=/dev/shm/m,share=off'],
  ['-object', `memory-backend-file,id=m,size=1G,mem-path=${tmpdir()},share=on`],
  ['-object', 'memory-backend-memfd,id=m,size=1G,share=on'],
  ['-object', 'memory-backend-file,id=m,size=1M,mem-path=/dev/shm/m,share=on', '-device', 'ivshmem-plain,memdev=m'],
];

test('a disk that all clones would write, and memory that all would share, are refused with their option', () => {
  for (const words of refused) {
    assert.throws(
      () => check(...words),
      { kind: 'usage', code: 'SHARED_BY_CLONES', message: /^-\S+ .* lacks \{i\}/ },
      words.join(' '),
    );
  }
});

test('what is read only, a copy, made for sharing, or numbered is not', () => {
  for (const words of accepted) {
    assert.doesNotThrow(() => check(...words), words.join(' '));
  }
});
