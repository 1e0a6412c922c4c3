// Where the QEMU is that ramferry starts: RAMFERRY_QEMU, then PATH. A set RAMFERRY_QEMU that cannot be run is an error, not a reason
// to look further.

import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { delimiter, join } from 'node:path';
import { promisify } from 'node:util';
import { RamferryError } from '../memory/errors.js';
import { launchingWords } from './launcher.js';
import type { QemuVersion } from './qmp-client.js';

export interface FoundQemu {
  /** Path of the program. */
  readonly program: string;
  readonly version: QemuVersion;
}

export const PROGRAM = 'qemu-system-x86_64';

const inPath = (): string[] => (process.env['PATH'] ?? '').split(delimiter).map((folder) => join(folder, PROGRAM));

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

/** The first QEMU whose version is accepted; undefined if there is none. @param others programs to try last */
export const findQemu = async (
  accepts: (version: QemuVersion) => boolean = () => true,
  others: readonly string[] = [],
): Promise<FoundQemu | undefined> => {
  const chosen = process.env['RAMFERRY_QEMU'];
  const programs = [...(chosen ? [chosen] : []), ...[...inPath(), ...others].filter((path) => existsSync(path))];
  for (const program of programs) {
    const version = await qemuVersion(program);
    if (accepts(version)) {
      return { program, version };
    }
  }
  return undefined;
};
