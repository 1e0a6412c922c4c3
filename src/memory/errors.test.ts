import assert from 'node:assert/strict';
import { test } from 'node:test';
import { RamferryError } from './errors.js';

test('an error of which more is known keeps what was known, and the first cause', () => {
  const first = new RamferryError('invalid', 'X', 'The y is 7.', { offset: 12, value: 7, cause: undefined });
  const named = first.with({ file: 'f' });
  const advised = named.with({ hint: 'look there' }, 'Clone 3: the y is 7.');
  const { kind, code, message, file, offset, value, hint } = advised;
  assert.deepEqual(
    { kind, code, message, file, offset, value, hint },
    {
      kind: 'invalid',
      code: 'X',
      message: 'Clone 3: the y is 7.',
      file: 'f',
      offset: 12,
      value: 7,
      hint: 'look there',
    },
  );
  assert.equal(named.message, 'The y is 7.');
  assert.equal(named.cause, first);
  assert.equal(advised.cause, first);
});
