// Where the QEMU is that ramferry starts: RAMFERRY_QEMU, then PATH, then the toolbox that the test suite unpacks into
// the checkout (DESIGN.md section 6). A set RAMFERRY_QEMU that cannot be run is an error, not a reason to look further.

import { execFile } from 'node:child_process';
import { existsSync, readdirSync } from 'node:fs';
import { delimiter, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { RamferryError } from '../memory/errors.js';
import { launchingWords } from './launcher.js';
import type { QemuVersion } from './qmp-client.js';

export interface FoundQemu {
  /** Path of the program. */
  readonly program: string;
  readonly version: QemuVersion;
}

const PROGRAM = 'qemu-system-x86_64';

/** Root of the package, which is a checkout or what npm has installed: this file is built into dist/src/qemu/. */
export const packageRoot = join(dirname(fileURLToPath(import.meta.url)), '..', '..', '..');

/** The toolbox folder: RAMFERRY_TOOLBOX, else `.toolbox` of the checkout. */
export const toolboxFolder = (): string => process.env['RAMFERRY_TOOLBOX'] ?? join(packageRoot, '.toolbox');

/** The QEMUs of the toolbox, newest first. */
const toolboxPrograms = (): string[] => {
  const folder = toolboxFolder();
  const versions = (existsSync(folder) ? readdirSync(folder) : []).flatMap((name) => {
    const match = /^qemu-(\d+)(?:\.(\d+))?$/.exec(name);
    return match === null ? [] : [{ name, order: Number(match[1]) * 1000 + Number(match[2] ?? 0) }];
  });
  return versions.sort((a, b) => b.order - a.order).map(({ name }) => join(folder, name, PROGRAM));
};

const candidates = (): string[] => [
  ...(process.env['PATH'] ?? '').split(delimiter).map((folder) => join(folder, PROGRAM)),
  ...toolboxPrograms(),
];

const versions = new Map<string, Promise<QemuVersion>>();

/**
 * The version that a QEMU says it has, which is asked once. `command` is the program, with what launches it in front
 * and its options behind, if it has any.
 * @throws RamferryError QEMU_NOT_RUNNABLE
 */
export const qemuVersion = (command: string | readonly string[]): Promise<QemuVersion> => {
  const words = typeof command === 'string' ? [command] : launchingWords(command);
  const key = words.join('\0');
  const known = versions.get(key) ?? askVersion(words);
  versions.set(key, known);
  known.catch(() => versions.delete(key));
  return known;
};

const askVersion = async ([launcher, ...words]: readonly string[]): Promise<QemuVersion> => {
  const program = words.at(-1) ?? launcher ?? '';
  try {
    const { stdout } = await promisify(execFile)(launcher ?? '', [...words, '--version'], { timeout: 30_000 });
    const match = /version (\d+)\.(\d+)\.(\d+)/.exec(stdout);
    if (match !== null) {
      return { major: Number(match[1]), minor: Number(match[2]), micro: Number(match[3]) };
    }
  } catch (cause) {
    throw new RamferryError('failed', 'QEMU_NOT_RUNNABLE', `${program} cannot be run.`, { file: program, cause });
  }
  throw new RamferryError('failed', 'QEMU_NOT_RUNNABLE', `${program} does not say which version of QEMU it is.`, {
    file: program,
    hint: 'A script in its place has to hand on its arguments: exec qemu-system-x86_64 … "$@"',
  });
};

/** Whether a version is at least `major`.`minor`. */
export const isAtLeast = (version: QemuVersion, major: number, minor: number): boolean =>
  version.major > major || (version.major === major && version.minor >= minor);

/** The first QEMU whose version is accepted; undefined if there is none. */
export const findQemu = async (
  accepts: (version: QemuVersion) => boolean = () => true,
): Promise<FoundQemu | undefined> => {
  const chosen = process.env['RAMFERRY_QEMU'];
  const programs = [...(chosen ? [chosen] : []), ...candidates().filter((path) => existsSync(path))];
  for (const program of programs) {
    const version = await qemuVersion(program);
    if (accepts(version)) {
      return { program, version };
    }
  }
  return undefined;
};
