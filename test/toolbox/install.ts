// Fills the toolbox: `node dist/test/toolbox/install.js`, as root on Debian. Every part is made in a new folder and
// renamed into place when complete, so what is there is whole. toolbox.ts runs this under a lock.
//
//   .toolbox/qemu-10/    qemu-system-x86_64 (a wrapper), root/: QEMU of Debian trixie with all its libraries
//   .toolbox/qemu-7.2/   the same of Debian bookworm
//   .toolbox/guest/      vmlinuz, initramfs.gz: the self-checking guest (test/guest-kit)

import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import { PrivateApt, run, unpack } from './apt.js';
import { guestKitFolder, type Part, parts, toolboxFolder } from './toolbox.js';

/** What QEMU needs of the unpacked packages; documentation, translations, other programs go. */
const KEPT = [
  'usr/bin/qemu-system-x86_64',
  'lib/x86_64-linux-gnu',
  'usr/lib/x86_64-linux-gnu',
  'usr/lib/ipxe',
  'usr/share/qemu',
  'usr/share/seabios',
];

/**
 * The libraries come from another release of Debian than the machine's, so the program is started through their own
 * dynamic linker; nothing is exported that a child of QEMU (an exec: migration) would inherit, but for the modules' folder.
 */
const wrapper = (release: string, linker: string): string => `#!/bin/sh
# QEMU of Debian ${release}, unpacked with its own libraries.
root=\${0%/*}/root
export QEMU_MODULE_DIR="$root/usr/lib/x86_64-linux-gnu/qemu"
exec "$root/${linker}" --library-path "$root/lib/x86_64-linux-gnu:$root/usr/lib/x86_64-linux-gnu" \\
  "$root/usr/bin/qemu-system-x86_64" -L "$root/usr/share/qemu" -L "$root/usr/share/seabios" -L "$root/usr/lib/ipxe/qemu" "$@"
`;

const installQemu = (apt: PrivateApt, release: string, folder: string): void => {
  const unpacked = join(folder, 'unpacked');
  unpack(apt.downloadClosure('qemu-system-x86'), unpacked);
  for (const path of KEPT.filter((kept) => existsSync(join(unpacked, kept)))) {
    const target = join(folder, 'root', path);
    mkdirSync(dirname(target), { recursive: true });
    renameSync(join(unpacked, path), target);
  }
  rmSync(unpacked, { recursive: true });
  const linker = ['lib', 'usr/lib']
    .map((lib) => `${lib}/x86_64-linux-gnu/ld-linux-x86-64.so.2`)
    .find((path) => existsSync(join(folder, 'root', path)));
  const program = join(folder, 'qemu-system-x86_64');
  writeFileSync(program, wrapper(release, linker!));
  chmodSync(program, 0o755);
  run(program, ['--version']);
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

const installGuest = (apt: PrivateApt, folder: string): void => {
  // linux-image-cloud-amd64 is empty and depends on the image of the day.
  const image = apt.dependencies('linux-image-cloud-amd64').find((name) => name.startsWith('linux-image-'));
  if (image === undefined) {
    throw new Error('linux-image-cloud-amd64 depends on no kernel image');
  }
  const unpacked = join(folder, 'unpacked');
  unpack([apt.download(image), apt.download('busybox-static')], unpacked);
  const version = image.replace('linux-image-', '');
  ensureCompiler();
  // Where bookworm has /bin, trixie has /usr/bin.
  const busybox = ['bin', 'usr/bin'].map((bin) => join(unpacked, bin, 'busybox')).find((path) => existsSync(path));
  const modules = ['lib', 'usr/lib']
    .map((lib) => join(unpacked, lib, 'modules', version))
    .find((path) => existsSync(path));
  run('/bin/sh', [join(guestKitFolder, 'build-initramfs.sh')], {
    BUSYBOX: busybox ?? '',
    KMOD: modules ?? '',
    OUT: join(folder, 'initramfs.gz'),
  });
  renameSync(join(unpacked, 'boot', `vmlinuz-${version}`), join(folder, 'vmlinuz'));
  rmSync(unpacked, { recursive: true });
};

const machineRelease = /^VERSION_CODENAME=(\w+)/m.exec(readFileSync('/etc/os-release', 'utf8'))?.[1] ?? '';
const folder = toolboxFolder();
// Left behind by an installation that was killed.
for (const name of readdirSync(folder).filter((entry) => entry.startsWith('new-'))) {
  rmSync(join(folder, name), { recursive: true });
}
const scratch = mkdtempSync(join(folder, 'new-'));
const apts = new Map<string, PrivateApt>();
const aptOf = (release: string): PrivateApt => {
  const apt = apts.get(release) ?? new PrivateApt(machineRelease, release, join(scratch, release));
  apts.set(release, apt);
  return apt;
};

const install: Readonly<Record<Part, (target: string) => void>> = {
  'qemu-10': (target) => installQemu(aptOf('trixie'), 'trixie', target),
  'qemu-7.2': (target) => installQemu(aptOf('bookworm'), 'bookworm', target),
  // Bookworm's kernel, because its modules are not compressed and the guest's insmod cannot decompress.
  guest: (target) => installGuest(aptOf('bookworm'), target),
};

try {
  for (const part of parts.filter((candidate) => !candidate.isComplete())) {
    process.stderr.write(`toolbox: installing ${part.name} into ${folder}\n`);
    const target = join(scratch, part.name);
    mkdirSync(target);
    install[part.name](target);
    writeFileSync(join(target, 'recipe'), part.recipe);
    rmSync(join(folder, part.name), { recursive: true, force: true });
    renameSync(target, join(folder, part.name));
  }
} catch (error) {
  process.stderr.write(`${(error as Error).message}\n`);
  process.exitCode = 1;
} finally {
  rmSync(scratch, { recursive: true, force: true });
}
