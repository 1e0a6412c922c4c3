// The folder of a verb that goes on for long: for sockets, and for being found again. It is removed when this process
// ends, however that happens: a shell outlives it for that, waiting for the end of a pipe that only we hold.

import { spawn } from 'node:child_process';
import fs from 'node:fs';
import { connect, createServer, type Server } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { channelError } from '../channel/channel-error.js';

/** Runtime files of a user go where the system wants them, if it says where. */
const baseFolder = (): string => process.env['XDG_RUNTIME_DIR'] ?? tmpdir();

const CONTROL = 'control';

export class RunFolder {
  readonly path: string;
  readonly #control: Server;
  readonly #janitor: ReturnType<typeof spawn>;
  readonly #removeAtExit = (): void => fs.rmSync(this.path, { recursive: true, force: true });

  /** @param prefix of its name: others find it by this */
  constructor(prefix: string, onStop: () => void) {
    try {
      this.path = fs.mkdtempSync(path.join(baseFolder(), `${prefix}-`));
    } catch (error) {
      throw channelError(error, 'create a folder in', baseFolder());
    }
    process.once('exit', this.#removeAtExit);
    // In a session of its own: Ctrl-C at the terminal is not for it.
    this.#janitor = spawn('/bin/sh', ['-c', 'read -r _; rm -rf -- "$0"', this.path], {
      detached: true,
      stdio: ['pipe', 'ignore', 'ignore'],
    });
    this.#janitor.on('error', () => {});
    this.#janitor.unref();
    this.#control = createServer(() => onStop()).listen(path.join(this.path, CONTROL));
    this.#control.unref();
  }

  remove(): void {
    process.off('exit', this.#removeAtExit);
    this.#control.close();
    this.#removeAtExit();
    this.#janitor.stdin?.destroy();
  }

  /** Asks all who have a folder of that prefix to stop; resolves with how many were there, when they are gone. */
  static async stopAll(prefix: string): Promise<number> {
    const base = baseFolder();
    const folders = fs
      .readdirSync(base)
      .filter((name) => name.startsWith(`${prefix}-`))
      .map((name) => path.join(base, name))
      .filter((folder) => fs.statSync(folder, { throwIfNoEntry: false })?.uid === process.getuid?.());
    const stopped = await Promise.all(folders.map((folder) => stop(path.join(folder, CONTROL))));
    return stopped.filter(Boolean).length;
  }
}

/** Whoever listens there takes a connection as the wish, and holds it until its process ends. */
const stop = (socket: string): Promise<boolean> =>
  new Promise((resolve) => {
    let connected = false;
    const connection = connect(socket, () => {
      connected = true;
    });
    connection.on('error', () => {});
    connection.once('close', () => resolve(connected));
    connection.resume();
  });
