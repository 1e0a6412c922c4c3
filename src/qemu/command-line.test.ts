// Rewriting command lines. That QEMU accepts what comes out is shown in test/interop/clone.test.ts.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { fillTemplate, hasOption, planMapping, withIncomingDefer, withMappedRam } from './command-line.js';

const MIB = 2 ** 20;
const block = (name: string, mebibytes: number) => ({ name, usedLength: mebibytes * MIB });
const pcBlocks = [block('pc.ram', 1024), block('0000:00:02.0/vga.vram', 16), block('pc.bios', 1)];

const names = (blocks: readonly { name: string }[]): string[] => blocks.map(({ name }) => name);
const file = { path: '/proc/self/fd/4', offset: MIB };

test('a machine that makes its RAM itself gets an object for it', () => {
  const command = ['qemu', '-M', 'pc', '-m', '1G'];
  const { mapped, obstacles } = planMapping(command, pcBlocks);
  assert.deepEqual([names(mapped), obstacles], [['pc.ram'], []]);
  const object =
    `memory-backend-file,id=pc.ram,size=${1024 * MIB},mem-path=/proc/self/fd/4,share=off,` +
    'x-use-canonical-path-for-ramblock-id=off,offset=1048576,readonly=on,rom=off';
  const rest = ['-object', object, '-machine', 'memory-backend=pc.ram'];
  assert.deepEqual(withMappedRam(command, [{ ...mapped[0]!, ...file }]), [...command, '-incoming', 'defer', ...rest]);
  // The size of RAM is in the file, too.
  const small = withMappedRam(['qemu'], [{ ...mapped[0]!, ...file }]);
  assert.deepEqual(small.slice(0, 5), ['qemu', '-incoming', 'defer', '-m', '1024']);
});

test('a file that begins with the block may be opened for writing', () => {
  const [object] = withMappedRam(['qemu'], [{ ...pcBlocks[0]!, path: 'a,b', offset: undefined }]).filter((word) =>
    word.startsWith('memory-backend-file'),
  );
  assert.match(object!, /,mem-path=a,,b,share=off,/);
  assert.doesNotMatch(object!, /offset|readonly|rom=/);
});

test('a comma in a name from the file ends no value', () => {
  const hostile = block('x,readonly=off,share=on.ram', 1024);
  const { mapped } = planMapping(['qemu'], [hostile]);
  const words = withMappedRam(['qemu'], [{ ...mapped[0]!, ...file, path: '/tmp/a,share=on' }]);
  const name = 'x,,readonly=off,,share=on.ram';
  assert.equal(words.at(-1), `memory-backend=${name}`);
  assert.match(
    words.at(-3)!,
    /^memory-backend-file,id=x,,readonly=off,,share=on\.ram,.*mem-path=\/tmp\/a,,share=on,share=off,/,
  );
});

test("the machine's own memory object is made anew, with what is not about its memory kept", () => {
  for (const [given, made] of [
    ['memory-backend-ram,id=ram0,size=1G,prealloc=on,host-nodes=0-1,policy=bind', /,host-nodes=0-1,policy=bind$/],
    [
      '{"qom-type":"memory-backend-ram","id":"ram0","size":1073741824,"host-nodes":[0,1]}',
      /^\{"qom-type":"memory-backend-file",.*"offset":1048576,"readonly":true,"rom":"off","host-nodes":\[0,1\]\}$/,
    ],
  ] as const) {
    const command = ['qemu', '-object', given, '--machine', 'q35,memory-backend=ram0', '-m', '1G'];
    const { mapped } = planMapping(command, [block('ram0', 1024), block('vga.vram', 16)]);
    assert.deepEqual(names(mapped), ['ram0']);
    const rewritten = withMappedRam(command, [{ ...mapped[0]!, ...file }]);
    assert.match(rewritten[2]!, made);
    assert.doesNotMatch(rewritten[2]!, /prealloc/);
    assert.deepEqual(rewritten.slice(3), [...command.slice(3), '-incoming', 'defer']);
  }
});

test('NUMA nodes and pc-dimms are mapped; what others own or share is not, and why', () => {
  const command = [
    'qemu',
    ...['-object', 'memory-backend-ram,id=n0,size=1G', '-object', 'memory-backend-ram,id=n1,size=1G'],
    ...['-numa', 'node,memdev=n0', '-numa', 'node,memdev=n1'],
    ...['-object', 'memory-backend-ram,id=dimm,size=1G', '-device', 'pc-dimm,memdev=dimm'],
    ...['-object', 'memory-backend-ram,id=plug,size=16G', '-device', 'virtio-mem-pci,memdev=plug'],
  ];
  const blocks = ['n0', 'n1', 'dimm', 'plug'].map((name) => block(name, 1024));
  const plan = planMapping(command, blocks);
  assert.deepEqual(names(plan.mapped), ['n0', 'n1', 'dimm']);
  assert.match(plan.obstacles.join(), /"plug" cannot be mapped: its memory is for virtio-mem-pci/);

  for (const object of ['memory-backend-memfd,id=m', 'memory-backend-file,id=m,mem-path=/x,share=on']) {
    const shared = planMapping(['qemu', '-object', object, '-M', 'pc,memory-backend=m'], [block('m', 1024)]);
    assert.deepEqual(shared.mapped, []);
    assert.match(shared.obstacles.join(), /"m" cannot be mapped: it is share=on/);
  }
  assert.match(planMapping(['qemu'], [block('odd', 1)]).obstacles.join(), /None of the RAM blocks "odd"/);
});

test('-incoming is replaced, {i} is filled in everywhere', () => {
  assert.deepEqual(withIncomingDefer(['qemu', '--incoming', 'tcp:0:1', '-S']), ['qemu', '-S', '-incoming', 'defer']);
  assert.deepEqual(fillTemplate(['qemu', 'disk{i}.{i}'], 7), ['qemu', 'disk7.7']);
  assert.deepEqual([hasOption(['qemu', '--S'], 'S'), hasOption(['-S'], 'S')], [true, false]);
});

test('JSON that is none is said to be', () => {
  assert.throws(() => planMapping(['qemu', '-object', '{x'], pcBlocks), { code: 'QEMU_COMMAND', kind: 'usage' });
});
