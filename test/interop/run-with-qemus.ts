// What becomes of a test whose QEMU is missing, or of a version that nobody has seen yet.

import type { TestContext } from 'node:test';
import { forgetUnknownVersions, MissingReleaseError, unknownVersionsReason } from './releases.js';

export const isContinuousIntegration = process.env['CI'] === 'true';

/**
 * Runs a test that needs QEMUs. Where one cannot be had it is skipped, but for continuous integration. Where it fails with
 * a QEMU that this suite has never passed with, that is reported and is no failure of the run.
 */
export const runWithQemus = async (run: () => Promise<void>, context: TestContext): Promise<void> => {
  forgetUnknownVersions();
  const reportUnknown = (): void => {
    const reason = unknownVersionsReason();
    if (reason !== undefined) {
      context.todo(reason);
    }
  };
  context.signal.addEventListener('abort', reportUnknown);
  try {
    await run();
  } catch (error) {
    if (error instanceof MissingReleaseError && !isContinuousIntegration) {
      context.skip(error.message);
      return;
    }
    reportUnknown();
    throw error;
  } finally {
    context.signal.removeEventListener('abort', reportUnknown);
  }
};
