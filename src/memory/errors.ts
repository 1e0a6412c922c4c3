// The one error type of the project. It lives in the lowest room because every room throws it.

/** What kind of failure an error is; decides the exit status of the command line (DESIGN section 4). */
export type ErrorKind =
  /** The operation failed: peer, I/O, verification mismatch. Exit status 1. */
  | 'failed'
  /** The caller used it wrongly. Exit status 2. */
  | 'usage'
  /** The input is not valid. Exit status 3. */
  | 'invalid';

/** Where and what, for messages and for `--json`. */
export interface ErrorDetails {
  /** File or peer the bytes came from. */
  readonly file?: string;
  /** Byte offset in the file or stream. */
  readonly offset?: number;
  /** The value that was found there. A bigint where it does not fit a number. */
  readonly value?: number | bigint | string;
  /** What to do about it. */
  readonly hint?: string;
  readonly cause?: unknown;
}

/**
 * An error with a stable `code` (upper-case words joined by underscores), and a message that is a sentence and
 * already names offset and value where they apply.
 */
export class RamferryError extends Error {
  override readonly name = 'RamferryError';
  readonly code: string;
  readonly kind: ErrorKind;
  readonly file: string | undefined;
  readonly offset: number | undefined;
  readonly value: number | bigint | string | undefined;
  readonly hint: string | undefined;
  readonly #details: ErrorDetails;

  constructor(kind: ErrorKind, code: string, message: string, details: ErrorDetails = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.kind = kind;
    this.code = code;
    this.file = details.file;
    this.offset = details.offset;
    this.value = details.value;
    this.hint = details.hint;
    this.#details = details;
  }

  /** The same error for somebody who knows more about it. Its cause is the first error that there was. */
  with(details: Omit<ErrorDetails, 'cause'>, message = this.message): RamferryError {
    return new RamferryError(this.kind, this.code, message, {
      ...this.#details,
      cause: this.#details.cause ?? this,
      ...details,
    });
  }
}
