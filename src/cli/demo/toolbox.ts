// The toolbox: QEMUs and a Linux guest that the demo and the test suite use, unpacked into a folder by `npm run toolbox`.

import { existsSync, readdirSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { PROGRAM } from '../../qemu/find-qemu.js';

/** Root of the package, which is a checkout or what npm has installed: this file is built into dist/src/cli/demo/. */
export const packageRoot = join(dirname(fileURLToPath(import.meta.url)), '..', '..', '..', '..');

/** The toolbox folder: RAMFERRY_TOOLBOX, else `.toolbox` of the checkout. */
export const toolboxFolder = (): string => process.env['RAMFERRY_TOOLBOX'] ?? join(packageRoot, '.toolbox');

/** The QEMUs of the toolbox, newest first. */
export const toolboxPrograms = (): string[] => {
  const folder = toolboxFolder();
  const versions = (existsSync(folder) ? readdirSync(folder) : []).flatMap((name) => {
    const match = /^qemu-(\d+)(?:\.(\d+))?$/.exec(name);
    return match === null ? [] : [{ name, order: Number(match[1]) * 1000 + Number(match[2] ?? 0) }];
  });
  return versions.sort((a, b) => b.order - a.order).map(({ name }) => join(folder, name, PROGRAM));
};
