// What stands in front of QEMU in a command line: `nice -n 5 taskset -c 0 qemu-system-x86_64 …`. Such programs become QEMU
// (exec), so it has their process id and inherits the descriptors that it is lent. Those that stay and start QEMU as a
// child do neither: they are refused by name.

import { basename } from 'node:path';
import { RamferryError } from '../memory/errors.js';

/** Programs that take a command and become it. */
const LAUNCHERS = new Set([
  ...[
    'chrt',
    'env',
    'ionice',
    'nice',
    'nocache',
    'numactl',
    'prlimit',
    'setarch',
    'setpriv',
    'setsid',
    'stdbuf',
    'taskset',
  ],
  ...['ip', 'nsenter', 'chroot', 'unshare'],
]);

/** Programs that stay between us and QEMU. */
const PARENTS = new Set([
  ...[
    'sudo',
    'doas',
    'su',
    'runuser',
    'pkexec',
    'timeout',
    'time',
    'strace',
    'ltrace',
    'perf',
    'gdb',
    'valgrind',
    'script',
  ],
  ...['systemd-run', 'nohup', 'docker', 'podman', 'flatpak', 'ssh', 'screen', 'tmux', 'bash', 'dash', 'sh', 'zsh'],
]);

const QEMU_NAME = /^(qemu-system-[\w-]+|(qemu-)?kvm|qemu)$/;

const refuse = (launcher: string, why: string, hint: string): RamferryError =>
  new RamferryError('usage', 'QEMU_COMMAND', `The QEMU command line begins with ${launcher}, ${why}.`, {
    value: launcher,
    hint,
  });

/**
 * Where QEMU itself stands in a command line: 0, or behind what it is launched by. A first word that is no known launcher
 * is QEMU, under whatever name, or a script that becomes it.
 * @throws RamferryError `usage` QEMU_COMMAND
 */
export const programIndex = (command: readonly string[]): number => {
  const first = basename(command[0] ?? '');
  if (PARENTS.has(first)) {
    const hint = `Leave it out, or write a script that ends with: exec qemu-system-x86_64 … "$@"`;
    throw refuse(first, 'which would stay between ramferry and QEMU', hint);
  }
  if (!LAUNCHERS.has(first)) {
    return 0;
  }
  const index = command.findIndex((word, at) => at > 0 && QEMU_NAME.test(basename(word)));
  const parent = command.slice(0, Math.max(index, 0)).find((word) => PARENTS.has(basename(word)));
  if (parent !== undefined) {
    throw refuse(first, `and has ${parent} in it, which would stay between ramferry and QEMU`, `Leave ${parent} out.`);
  }
  if (index < 0) {
    const hint = 'Behind it there has to be a word whose file name is qemu-system-…, qemu-kvm, kvm or qemu.';
    throw refuse(first, 'and none of the words behind it is known as QEMU', hint);
  }
  return index;
};

/** The words up to and with QEMU itself: what runs it, without its options. */
export const launchingWords = (command: readonly string[]): string[] => command.slice(0, programIndex(command) + 1);
