// Who waits for a socket file to appear would have to look often: a guest that could run in a few milliseconds waits for it.
// The system says when something happens to the file.

import fs from 'node:fs';
import { basename, dirname } from 'node:path';

export class SocketFileWatch {
  readonly #watcher: fs.FSWatcher | undefined;
  #hasChanged = false;
  #wake = (): void => {};

  /** Of the file at `path`. Where its folder cannot be watched, or is not there yet, every pause is a whole one. */
  constructor(path: string) {
    const name = basename(path);
    try {
      this.#watcher = fs.watch(dirname(path), { persistent: false }, (_, changed) => {
        if (changed === name) {
          this.#hasChanged = true;
          this.#wake();
        }
      });
      this.#watcher.on('error', () => {});
    } catch {
      this.#watcher = undefined;
    }
  }

  /** Resolves after so many milliseconds, or once something has happened to the file since the last pause. */
  async pause(milliseconds: number): Promise<void> {
    if (!this.#hasChanged) {
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, milliseconds);
        this.#wake = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    }
    this.#hasChanged = false;
  }

  close(): void {
    this.#watcher?.close();
  }
}
