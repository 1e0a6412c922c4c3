// Who has a file open: what fuser(1) says, where that is not installed.

import fs from 'node:fs';

export interface FileUser {
  readonly pid: number;
  /** Its program, as the kernel shortens it. */
  readonly name: string;
}

const WRITE_MODES = 3;

const isWriter = (descriptorFolder: string, descriptor: string, file: fs.BigIntStats): boolean => {
  const { dev, ino } = fs.statSync(`${descriptorFolder}/fd/${descriptor}`, { bigint: true });
  const flags = /^flags:\s*([0-7]+)/m.exec(fs.readFileSync(`${descriptorFolder}/fdinfo/${descriptor}`, 'latin1'));
  return dev === file.dev && ino === file.ino && (Number.parseInt(flags?.[1] ?? '0', 8) & WRITE_MODES) !== 0;
};

/** Processes that have the file open for writing, as far as this one may see them. */
export const writersOf = (path: string): FileUser[] => {
  const users: FileUser[] = [];
  const file = fs.statSync(path, { bigint: true });
  for (const pid of fs.readdirSync('/proc').filter((name) => /^[0-9]+$/.test(name))) {
    const folder = `/proc/${pid}`;
    // Processes and descriptors come and go meanwhile, and those of other users are closed to us.
    const attempt = <T>(look: () => T, otherwise: T): T => {
      try {
        return look();
      } catch {
        return otherwise;
      }
    };
    const descriptors = attempt(() => fs.readdirSync(`${folder}/fd`), []);
    if (descriptors.some((descriptor) => attempt(() => isWriter(folder, descriptor, file), false))) {
      users.push({ pid: Number(pid), name: attempt(() => fs.readFileSync(`${folder}/comm`, 'utf8').trim(), '?') });
    }
  }
  return users;
};
