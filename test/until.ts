// Waiting in a test for what others do in the same thread.

import assert from 'node:assert/strict';

export const nextTurn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

/** Far more than anything takes. */
const DEADLINE_MS = 20_000;

/** Lets the others have their turns until `condition` holds. Where a rule is broken, the test fails and does not hang. */
export const until = async (condition: () => boolean): Promise<void> => {
  const deadline = performance.now() + DEADLINE_MS;
  while (!condition()) {
    assert.ok(performance.now() < deadline, `it never holds: ${condition}`);
    await nextTurn();
  }
};
