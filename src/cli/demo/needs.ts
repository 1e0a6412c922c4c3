// What `demo --guest qemu` needs that ramferry does not bring along, and how to get it.

import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { RamferryError } from '../../memory/errors.js';
import { shellCommand } from '../../memory/shell-command.js';
import { type FoundQemu, findQemu } from '../../qemu/find-qemu.js';
import { packageRoot, toolboxFolder, toolboxPrograms } from './toolbox.js';

/** QEMU has mapped-ram from 9.0 on. */
const MAJOR = 9;

/** What the demo runs with. */
export interface DemoNeeds {
  readonly qemu: FoundQemu;
  readonly kernel: string;
  readonly initramfs: string;
}

/** A thing that is not there: what it is, and the part of the toolbox that has it. */
interface Lack {
  readonly what: string;
  readonly part: string;
}

/**
 * Finds a QEMU and the Linux guest.
 * @throws RamferryError `usage` QEMU_MISSING or GUEST_MISSING, which names all that is missing
 */
export const demoNeeds = async (): Promise<DemoNeeds> => {
  const tooOld: string[] = [];
  const qemu = await findQemu(({ major, minor }) => {
    if (major < MAJOR) {
      tooOld.push(`${major}.${minor}`);
    }
    return major >= MAJOR;
  }, toolboxPrograms());
  const guest = join(toolboxFolder(), 'guest');
  const [kernel, initramfs] = [join(guest, 'vmlinuz'), join(guest, 'initramfs.gz')];
  const hasGuest = existsSync(kernel) && existsSync(initramfs);
  if (qemu !== undefined && hasGuest) {
    return { qemu, kernel, initramfs };
  }
  const found = tooOld.length > 0 ? ` (there is ${tooOld.join(' and ')})` : '';
  const lacks = [
    ...(qemu === undefined ? [{ what: `a QEMU of version ${MAJOR}.0 or newer${found}`, part: 'qemu-10' }] : []),
    ...(hasGuest ? [] : [{ what: 'a Linux guest that checks its own memory', part: 'guest' }]),
  ];
  const code = qemu === undefined ? 'QEMU_MISSING' : 'GUEST_MISSING';
  throw new RamferryError('usage', code, `The demo with QEMU lacks ${lacks.map(({ what }) => what).join(', and ')}.`, {
    file: toolboxFolder(),
    hint: howToGet(lacks),
  });
};

const howToGet = (lacks: readonly Lack[]): string => {
  const own = lacks.some(({ part }) => part === 'qemu-10')
    ? 'A QEMU of your own is found in PATH, or named by RAMFERRY_QEMU. '
    : '';
  const parts = lacks.map(({ part }) => part);
  if (!existsSync(join(packageRoot, 'scripts', 'toolbox.mjs'))) {
    return `${own}A checkout of ramferry has a script that gets what is missing, on Debian as root: toolbox.`;
  }
  const all =
    'A minute on Debian, as root, gets what is missing into the folder .toolbox of ramferry, or where RAMFERRY_TOOLBOX says';
  return `${own}${all}: ${shellCommand`npm --prefix ${packageRoot} run toolbox -- ${parts}`}`;
};
