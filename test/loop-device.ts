// A file as a block device, where this user may make one.

import { execFileSync } from 'node:child_process';
import type { TestContext } from 'node:test';

/** Runs `body` with a loop device of the file; skips the test where there can be none. */
export const withLoopDevice = async (
  context: TestContext,
  file: string,
  body: (device: string) => Promise<void>,
): Promise<void> => {
  let device: string;
  try {
    device = execFileSync('losetup', ['-f', '--show', file], { encoding: 'utf8', stdio: 'pipe' }).trim();
  } catch {
    context.skip('this user cannot make loop devices here');
    return;
  }
  try {
    await body(device);
  } finally {
    execFileSync('losetup', ['-d', device]);
  }
};
