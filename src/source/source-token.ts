// The source's part in what two ends of ours know of each other (format/stream/migration-token.ts).

import { isSameToken, randomToken, TokenReader, tokenPings } from '../format/stream/migration-token.js';
import { RamferryError } from '../memory/errors.js';

export class SourceToken {
  readonly #own: Uint8Array;
  readonly #isGiven: boolean;
  #reader = new TokenReader();
  #isIntroduced = false;
  /** What the destination showed; `none` of a stock QEMU, which sends back what it got. */
  #ofDestination: Uint8Array | 'none' | undefined;
  /** Whether the destination has shown over this connection that it is the one of the first. */
  #isProven = false;

  constructor(token: Uint8Array | undefined) {
    this.#own = token ?? randomToken();
    this.#isGiven = token !== undefined;
  }

  /** What to say over the first connection. */
  introduction(): Uint8Array {
    this.#isIntroduced = true;
    return tokenPings(this.#own);
  }

  /** What to say first over one that recovers. */
  proof(): Uint8Array {
    this.#reader = new TokenReader();
    this.#isProven = false;
    const isKnown = (this.#isIntroduced || this.#isGiven) && this.#ofDestination !== 'none';
    return isKnown ? tokenPings(this.#own) : new Uint8Array(0);
  }

  /**
   * Whether a PONG is part of a token.
   * @throws RamferryError if the token is not the destination's
   */
  ponged(value: number, peer: string): boolean {
    const read = this.#reader.push(value);
    if (read instanceof Uint8Array) {
      const isEcho = isSameToken(read, this.#own);
      this.#ofDestination ??= isEcho ? 'none' : read;
      const known = this.#ofDestination;
      if (known === 'none' ? !isEcho : !isSameToken(read, known)) {
        throw stranger(peer);
      }
      this.#isProven = true;
    }
    return read !== 'other';
  }

  /** Before a page leaves over a connection that recovers. */
  check(peer: string): void {
    if (this.#ofDestination instanceof Uint8Array && !this.#isProven) {
      throw stranger(peer);
    }
  }
}

const stranger = (peer: string): RamferryError =>
  new RamferryError(
    'failed',
    'MIGRATION_TOKEN',
    `The destination ${peer} is not the one that this migration began with.`,
    {
      file: peer,
      hint: 'recover towards the address at which the destination listens; its guest waits there',
    },
  );
