// What may stand in front of QEMU in a command line.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { hasOption, withIncomingDefer, withMappedRam } from './command-line.js';
import { launchingWords, programIndex } from './launcher.js';

test('QEMU is found behind what becomes it', () => {
  for (const [line, index] of [
    ['qemu-system-x86_64 -m 1G', 0],
    ['./my-vm -m 1G', 0],
    ['nice -n 5 qemu-system-x86_64 -m 1G', 3],
    ['env QEMU_AUDIO_DRV=none LANG=C /usr/libexec/qemu-kvm -m 1G', 3],
    ['taskset -c 0,1 numactl -m 0 -- kvm -name qemu', 7],
    ['/usr/bin/env qemu-system-aarch64', 1],
  ] as const) {
    assert.equal(programIndex(line.split(' ')), index, line);
  }
  assert.deepEqual(launchingWords('nice -n 5 qemu-system-x86_64 -m 1G'.split(' ')), [
    'nice',
    '-n',
    '5',
    'qemu-system-x86_64',
  ]);
});

test('what stays in front of QEMU is refused by name, and so is a launcher of something else', () => {
  for (const [line, pattern] of [
    ['sudo qemu-system-x86_64 -m 1G', /begins with sudo/],
    ['timeout 10 qemu-system-x86_64', /begins with timeout/],
    ['nice sudo qemu-system-x86_64', /has sudo in it/],
    ['nice -n 5 ./my-vm', /none of the words/],
    ['env', /none of the words/],
  ] as const) {
    assert.throws(() => programIndex(line.split(' ')), { kind: 'usage', code: 'QEMU_COMMAND', message: pattern }, line);
  }
});

test("a launcher's options are not taken for QEMU's", () => {
  const command = 'numactl -m 0 -incoming x -S -mem-prealloc qemu-system-x86_64 -m 1G -incoming defer'.split(' ');
  assert.equal(hasOption(command, 'S'), false);
  assert.deepEqual(withIncomingDefer(command), command);
  const mapped = withMappedRam(command, [{ name: 'pc.ram', usedLength: 2 ** 30, path: '/x', offset: undefined }]);
  assert.deepEqual(mapped.slice(0, command.length), command);
  assert.equal(mapped.filter((word) => word === '-m').length, 2);
});
