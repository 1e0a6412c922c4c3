// What a run leaves on stdout: one document or one text, printed once, by whoever is first.

import { failureDocument } from './failure.js';
import { jsonText, terminalText } from './safe-text.js';
import type { VerbResult } from './verb.js';

/** Resolves when all is written, with the error if it was not. A reader that went away (`| head`) is no failure of ours. */
export const writeAll = (stream: NodeJS.WriteStream, text: string): Promise<Error | undefined> =>
  new Promise((resolve) => {
    stream.write(text, (error) => {
      resolve(error && (error as NodeJS.ErrnoException).code !== 'EPIPE' ? error : undefined);
    });
  });

/** The one result of a run, as a JSON document or as text. */
export class Report {
  readonly #json: boolean;
  #stream: NodeJS.WriteStream = process.stdout;
  #isPrinted = false;

  constructor(json: boolean) {
    this.#json = json;
  }

  /** Whether the result has been printed: what happens from then on is said on stderr, and by the exit status. */
  get isPrinted(): boolean {
    return this.#isPrinted;
  }

  /** For a run whose guest memory goes to stdout: nothing else may be there. */
  moveToStderr(): void {
    this.#stream = process.stderr;
  }

  /** Prints a part of the result; nothing else is printed then. Resolves with false if nobody reads it any more. */
  async printPart(text: string): Promise<boolean> {
    this.#isPrinted = true;
    const error = await writeAll(this.#stream, this.#json ? text : terminalText(text));
    if (error !== undefined) {
      throw error;
    }
    return !this.#stream.destroyed;
  }

  /** Prints the result, if none was printed before. Resolves with the error if it could not be written. */
  async print({ document, text = '', failure }: Partial<VerbResult>): Promise<Error | undefined> {
    if (this.#isPrinted) {
      return undefined;
    }
    this.#isPrinted = true;
    const error = failure && failureDocument(failure);
    return writeAll(this.#stream, this.#json ? jsonText({ ...document, error }) : terminalText(text));
  }
}
