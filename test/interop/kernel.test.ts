// The kernel of a real Linux guest with KASLR on, as it printed itself on its console, and as QEMU translates its addresses.

import assert from 'node:assert/strict';
import { interopTest } from './lab.js';
import { Ramferry } from './ramferry.js';

interface KernelDocument {
  readonly banner: string;
  readonly commandLine: string;
  readonly text: { readonly virtual: string; readonly address: string };
  readonly problems: readonly string[];
}

interopTest(
  'kernel: the log is what the guest printed while it booted, the boot line what it was given, its text where QEMU has it',
  async (lab) => {
    const guest = await lab.startGuest({ workload: 'idle', kernelArguments: 'loglevel=8 marker=kernel-test' });
    await guest.waitReady();
    await guest.stop();
    const printed = guest
      .serial()
      .match(/^\[ *\d+\.\d{6}\] .*$/gm)!
      .map((line) => line.trimEnd());
    const file = lab.path('guest.mig');
    await guest.saveStream(file);

    const log = await Ramferry.run(lab, 'kernel', file, '--log');
    assert.equal(log.status, 0, log.stderr);
    const lines = log.stdout.split('\n').map((line) => line.trimEnd());
    // Lines of the console may be cut by what else is printed there, and its tabs are tabs.
    const shown = new Set(lines.map((line) => line.replace(/ +/g, ' ')));
    const missing = printed.map((line) => line.replace(/[ \t]+/g, ' ')).filter((line) => !shown.has(line));
    assert.ok(printed.length > 150, `${printed.length} lines`);
    assert.deepEqual(missing, []);
    assert.equal(lines[0]!.replace(/^\[.*?\] /, ''), printed[0]!.replace(/^\[.*?\] /, ''));

    const { stdout } = await Ramferry.run(lab, 'kernel', file, '--json');
    const { banner, commandLine, text, problems } = JSON.parse(stdout) as KernelDocument;
    assert.deepEqual(problems, []);
    assert.equal(`[    0.000000] ${banner}`, printed[0]);
    assert.match(commandLine, /^console=ttyS0 quiet .* marker=kernel-test$/);
    const command = `gva2gpa ${text.virtual}`;
    assert.equal(
      String(await guest.qmp.execute('human-monitor-command', { 'command-line': command })).trim(),
      `gpa: ${text.address}`,
    );
  },
  ['10'],
);
