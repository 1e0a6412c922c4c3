// What the interop tests run against: QEMU 10, QEMU 7.2 and a Linux guest that checks its own memory, in a git-ignored
// folder (`.toolbox` of the checkout, or RAMFERRY_TOOLBOX so that several checkouts share one). Installs what is
// missing once, as a Debian root, whichever test file comes first.

import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readdirSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { toolboxFolder } from '../../src/qemu/find-qemu.js';

export { toolboxFolder };

const here = dirname(fileURLToPath(import.meta.url));
/** Sources of the guest; not built, so they stay in the source tree: this file runs in dist/test/toolbox/. */
export const guestKitFolder = join(here, '..', '..', '..', 'test', 'guest-kit');

export type Part = 'qemu-10' | 'qemu-7.2' | 'guest';

/** A part is made anew when its recipe changed. */
class ToolboxPart {
  readonly name: Part;
  readonly recipe: string;

  constructor(name: Part, recipe: string) {
    this.name = name;
    this.recipe = recipe;
  }

  isComplete(): boolean {
    const file = join(toolboxFolder(), this.name, 'recipe');
    return existsSync(file) && readFileSync(file, 'utf8') === this.recipe;
  }
}

const guestKitDigest = (): string => {
  const hash = createHash('sha256');
  for (const name of readdirSync(guestKitFolder).sort()) {
    hash.update(readFileSync(join(guestKitFolder, name)));
  }
  return hash.digest('hex');
};

export const parts: readonly ToolboxPart[] = [
  new ToolboxPart('qemu-10', 'Debian trixie, 1'),
  new ToolboxPart('qemu-7.2', 'Debian bookworm, 1'),
  new ToolboxPart('guest', `Debian bookworm, 1, ${guestKitDigest()}`),
];

export interface Toolbox {
  readonly folder: string;
  readonly kernel: string;
  readonly initramfs: string;
}

/** Also the longest wait for another process that installs; a slow mirror needs a few minutes. */
const INSTALL_TIMEOUT_MS = 10 * 60_000;

const obstacle = (): string | undefined => {
  if (process.platform !== 'linux' || process.arch !== 'x64' || !existsSync('/etc/debian_version')) {
    return 'it can only be installed on Debian, amd64';
  }
  return process.getuid?.() === 0 ? undefined : 'it can only be installed as root';
};

/** The toolbox, or the reason why there is none. */
export const openToolbox = (): Toolbox | { readonly missing: string } => {
  const folder = toolboxFolder();
  const complete = (): boolean => parts.every((part) => part.isComplete());
  if (!complete()) {
    const reason = obstacle();
    if (reason !== undefined) {
      return { missing: `no toolbox in ${folder}: ${reason}` };
    }
    mkdirSync(folder, { recursive: true });
    process.stderr.write(`toolbox: filling ${folder}, once (half a minute)\n`);
    // flock(1) because the kernel drops its lock with its holder: no stale lock, whatever kills a test run.
    const { error, stderr } = spawnSync('flock', [join(folder, 'lock'), process.execPath, join(here, 'install.js')], {
      encoding: 'utf8',
      stdio: ['ignore', 'ignore', 'pipe'],
      timeout: INSTALL_TIMEOUT_MS,
    });
    if (!complete()) {
      return {
        missing: `the toolbox could not be installed into ${folder}: ${(error?.message ?? stderr).trim().split('\n').slice(-5).join('; ')}`,
      };
    }
  }
  return { folder, kernel: join(folder, 'guest', 'vmlinuz'), initramfs: join(folder, 'guest', 'initramfs.gz') };
};
