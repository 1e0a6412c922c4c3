// Fills the toolbox: `node dist/test/toolbox/install.js RUN PART…`, as root on Debian. Every part is made in a new folder, and its
// name is a link that is put into place when it is complete: what is there is whole, and programs that run from an older
// folder keep theirs. toolbox.ts runs this under a lock.
//
//   .toolbox/qemu-10/    qemu-system-x86_64 (a wrapper), root/: QEMU of Debian trixie with all its libraries
//   .toolbox/qemu-7.2/   the same of Debian bookworm
//   .toolbox/qemu-11.1/  the same of trixie's backports; another name when Debian has moved on
//   .toolbox/qemu-img/   qemu-img (a wrapper), root/
//   .toolbox/qemu-10-others/   qemu-system-aarch64 and the like (wrappers), root/: only on request
//   .toolbox/guest/      vmlinuz, initramfs.gz: the self-checking guest (test/guest-kit)
//   .toolbox/debuggers/  crash, drgn, gdb, makedumpfile (wrappers), root/; vmlinuz, vmlinux (its symbols), initramfs.gz
//                        (test/debugger-kit): only on request

import {
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import { PrivateApt, run, unpack } from './apt.js';
import { debuggerKitFolder, guestKitFolder, type PartName, parts, toolboxFolder } from './toolbox.js';

/** Programs out of Debian's packages. */
interface PackagedPrograms {
  /** What they are called in usr/bin. */
  readonly programs: RegExp;
  readonly packages: readonly string[];
  /** What they need of the unpacked packages besides their libraries; documentation, translations, other programs go. */
  readonly kept: readonly string[];
  /** More of their command lines, in front of the user's. */
  readonly options: string;
}

const SYSTEM: PackagedPrograms = {
  programs: /^qemu-system-x86_64$/,
  packages: ['qemu-system-x86'],
  kept: ['usr/lib/ipxe', 'usr/share/qemu', 'usr/share/seabios'],
  options: ' -L "$root/usr/share/qemu" -L "$root/usr/share/seabios" -L "$root/usr/lib/ipxe/qemu"',
};

const OTHER_SYSTEMS: PackagedPrograms = {
  ...SYSTEM,
  programs: /^qemu-system-/,
  packages: ['arm', 'mips', 'misc', 'ppc', 'riscv', 's390x', 'sparc'].map((name) => `qemu-system-${name}`),
};

const QEMU_IMG: PackagedPrograms = { programs: /^qemu-img$/, packages: ['qemu-utils'], kept: [], options: '' };

const LIBRARIES = ['lib/x86_64-linux-gnu', 'usr/lib/x86_64-linux-gnu'];

/**
 * The libraries come from another release of Debian than the machine's, so the program is started through their own
 * dynamic linker; nothing is exported that a child of QEMU (an exec: migration) would inherit, but for the modules' folder.
 */
const wrapper = (suite: string, linker: string, program: string, options: string): string => `#!/bin/sh
# ${program} of Debian ${suite}, unpacked with its own libraries. The folder behind the name may be replaced at any time.
root=$(cd -P "\${0%/*}" && pwd)/root
export QEMU_MODULE_DIR="$root/usr/lib/x86_64-linux-gnu/qemu"
exec "$root/${linker}" --library-path "$root/lib/x86_64-linux-gnu:$root/usr/lib/x86_64-linux-gnu" \\
  "$root/usr/bin/${program}"${options} "$@"
`;

/** Unpacks programs with everything they need into `folder`, and returns the version of one, such as `11.1`. */
const installPrograms = (apt: PrivateApt, suite: string, folder: string, packaged: PackagedPrograms): string => {
  const unpacked = join(folder, 'unpacked');
  unpack(apt.downloadClosure(...packaged.packages), unpacked);
  const programs = readdirSync(join(unpacked, 'usr', 'bin')).filter((name) => packaged.programs.test(name));
  const kept = [...programs.map((name) => `usr/bin/${name}`), ...LIBRARIES, ...packaged.kept];
  for (const path of kept.filter((name) => existsSync(join(unpacked, name)))) {
    const target = join(folder, 'root', path);
    mkdirSync(dirname(target), { recursive: true });
    renameSync(join(unpacked, path), target);
  }
  rmSync(unpacked, { recursive: true });
  const linker = LIBRARIES.map((lib) => `${lib}/ld-linux-x86-64.so.2`).find((path) =>
    existsSync(join(folder, 'root', path)),
  );
  for (const name of programs) {
    writeFileSync(join(folder, name), wrapper(suite, linker!, name, packaged.options), { mode: 0o755 });
  }
  return /version (\d+\.\d+)/.exec(run(join(folder, programs[0]!), ['--version']))![1]!;
};

/** A static C program and a cpio archive have to be made: the machine's own compiler, installed if it has none. */
const ensureCompiler = (): void => {
  const has = { gcc: '/usr/bin/gcc', 'libc6-dev': '/usr/lib/x86_64-linux-gnu/libc.a', cpio: '/usr/bin/cpio' };
  const missing = Object.entries(has).flatMap(([name, file]) =>
    existsSync(file) || existsSync(file.replace('/usr', '')) ? [] : [name],
  );
  if (missing.length > 0) {
    process.stderr.write(`toolbox: installing ${missing.join(', ')} with apt-get\n`);
    run('apt-get', ['-q', 'update']);
    run('apt-get', ['-q', '-y', '--no-install-recommends', 'install', ...missing]);
  }
};

/** Debian's kernel for virtual machines, and what makes an initramfs for it. */
class KernelPackages {
  readonly #apt: PrivateApt;
  /** Such as `linux-image-6.1.0-57-cloud-amd64`: linux-image-cloud-amd64 is empty and depends on the image of the day. */
  readonly #image: string;

  constructor(apt: PrivateApt) {
    const image = apt.dependencies('linux-image-cloud-amd64').find((name) => name.startsWith('linux-image-'));
    if (image === undefined) {
      throw new Error('linux-image-cloud-amd64 depends on no kernel image');
    }
    this.#apt = apt;
    this.#image = image;
  }

  /** Puts vmlinuz and the initramfs of a kit into `folder`, and vmlinux if the symbols are wanted. */
  install(folder: string, kit: string, symbols: 'with symbols' | 'without symbols'): void {
    const version = this.#image.replace('linux-image-', '');
    const debug = symbols === 'with symbols' ? [`${this.#image}-dbg`] : [];
    const unpacked = join(folder, 'unpacked');
    unpack(
      [this.#image, 'busybox-static', ...debug].map((name) => this.#apt.download(name)),
      unpacked,
    );
    // Where bookworm has /bin and /lib, trixie has /usr/bin and /usr/lib.
    const find = (...path: string[]): string =>
      ['', 'usr'].map((top) => join(unpacked, top, ...path)).find((file) => existsSync(file)) ?? '';
    ensureCompiler();
    run('/bin/sh', [join(kit, 'build-initramfs.sh')], {
      BUSYBOX: find('bin', 'busybox'),
      KMOD: find('lib', 'modules', version),
      OUT: join(folder, 'initramfs.gz'),
    });
    renameSync(join(unpacked, 'boot', `vmlinuz-${version}`), join(folder, 'vmlinuz'));
    if (debug.length > 0) {
      renameSync(join(unpacked, 'usr', 'lib', 'debug', 'boot', `vmlinux-${version}`), join(folder, 'vmlinux'));
    }
    rmSync(unpacked, { recursive: true });
  }
}

/** The debuggers' command lines, and how each is asked for its version; drgn is a program in Python. */
const DEBUGGERS: Readonly<Record<string, { readonly command: string; readonly version: string }>> = {
  crash: { command: '"$root/usr/bin/crash"', version: '--version' },
  gdb: { command: '"$root/usr/bin/gdb" --data-directory "$root/usr/share/gdb"', version: '--version' },
  drgn: { command: '"$root/usr/bin/python3" "$root/usr/bin/drgn"', version: '--version' },
  makedumpfile: { command: '"$root/usr/bin/makedumpfile"', version: '-v' },
};

/** gdb has a Python inside; nothing of the machine's Python is used. */
const debuggerWrapper = (linker: string, name: string, command: string): string => `#!/bin/sh
# ${name} of Debian trixie, unpacked with its own libraries.
root=$(cd -P "\${0%/*}" && pwd)/root
export PYTHONHOME="$root/usr" PYTHONDONTWRITEBYTECODE=1
exec "$root/${linker}" --library-path "$root/usr/lib/x86_64-linux-gnu" ${command} "$@"
`;

const installDebuggers = (apt: PrivateApt, folder: string): void => {
  const root = join(folder, 'root');
  unpack(apt.downloadClosure('crash', 'python3-drgn', 'gdb', 'makedumpfile'), root);
  const linker = LIBRARIES.map((lib) => `${lib}/ld-linux-x86-64.so.2`).find((path) => existsSync(join(root, path)))!;
  for (const [name, { command, version }] of Object.entries(DEBUGGERS)) {
    const file = join(folder, name);
    writeFileSync(file, debuggerWrapper(linker, name, command), { mode: 0o755 });
    run(file, [version]);
  }
  new KernelPackages(apt).install(folder, debuggerKitFolder, 'with symbols');
};

const machineRelease = /^VERSION_CODENAME=(\w+)/m.exec(readFileSync('/etc/os-release', 'utf8'))?.[1] ?? '';
const folder = toolboxFolder();
const [, , testRun = '', ...wanted] = process.argv;

/** Folders without a name of theirs are kept as long as a program may run from them. */
const UNUSED_AGE_MS = 24 * 3_600_000;

/** Removes what killed installations left behind, and folders that were replaced long ago. */
const sweep = (): void => {
  const names = readdirSync(folder);
  const isLink = (name: string): boolean => lstatSync(join(folder, name)).isSymbolicLink();
  const used = new Set(names.filter(isLink).map((name) => readlinkSync(join(folder, name))));
  for (const name of names) {
    const isUnused = name.startsWith('.part-') && !used.has(name);
    if (name.startsWith('new-') || (isUnused && Date.now() - statSync(join(folder, name)).mtimeMs > UNUSED_AGE_MS)) {
      rmSync(join(folder, name), { recursive: true });
    }
  }
};

sweep();
const scratch = mkdtempSync(join(folder, 'new-'));
const apts = new Map<string, PrivateApt>();
const aptOf = (suite: string): PrivateApt => {
  const apt = apts.get(suite) ?? new PrivateApt(machineRelease, suite, join(scratch, suite));
  apts.set(suite, apt);
  return apt;
};

const installSystem = (suite: string, target: string): string => installPrograms(aptOf(suite), suite, target, SYSTEM);

/** How each part is made; returns the name of its folder where that is not the part's. */
const install: Readonly<Record<PartName, (target: string) => string | undefined>> = {
  'qemu-10': (target) => void installSystem('trixie', target),
  'qemu-7.2': (target) => void installSystem('bookworm', target),
  'qemu-backports': (target) => `qemu-${installSystem('trixie-backports', target)}`,
  'qemu-img': (target) => void installPrograms(aptOf('trixie'), 'trixie', target, QEMU_IMG),
  'qemu-10-others': (target) => void installPrograms(aptOf('trixie'), 'trixie', target, OTHER_SYSTEMS),
  // Bookworm's kernel, because its modules are not compressed and the guest's insmod cannot decompress.
  guest: (target) => void new KernelPackages(aptOf('bookworm')).install(target, guestKitFolder, 'without symbols'),
  // Bookworm's crash does not find the tasks of its own kernel, and trixie's gives up on most boots of it: that kernel has no
  // handler of machine checks, so the stack for them has size 0 for crash.
  debuggers: (target) => void installDebuggers(aptOf('trixie'), target),
};

/** Gives a complete folder its name, in one step also where the name was another folder's. */
const putInPlace = (target: string, name: string): void => {
  const hidden = `.part-${name}-${scratch.slice(-6)}`;
  renameSync(target, join(folder, hidden));
  const place = join(folder, name);
  const link = join(scratch, `link-${name}`);
  symlinkSync(hidden, link);
  if (existsSync(place) && !lstatSync(place).isSymbolicLink()) {
    // A folder of its own, as older toolboxes have them, cannot be replaced in one step.
    renameSync(place, join(folder, `.part-${name}-before-${scratch.slice(-6)}`));
  }
  renameSync(link, place);
};

try {
  for (const part of parts.filter(({ name }) => wanted.includes(name)).filter((candidate) => !candidate.isComplete())) {
    if (part.failure(testRun) !== undefined) {
      continue;
    }
    process.stderr.write(`toolbox: installing ${part.name} into ${folder}\n`);
    const target = join(scratch, part.name);
    mkdirSync(target);
    try {
      const name = install[part.name](target) ?? part.name;
      writeFileSync(join(target, 'recipe'), part.recipe);
      putInPlace(target, name);
      part.forgetFailure();
    } catch (error) {
      const reason = (error as Error).message.trim().split('\n').slice(-5).join('; ');
      part.noteFailure(testRun, reason);
      process.stderr.write(`${part.name}: ${reason}\n`);
      process.exitCode = 1;
    }
  }
} finally {
  rmSync(scratch, { recursive: true, force: true });
}
