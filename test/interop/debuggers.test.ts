// Cores of ours in crash, drgn and gdb, beside the core that QEMU itself dumps of the same guest at the same moment, and beside what the
// guest printed. Kernel, symbols and debuggers take 1.3 GB and each guest a minute: `npm run toolbox -- debuggers`, then
// `RAMFERRY_SLOW=1 npm test -- debuggers`.

import assert from 'node:assert/strict';
import { readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { test } from 'node:test';
import { libvirtHead } from '../libvirt-images.js';
import { openDebuggers } from '../toolbox/toolbox.js';
import { type CrashAnswer, DebuggerSet, GuestReport } from './debuggers.js';
import { type GuestOptions, interopTest, Lab, type LabGuest } from './lab.js';
import { Ramferry } from './ramferry.js';

interface Case {
  readonly name: string;
  readonly guest?: GuestOptions;
  /** How the guest becomes a file; a stream by default. */
  readonly save?: (guest: LabGuest, file: string) => Promise<void>;
  /** RAM block of a DIMM, whose address a stream does not say. */
  readonly dimm?: string;
  readonly kdump?: true;
  /** QEMU does not know where VMCOREINFO is, as with most guests: ours finds it in memory, QEMU's own dump has none. */
  readonly withoutDevice?: true;
  /**
   * Memory of two backends, side by side: QEMU's dump with virtual addresses has segments that go on from one to the other, but only
   * the bytes of the first.
   */
  readonly sideBySide?: true;
  /** What the guest must have said, or it is not the guest that the case is about. */
  readonly said?: RegExp;
}

const saveStream = async (guest: LabGuest, file: string): Promise<void> => {
  await guest.saveStream(file);
};

const saveMappedRam = async (guest: LabGuest, file: string): Promise<void> => {
  await guest.saveStream(file, { capabilities: { 'mapped-ram': true } });
};

const saveLibvirt = async (guest: LabGuest, file: string): Promise<void> => {
  await guest.saveStream(`${file}.stream`);
  const head = libvirtHead({ format: 0 });
  writeFileSync(file, Buffer.concat([head, readFileSync(`${file}.stream`)]));
  rmSync(`${file}.stream`);
};

const node = (id: number): string[] => [
  ...['-object', `memory-backend-ram,id=node${id},size=256M`],
  ...['-numa', `node,nodeid=${id},memdev=node${id},cpus=${id}`],
];

const ABOVE_4_GIB = /^ *1[0-9a-f]{8}-[0-9a-f]+ : System RAM$/m;

const cases: readonly Case[] = [
  {
    name: 'a stream, and a kdump',
    kdump: true,
  },
  { name: 'a mapped-ram file, without the vmcoreinfo device', save: saveMappedRam, withoutDevice: true },
  { name: 'a libvirt image', save: saveLibvirt },
  {
    name: 'a q35 with memory above 4 GiB',
    // Up to 2.75 GiB all of a q35's memory is below.
    guest: { machine: 'q35', memory: 3072 },
    said: ABOVE_4_GIB,
  },
  {
    name: 'two NUMA nodes',
    guest: { extraArguments: [...node(0), ...node(1)] },
    sideBySide: true,
    said: /NODE_DATA\(1\)/,
  },
  {
    name: 'a DIMM',
    guest: {
      kernelArguments: 'online=1',
      extraArguments: [
        ...['-m', 'slots=2,maxmem=2G', '-object', 'memory-backend-ram,id=dimm0,size=256M'],
        ...['-device', 'pc-dimm,memdev=dimm0'],
      ],
    },
    dimm: 'dimm0',
    said: ABOVE_4_GIB,
  },
];

const convert = async (lab: Lab, file: string, output: string, ...words: readonly string[]): Promise<string> => {
  const { status, stderr } = await Ramferry.run(lab, 'convert', file, output, ...words);
  assert.equal(status, 0, stderr);
  return output;
};

/** `--at` for a DIMM, from QEMU. */
const dimmPlace = async (guest: LabGuest, block: string | undefined): Promise<string[]> => {
  if (block === undefined) {
    return [];
  }
  const text = String(await guest.qmp.execute('human-monitor-command', { 'command-line': 'info memory-devices' }));
  return ['--at', `${block}=${/addr: (0x[0-9a-f]+)/.exec(text)![1]}`];
};

/** A guest that has stopped, QEMU's own dump of it, and what crash says of that dump. */
interface Stopped {
  readonly guest: LabGuest;
  readonly report: GuestReport;
  readonly pids: readonly string[];
  readonly reference: string;
  readonly theirs: CrashAnswer;
}

/** Boots that are tried until there is one whose dump by QEMU crash takes: KASLR makes each boot another. */
const BOOTS = 4;

const bootForCrash = async (
  lab: Lab,
  tools: DebuggerSet,
  options: GuestOptions,
  paging: boolean,
  say: (message: string) => void,
): Promise<Stopped> => {
  for (let boot = 1; ; boot += 1) {
    const guest = await lab.startGuest(options);
    await guest.waitSerial(/^== end/m, 240_000);
    const report = new GuestReport(guest.serial());
    say(`boot ${boot}: KASLR offset 0x${report.kaslrOffset.toString(16)}, ${report.tasks.length} tasks`);
    const pids = ['1', report.pid('sleep'), report.pid('tail')];
    const reference = lab.path(`qemu-${boot}.elf`);
    await guest.stop();
    await guest.qmp.execute('dump-guest-memory', { paging, protocol: `file:${reference}` });
    const theirs = tools.crash(reference, pids);
    if (typeof theirs === 'object') {
      return { guest, report, pids, reference, theirs };
    }
    assert.ok(boot < BOOTS, `crash takes QEMU's own dump of none of ${BOOTS} boots: ${theirs}`);
    say(`boot ${boot} is given up: ${theirs.trim()}`);
    guest.qemu.kill();
    rmSync(reference);
  }
};

const debuggers = openDebuggers();
const why =
  process.env['RAMFERRY_SLOW'] !== '1' ? 'RAMFERRY_SLOW=1 is not set' : 'missing' in debuggers ? debuggers.missing : '';

if (why !== '') {
  test('cores in crash, drgn and gdb', { skip: why }, () => {});
}

for (const { name, guest: options, save = saveStream, dimm, kdump, withoutDevice, sideBySide, said } of why === ''
  ? cases
  : []) {
  interopTest(
    `crash, drgn and gdb agree with the guest, and with QEMU's own dump of it: ${name}`,
    async (outer, context) => {
      assert.ok(!('missing' in debuggers));
      const lab = new Lab(
        { ...outer.toolbox, kernel: debuggers.kernel, initramfs: debuggers.initramfs },
        outer.release,
      );
      outer.onClose(() => lab.close());
      const { extraArguments = [], ...rest } = options ?? {};
      const tools = new DebuggerSet(lab, debuggers);
      const { guest, report, pids, reference, theirs } = await bootForCrash(
        lab,
        tools,
        {
          ...{ memory: 512, workload: 'idle' },
          ...rest,
          extraArguments: [
            ...['-smp', '2', ...extraArguments],
            ...(withoutDevice === undefined ? ['-device', 'vmcoreinfo'] : []),
          ],
        },
        sideBySide === undefined,
        (message) => context.diagnostic(message),
      );
      if (said !== undefined) {
        assert.match(guest.serial().replaceAll('\r', ''), said);
      }
      const file = lab.path('guest.mig');
      await save(guest, file);
      const at = await dimmPlace(guest, dimm);
      guest.qemu.kill();

      const core = await convert(lab, file, lab.path('guest.core'), '--to', 'elf', ...at);
      const ours = tools.crash(core, pids);
      assert.ok(typeof ours === 'object', String(ours));
      assert.deepEqual(ours, theirs);
      // The shell that printed the list was a task of its own, and may be gone.
      const gone = report.tasks.filter((task) => !ours.tasks.includes(task));
      assert.deepEqual(
        gone.filter((task) => !task.endsWith(' init')),
        [],
      );
      assert.ok(report.tasks.length > 20, `${report.tasks.length} tasks`);
      // crash shows the time on the first line of a record only, makedumpfile also the task or the processor.
      const text = (line: string): string => line.replace(/^\[ *\d+\.\d+\](?: ?\[ *[TC]\d+\])?/, '').trim();
      const printed = report.lines('log').map(text);
      assert.deepEqual(ours.log.map(text).slice(0, printed.length), printed);
      assert.match(ours.stacks, /#\d+ \[[0-9a-f]+\] (?:__x64_sys_|do_)?\w*nanosleep/);

      const drgn = tools.drgn(core, pids[1]!);
      // drgn refuses a dump that has no VMCOREINFO.
      if (withoutDevice === undefined) {
        assert.deepEqual(drgn, tools.drgn(reference, pids[1]!));
      }
      assert.deepEqual(new Set(drgn.tasks), new Set(ours.tasks.filter((task) => !task.startsWith('0 '))));
      assert.deepEqual(drgn.log.map(text).slice(0, printed.length), printed);
      assert.equal(drgn.commandLine.trim(), report.lines('cmdline')[0]);
      assert.ok(
        drgn.stack.some((frame) => frame.includes('nanosleep')),
        drgn.stack.join(' '),
      );
      assert.equal(drgn.running.length, 2);

      const virtual = await convert(lab, file, lab.path('virtual.core'), '--to', 'elf', '--virtual', ...at);
      const expressions = ['jiffies_64', 'init_uts_ns.name.release', 'saved_command_line', '$rip', 'init_task.comm'];
      const values = tools.gdb(virtual, report.kaslrOffset, expressions);
      if (sideBySide === undefined) {
        assert.deepEqual(values, tools.gdb(reference, report.kaslrOffset, expressions));
      }
      assert.equal(values[0], drgn.jiffies);
      assert.ok(values[1]!.startsWith(`"${drgn.release}"`), values[1]);
      assert.ok(values[2]!.endsWith(`"${drgn.commandLine}"`), values[2]);

      if (kdump) {
        const dump = await convert(lab, file, lab.path('guest.kdump'), '--to', 'kdump');
        assert.deepEqual(tools.crash(dump, pids), theirs);
        assert.deepEqual(tools.drgn(dump, pids[1]!), drgn);
        for (const one of [core, dump]) {
          assert.deepEqual(tools.makedumpfileLog(one).map(text).slice(0, printed.length), printed);
        }
        const filtered = tools.makedumpfile(core, lab.path('filtered.kdump'));
        assert.ok(statSync(filtered).size < statSync(dump).size);
        assert.deepEqual(tools.crash(filtered, pids), theirs);
      }
    },
    ['10'],
  );
}
