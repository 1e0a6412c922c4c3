// What is found of the kernels that tests invent; test/interop/kernel.test.ts has real ones.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  BANNER,
  putBuffer,
  putRing,
  putText,
  RECORDS,
  RELEASE,
  TestLinux,
  VERSION,
  vmcoreinfoDevice,
  wholeLinux,
} from '../../../test/linux-memory.js';
import { cpuDevices, linuxKernelCpu } from '../../../test/x86-cpu.js';
import { openSnapshot } from '../open-snapshot.js';
import { type KernelAnswer, kernelAnswer } from './kernel-answer.js';
import { placeOf } from './linux-kernel.js';

const ask = (bytes: Uint8Array): Promise<KernelAnswer> =>
  kernelAnswer(
    openSnapshot((at, target) => target.set(bytes.subarray(at, at + target.length)), bytes.length),
    async (scan) => {
      while (scan.advance() > 0) {}
    },
  );

const texts = ({ log }: KernelAnswer): string[] => log!.records.map(({ text }) => text);

test('symbols with either rule for addresses', async () => {
  for (const isPerCpu of [false, true]) {
    const { commandLine, bootId, banner } = await ask(wholeLinux(isPerCpu).stream());
    assert.deepEqual(
      [commandLine, bootId, banner],
      ['root=/dev/vda1 quiet from=memory', 'e4a9b86a-e099-481b-8425-010203040506', BANNER],
    );
  }
});

test('the vmcoreinfo device says where VMCOREINFO is, and memory need not be searched', async () => {
  const more = '\0Linux version 4.0.0 (of a program) #1\n';
  const found = await ask(wholeLinux().stream({ devices: [vmcoreinfoDevice()], more }));
  assert.deepEqual([found.kernel!.foundBy, found.otherBanners, found.banner], ['device', [], BANNER]);
  const misled = await ask(wholeLinux().stream({ devices: [vmcoreinfoDevice(0x10_0000)], more }));
  assert.deepEqual([misled.kernel!.foundBy, misled.otherBanners.length, misled.banner], ['search', 1, BANNER]);
});

test('a kernel without a table of symbols: banner and boot line are found in memory and log', async () => {
  const linux = new TestLinux();
  putRing(linux, RECORDS);
  const answer = await ask(linux.stream({ more: 'Linux version 4.0.0 (me) #1\n' }));
  assert.deepEqual([answer.banner, answer.commandLine, answer.bootId], [BANNER, 'root=/dev/vda1 quiet', undefined]);
  assert.deepEqual(answer.otherBanners, ['Linux version 4.0.0 (me) #1']);
});

test('what begins at the end of a batch of the search is found', async () => {
  // Batches of 1 MiB begin where memory with content does; the image is the first of it, here of 2 MiB.
  for (const before of [0, 3, 9, 13, 14, 30]) {
    const linux = new TestLinux();
    const banner = new TextEncoder().encode('Linux version 3.2.1 (across) #9');
    linux.image.set(banner, 2 ** 20 - before);
    linux.image[2 ** 20 - before + banner.length] = 0;
    const { otherBanners } = await ask(linux.stream());
    assert.deepEqual(otherBanners, ['Linux version 3.2.1 (across) #9'], `${before} bytes before the border`);
  }
});

test('a log that has gone round keeps what is not overwritten', async () => {
  const all = Array.from({ length: 40 }, (_, number) => ({
    timeNs: BigInt(number) * 1000n,
    text: `line ${number}${'.'.repeat(number % 13)}`,
  }));
  const written = [...all.map(({ text }) => text), ''];
  const linux = new TestLinux();
  putRing(linux, [...all, { text: '' }]);
  assert.deepEqual(texts(await ask(linux.stream())), written.slice(-16));

  // Fewer bytes than records.
  const small = new TestLinux();
  putRing(small, all, { countBits: 7, sizeBits: 8 });
  const few = texts(await ask(small.stream()));
  assert.ok(few.length > 5 && few.length < 20);
  assert.deepEqual(few, all.map(({ text }) => text).slice(-few.length));
});

test('records that are being written, or that the ring had no room for, are left out', async () => {
  const linux = new TestLinux();
  const { descriptors } = putRing(linux, RECORDS, { firstId: 0n });
  const view = linux.view(descriptors);
  view.setBigUint64(0, 0n, true);
  view.setBigUint64(24 + 8, 1n, true);
  view.setBigUint64(24 + 16, 1n, true);
  assert.deepEqual(texts(await ask(linux.stream())), [RECORDS[2]!.text]);
});

test('the records of Linux 3.5 to 5.9; lines in pieces are one', async () => {
  const linux = new TestLinux();
  const all = Array.from({ length: 20 }, (_, number) => ({
    timeNs: BigInt(number) * 1_000_000n,
    text: `old ${number}`,
  }));
  putBuffer(linux, [...all, { text: 'one ', flags: 0 }, { text: 'line', flags: 8 | 2, level: 2 }]);
  const answer = await ask(linux.stream());
  assert.equal(answer.log!.format, 'records');
  const found = texts(answer);
  assert.ok(found.length > 3 && found.length < 12);
  assert.deepEqual(found, [...all.map(({ text }) => text), 'one line'].slice(-found.length));
  assert.deepEqual(answer.log!.records.at(-2), { timeNs: 19_000_000n, level: 6, facility: 0, text: 'old 19' });
});

test('the text of Linux before 3.5', async () => {
  const linux = new TestLinux();
  putText(linux, [...Array.from({ length: 20 }, (_, number) => `<4>[    0.000000] text ${number}`), 'no level']);
  const { log } = await ask(linux.stream());
  assert.equal(log!.format, 'text');
  assert.deepEqual(log!.records.slice(-2), [
    { timeNs: undefined, level: 4, facility: 0, text: '[    0.000000] text 19' },
    { timeNs: undefined, level: undefined, facility: undefined, text: 'no level' },
  ]);
});

test('kernels before 4.10 do not say where they are: the vCPU does', async () => {
  const linux = new TestLinux({ hidesPhysicalBase: true });
  putRing(linux, RECORDS);
  const cpu = { ...linuxKernelCpu, 'cr[3]': BigInt(linux.tables.root) };
  const { kernel } = await ask(linux.stream({ devices: cpuDevices(cpu) }));
  const { physicalBase, textAddress } = placeOf(kernel!);
  assert.deepEqual([physicalBase, textAddress], [-0x1300_0000, 0x40_0000]);
  const { problems, release } = await ask(linux.stream());
  assert.match(problems[0]!, /^The VMCOREINFO in memory is of no kernel that is there/);
  assert.equal(release, RELEASE);
});

test('of two kernels in memory, the one that the vCPU runs', async () => {
  const linux = new TestLinux();
  putRing(linux, RECORDS);
  // What a kernel before a reboot left: its name is still where its VMCOREINFO says.
  const names = ['Linux', 'old', '5.0.0-left', VERSION, 'x86_64', '(none)'].map((name) => name.padEnd(65, '\0'));
  const uts = linux.put(new TextEncoder().encode(names.join('')));
  const left = [
    ...['OSRELEASE=5.0.0-left', 'PAGESIZE=4096', `SYMBOL(init_uts_ns)=${uts.toString(16)}`],
    ...['OFFSET(uts_namespace.name)=0', 'SYMBOL(_stext)=ffffffff81000000'],
    `NUMBER(phys_base)=${linux.physicalBase}`,
  ];
  const more = `${left.join('\n')}\n`;
  const running = (lstar: bigint): Uint8Array =>
    linux.stream({ more, devices: cpuDevices({ ...linuxKernelCpu, lstar }) });
  assert.equal((await ask(running(linux.textVirtual + 0x100n))).release, RELEASE);
  const other = await ask(running(0xffff_ffff_8100_0100n));
  assert.equal(other.release, '5.0.0-left');
  assert.deepEqual(other.problems, ['The kernel does not say where its log is.']);
});

test('a machine whose memory has no known addresses still has a banner and a boot line', async () => {
  const more = 'Kernel command line: console=ttyAMA0\n';
  const answer = await ask(wholeLinux().stream({ machine: 'virt-10.0', more }));
  assert.deepEqual([answer.release, answer.banner, answer.commandLine], [RELEASE, BANNER, 'console=ttyAMA0']);
  assert.deepEqual([answer.kernel, answer.log], [undefined, undefined]);
  assert.match(answer.problems[0]!, /^Where the kernel is and its log are not known: /);
});

test('the format strings of programs are no Linux', async () => {
  const linux = new TestLinux({ release: '%s' });
  await assert.rejects(ask(linux.stream({ more: 'Linux version %s (%s) #1\nOSRELEASE=%s\n' })), { code: 'NO_LINUX' });
});

test('of a damaged log, what is in front of the damage; the damage says what it is', async () => {
  const damaged = async (
    damage: (linux: TestLinux) => void,
  ): Promise<[texts: string[], message: string | undefined]> => {
    const linux = new TestLinux();
    damage(linux);
    const answer = await ask(linux.stream());
    return [texts(answer), answer.log!.damage?.message];
  };
  const ring = (change: (view: DataView, linux: TestLinux) => void) => (linux: TestLinux) => {
    const parts = putRing(linux, RECORDS, { firstId: 0n });
    change(linux.view(parts.ring), linux);
  };
  const damage = "The kernel's log cannot be read: ";
  assert.deepEqual(
    await damaged((linux) => {
      const { buffer } = putBuffer(linux, [{ text: 'first' }, { text: 'second' }, { text: 'third' }]);
      linux.view(buffer).setUint16(24 + 8, 7, true);
    }),
    [['first'], `${damage}the record at byte 24 would have 7 bytes.`],
  );
  assert.deepEqual(await damaged(ring((view) => view.setUint32(0, 40, true))), [
    [],
    `${damage}it would have 2^40 records.`,
  ]);
  assert.deepEqual(await damaged(ring((view) => view.setBigUint64(24, 1000n, true))), [
    [],
    `${damage}1001 records are in use of 2^4.`,
  ]);
  assert.deepEqual(await damaged(ring((view) => view.setUint32(48, 31, true))), [
    [],
    `${damage}its text would have 2^31 bytes.`,
  ]);
  assert.deepEqual(await damaged(ring((view) => view.setBigUint64(56, 0xdead_0000n, true))), [
    [],
    `${damage}its text at 0xdead0000 is not in the file.`,
  ]);
  // All records have the same text, which is as long as the ring.
  const [shared, message] = await damaged((linux) => {
    const { descriptors, infos } = putRing(linux, Array(8).fill({ text: 'x' }), { firstId: 0n });
    for (let index = 0; index < 8; index += 1) {
      linux.view(descriptors).setBigUint64(index * 24 + 8, 0n, true);
      linux.view(descriptors).setBigUint64(index * 24 + 16, 512n, true);
      linux.view(infos).setUint16(index * 88 + 16, 0xffff, true);
    }
  });
  assert.deepEqual([shared.length, message], [1, `${damage}its texts overlap.`]);
});
