// The destination's part in what two ends of ours know of each other (format/stream/migration-token.ts).

import { invalid, withFile } from '../format/invalid.js';
import { isSameToken, randomToken, TokenReader, tokenPongs } from '../format/stream/migration-token.js';

export class DestinationToken {
  readonly #own = randomToken();
  #reader = new TokenReader();
  #ofSource: Uint8Array | undefined;

  /** What the source showed before the switch; undefined of a stock QEMU. */
  get ofSource(): Uint8Array | undefined {
    return this.#ofSource;
  }

  /** The link was replaced: of what it said nothing is half said any more. */
  reconnected(): void {
    this.#reader = new TokenReader();
  }

  /**
   * What to answer to a PING; undefined for one that is part of no token.
   * @param mayShow whether a source may still say for the first time who it is
   */
  pinged(value: number, mayShow: boolean, peer: string): Uint8Array | undefined {
    const read = this.#reader.push(value);
    if (read === 'other') {
      return undefined;
    }
    if (read === 'part') {
      return new Uint8Array(0);
    }
    this.#ofSource ??= mayShow ? read : undefined;
    if (this.#ofSource === undefined || !isSameToken(read, this.#ofSource)) {
      throw withFile(
        invalid('MIGRATION_TOKEN', 'The source shows a token that is not the one of this migration', 0),
        peer,
      );
    }
    return tokenPongs(this.#own);
  }
}
