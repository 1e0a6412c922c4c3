// The token of a migration as its source sees it: who answers with another one is not the destination.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { be32 } from '../format/bytes.js';
import { randomToken, TOKEN_MARK, tokenPings } from '../format/stream/migration-token.js';
import { SourceToken } from './source-token.js';

/** Answers as a destination with that token does; a stock QEMU's is what it was told. */
const answer = (source: SourceToken, token: Uint8Array): void => {
  for (const value of [TOKEN_MARK, ...[0, 4, 8, 12].map((at) => be32(token, at))]) {
    assert.equal(source.ponged(value, 'test:peer'), true);
  }
};

const stranger = { code: 'MIGRATION_TOKEN', file: 'test:peer' };

test('a destination of ours shows the same token again, or gets no page', () => {
  const source = new SourceToken(undefined);
  const mine = source.introduction();
  const theirs = randomToken();
  assert.equal(source.ponged(1, 'test:peer'), false);
  answer(source, theirs);
  assert.deepEqual(source.proof(), mine);
  assert.throws(() => source.check('test:peer'), stranger);
  answer(source, theirs);
  source.check('test:peer');
  // Over the next connection anew.
  source.proof();
  assert.throws(() => source.check('test:peer'), stranger);
  assert.throws(() => answer(source, randomToken()), stranger);
  assert.throws(() => source.check('test:peer'), stranger);
});

test('a stock QEMU sends back what it gets, and is not asked again', () => {
  const token = randomToken();
  const source = new SourceToken(token);
  assert.deepEqual(source.introduction(), tokenPings(token));
  answer(source, token);
  assert.equal(source.proof().length, 0);
  source.check('test:peer');
});

test('a source that takes over shows the token that it was given, and none otherwise', () => {
  const token = randomToken();
  assert.deepEqual(new SourceToken(token).proof(), tokenPings(token));
  assert.equal(new SourceToken(undefined).proof().length, 0);
});
