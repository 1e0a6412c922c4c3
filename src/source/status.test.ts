import assert from 'node:assert/strict';
import { test } from 'node:test';
import { MigrationState, type MigrationStatus } from './status.js';

// PL-3
test('whoever comes second finds the state moved on', () => {
  const seen: MigrationStatus[] = [];
  const state = new MigrationState((status) => seen.push(status));
  for (const next of ['setup', 'active', 'device', 'completed'] as const) {
    assert.ok(state.move(next));
  }
  assert.ok(state.ended);
  assert.equal(state.move('cancelling'), false);
  assert.equal(state.move('failed'), false);
  assert.deepEqual(seen, ['setup', 'active', 'device', 'completed']);
});

test('a cancelled migration cannot complete', () => {
  const state = new MigrationState(() => {});
  state.move('setup');
  state.move('active');
  state.move('cancelling');
  assert.equal(state.move('device'), false);
  assert.equal(state.ended, false);
  assert.ok(state.move('cancelled'));
});
