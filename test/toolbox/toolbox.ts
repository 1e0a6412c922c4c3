// What the interop tests run against: QEMU 7.2, 10 and what Debian's backports have (11.1), qemu-img and a Linux guest that
// checks its own memory, in a git-ignored folder (`.toolbox` of the checkout, or RAMFERRY_TOOLBOX so that several checkouts
// share one). Installs what is missing once, as a Debian root, whichever test file comes first.

import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { toolboxFolder } from '../../src/cli/demo/toolbox.js';

export { toolboxFolder };

const here = dirname(fileURLToPath(import.meta.url));
/** Sources of the guest; not built, so they stay in the source tree: this file runs in dist/test/toolbox/. */
export const guestKitFolder = join(here, '..', '..', '..', 'test', 'guest-kit');
export const debuggerKitFolder = join(here, '..', '..', '..', 'test', 'debugger-kit');

/** `qemu-backports` lies in a folder that is named after the version that came, such as `qemu-11.1`. */
export type PartName =
  | 'qemu-10'
  | 'qemu-7.2'
  | 'qemu-backports'
  | 'qemu-img'
  | 'guest'
  | 'qemu-10-others'
  | 'debuggers';

/**
 * Whether the suite can do without a part: without an `optional` one, the tests that need it are skipped. One that is
 * `on request` is large, and only installed where it is named.
 */
export type PartNeed = 'required' | 'optional' | 'on request';

/** A failure to install is believed for so long, and only by the test files of the run that met it. */
const FAILURE_AGE_MS = 3_600_000;

/** A part is made anew when its recipe changed. */
class ToolboxPart {
  readonly name: PartName;
  readonly recipe: string;
  readonly need: PartNeed;

  constructor(name: PartName, recipe: string, need: PartNeed = 'required') {
    this.name = name;
    this.recipe = recipe;
    this.need = need;
  }

  isComplete(): boolean {
    const folder = toolboxFolder();
    const names = existsSync(folder) ? readdirSync(folder).filter((name) => !name.startsWith('.')) : [];
    return names.some((name) => {
      const file = join(folder, name, 'recipe');
      return existsSync(file) && readFileSync(file, 'utf8') === this.recipe;
    });
  }

  /** Why an installation failed in this run of the tests, so that not every test file waits for the same failure. */
  failure(run: string): string | undefined {
    try {
      const note = JSON.parse(readFileSync(this.#failureFile(), 'utf8')) as Record<string, unknown>;
      const isRecent = Date.now() - Number(note['time']) < FAILURE_AGE_MS;
      return note['run'] === run && note['recipe'] === this.recipe && isRecent ? String(note['reason']) : undefined;
    } catch {
      return undefined;
    }
  }

  noteFailure(run: string, reason: string): void {
    writeFileSync(this.#failureFile(), JSON.stringify({ run, recipe: this.recipe, time: Date.now(), reason }));
  }

  forgetFailure(): void {
    rmSync(this.#failureFile(), { force: true });
  }

  #failureFile(): string {
    return join(toolboxFolder(), `${this.name}.failed`);
  }
}

const kitDigest = (kit: string): string => {
  const hash = createHash('sha256');
  for (const name of readdirSync(kit).sort()) {
    hash.update(readFileSync(join(kit, name)));
  }
  return hash.digest('hex');
};

export const parts: readonly ToolboxPart[] = [
  new ToolboxPart('qemu-10', 'Debian trixie, 1'),
  new ToolboxPart('qemu-7.2', 'Debian bookworm, 1'),
  // Not every mirror has backports.
  new ToolboxPart('qemu-backports', 'Debian trixie-backports, 1', 'optional'),
  new ToolboxPart('qemu-img', 'qemu-img of Debian trixie, 1'),
  new ToolboxPart('guest', `Debian bookworm, 1, ${kitDigest(guestKitFolder)}`),
  // The machines of all other architectures: 120 MB to download, 500 MB unpacked.
  new ToolboxPart('qemu-10-others', 'other architectures of Debian trixie, 1', 'on request'),
  // 500 MB to load, 570 MB on the disk.
  new ToolboxPart('debuggers', `Debian trixie, kernel and debuggers, 1, ${kitDigest(debuggerKitFolder)}`, 'on request'),
];

export interface Toolbox {
  readonly folder: string;
  readonly kernel: string;
  readonly initramfs: string;
  /** Path of a qemu-img. */
  readonly qemuImg: string;
  /** Why optional parts are not there. */
  readonly missingParts: ReadonlyMap<PartName, string>;
}

/** Also the longest wait for another process that installs; a slow mirror needs a few minutes. */
const INSTALL_TIMEOUT_MS = 10 * 60_000;

const obstacle = (): string | undefined => {
  if (process.platform !== 'linux' || process.arch !== 'x64' || !existsSync('/etc/debian_version')) {
    return 'it can only be installed on Debian, amd64';
  }
  return process.getuid?.() === 0 ? undefined : 'it can only be installed as root';
};

/** Runs install.ts for those of the parts that are not there; returns why it did not even start or end. */
const installParts = (folder: string, run: string, names: readonly PartName[]): string | undefined => {
  mkdirSync(folder, { recursive: true });
  process.stderr.write(`toolbox: filling ${folder}, once (a minute)\n`);
  // flock(1) because the kernel drops its lock with its holder: no stale lock, whatever kills a test run.
  const { error, stderr } = spawnSync(
    'flock',
    [join(folder, 'lock'), process.execPath, join(here, 'install.js'), run, ...names],
    { encoding: 'utf8', stdio: ['ignore', 'ignore', 'pipe'], timeout: INSTALL_TIMEOUT_MS },
  );
  return error?.message ?? stderr.trim().split('\n').slice(-5).join('; ');
};

/** The toolbox, or the reason why there is none. */
export const openToolbox = (): Toolbox | { readonly missing: string } => {
  const folder = toolboxFolder();
  // The test files of one run are children of one runner.
  const run = String(process.ppid);
  const incomplete = () => parts.filter((part) => part.need !== 'on request' && !part.isComplete());
  const reason = obstacle();
  let output: string | undefined;
  if (reason === undefined && incomplete().some((part) => part.failure(run) === undefined)) {
    const names = incomplete().map(({ name }) => name);
    output = installParts(folder, run, names);
  }
  const why = (part: ToolboxPart): string =>
    reason ?? part.failure(run) ?? output ?? 'its installation was interrupted';
  const required = incomplete().find((part) => part.need === 'required');
  if (required !== undefined) {
    return {
      missing:
        reason === undefined
          ? `the toolbox could not be installed into ${folder}: ${required.name}: ${why(required)}`
          : `no toolbox in ${folder}: ${reason}`,
    };
  }
  return {
    folder,
    kernel: join(folder, 'guest', 'vmlinuz'),
    initramfs: join(folder, 'guest', 'initramfs.gz'),
    qemuImg: join(folder, 'qemu-img', 'qemu-img'),
    missingParts: new Map(incomplete().map((part) => [part.name, why(part)])),
  };
};

/** A kernel with its debug symbols, the guest that runs it, and debuggers: paths. */
export interface Debuggers {
  readonly kernel: string;
  readonly initramfs: string;
  /** The kernel's symbols. */
  readonly vmlinux: string;
  readonly crash: string;
  readonly drgn: string;
  readonly gdb: string;
  readonly makedumpfile: string;
}

/** The debuggers of the toolbox, or the reason why there are none. */
export const openDebuggers = (): Debuggers | { readonly missing: string } => {
  if (!parts.find(({ name }) => name === 'debuggers')!.isComplete()) {
    return { missing: 'the toolbox has no debuggers: npm run toolbox -- debuggers' };
  }
  const path = (name: string): string => join(toolboxFolder(), 'debuggers', name);
  return {
    kernel: path('vmlinuz'),
    initramfs: path('initramfs.gz'),
    vmlinux: path('vmlinux'),
    crash: path('crash'),
    drgn: path('drgn'),
    gdb: path('gdb'),
    makedumpfile: path('makedumpfile'),
  };
};

/** Installs the parts that are not there; resolves with why that cannot be done, by part. */
export const fillToolbox = (names: readonly PartName[]): ReadonlyMap<PartName, string> => {
  const wanted = parts.filter(({ name }) => names.includes(name));
  const incomplete = () => wanted.filter((part) => !part.isComplete());
  const reason = obstacle();
  // Whoever asks by name wants it tried again.
  const run = String(process.pid);
  const output =
    reason === undefined && incomplete().length > 0 ? installParts(toolboxFolder(), run, names) : undefined;
  return new Map(
    incomplete().map((part) => [
      part.name,
      reason ?? part.failure(run) ?? output ?? 'its installation was interrupted',
    ]),
  );
};
