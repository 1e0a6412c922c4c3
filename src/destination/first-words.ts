// What a source says first, over its first connection and over one that recovers a postcopy. How much that proves is in
// docs/postcopy.md.

import type { Judge, Verdict } from '../channel/incoming-connections.js';
import { be16, latin1 } from '../format/bytes.js';
import { Command, ElementType } from '../format/stream/constants.js';
import { tokenPings } from '../format/stream/migration-token.js';

/** Whether `bytes` are the beginning of what is expected, or all of it and more. */
const compare = (bytes: Uint8Array, expected: Uint8Array): Verdict => {
  const count = Math.min(bytes.length, expected.length);
  for (let at = 0; at < count; at += 1) {
    if (bytes[at] !== expected[at]) {
      return 'no';
    }
  }
  return count === expected.length ? 'yes' : 'more';
};

const STREAM_START = new TextEncoder().encode('QEVM');

/** A source that begins a migration. */
export const beginsStream: Judge = (_channel, bytes) => compare(bytes, STREAM_START);

export interface KnownSource {
  /** What the first connection told, where its source is one of ours. */
  readonly token: Uint8Array | undefined;
  /** Where the first connection came from. */
  readonly origin: string | undefined;
  readonly blockNames: ReadonlySet<string>;
}

/** The source of a paused postcopy: it shows its token or, where it has none, asks for a block that there is. */
export const recovers = ({ token, origin, blockNames }: KnownSource): Judge => {
  if (token !== undefined) {
    const expected = tokenPings(token);
    return (_channel, bytes) => compare(bytes, expected);
  }
  return (channel, bytes) =>
    origin !== undefined && channel.origin !== undefined && channel.origin !== origin
      ? 'no'
      : asksForBlock(bytes, blockNames);
};

/** Element type, command, length, and a block's name with its length. */
const HEAD_BYTES = 6;

const asksForBlock = (bytes: Uint8Array, names: ReadonlySet<string>): Verdict => {
  const start = compare(bytes, Uint8Array.of(ElementType.COMMAND, 0, Command.RECV_BITMAP));
  if (start === 'no' || bytes.length < HEAD_BYTES) {
    return start === 'no' ? 'no' : 'more';
  }
  const nameBytes = bytes[HEAD_BYTES - 1]!;
  if (be16(bytes, 3) !== 1 + nameBytes) {
    return 'no';
  }
  const end = HEAD_BYTES + nameBytes;
  return bytes.length < end ? 'more' : names.has(latin1(bytes, HEAD_BYTES, end)) ? 'yes' : 'no';
};
