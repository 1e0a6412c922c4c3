// What two ends of ours know of each other, and a stranger does not: 16 random bytes from each, told once over the first
// connection and shown again over one that recovers a postcopy. A stock QEMU takes part in nothing and notices nothing: a
// PING has any value, and is answered with a PONG of that value.
//
//   source        PING mark, PING word x 4 ───────▶  a stock QEMU: PONG mark, the same four words
//                                          ◀───────  ours:         PONG mark, four words of its own
//
// The bytes are not encrypted. Whoever reads the line knows them; whoever only reaches the address does not.

import { ByteWriter } from '../byte-writer.js';
import { be32 } from '../bytes.js';
import { pong } from './return-path.js';
import { ping } from './write.js';

/** The value of a PING or PONG that four words of a token follow. QEMU's own are below 5. */
export const TOKEN_MARK = 0x72666d74;

export const TOKEN_BYTES = 16;

export const randomToken = (): Uint8Array => globalThis.crypto.getRandomValues(new Uint8Array(TOKEN_BYTES));

const spelled = (token: Uint8Array, message: (value: number) => Uint8Array): Uint8Array => {
  const out = new ByteWriter(64).bytes(message(TOKEN_MARK));
  for (let at = 0; at < TOKEN_BYTES; at += 4) {
    out.bytes(message(be32(token, at)));
  }
  return out.copy();
};

/** What a source says. */
export const tokenPings = (token: Uint8Array): Uint8Array => spelled(token, ping);

/** What a destination answers. */
export const tokenPongs = (token: Uint8Array): Uint8Array => spelled(token, pong);

/** Takes as long wherever they differ. */
export const isSameToken = (a: Uint8Array, b: Uint8Array): boolean => {
  let differences = a.length ^ b.length;
  for (let at = 0; at < TOKEN_BYTES; at += 1) {
    differences |= a[at]! ^ b[at]!;
  }
  return differences === 0;
};

/** Finds the token among the values of PINGs or PONGs. */
export class TokenReader {
  readonly #words = new ByteWriter(TOKEN_BYTES);
  #isInside = false;

  /** Whether the value belongs to no token, or to one that is not complete; or the token that it completes. */
  push(value: number): 'other' | 'part' | Uint8Array {
    if (!this.#isInside) {
      this.#isInside = value === TOKEN_MARK;
      return this.#isInside ? 'part' : 'other';
    }
    this.#words.be32(value);
    if (this.#words.length < TOKEN_BYTES) {
      return 'part';
    }
    const token = this.#words.copy();
    this.#words.truncate(0);
    this.#isInside = false;
    return token;
  }
}
