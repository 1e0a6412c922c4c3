// A Node process of its own for one side of a benchmark, as QEMU is one: its memory starts untouched, its event loop is
// free of the benchmark's. It speaks in messages; it ends with this process, whichever way that ends.

import { type ChildProcess, fork } from 'node:child_process';

export class NodeChild<Message> {
  readonly #child: ChildProcess;
  readonly #exited: Promise<void>;
  readonly #messages: Message[] = [];
  #waiting: { resolve(message: Message): void; reject(error: Error): void } | undefined;
  #end: Error | undefined;

  /** Runs the module bench/NAME.ts. */
  constructor(name: string, args: readonly string[]) {
    this.#child = fork(new URL(`./${name}.js`, import.meta.url), args, {
      stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
    });
    this.#child.on('message', (message) => {
      this.#messages.push(message as Message);
      this.#settle();
    });
    this.#exited = new Promise((resolve) => {
      this.#child.once('exit', (code, signal) => {
        this.#end = new Error(`bench/${name} ended with ${signal ?? `status ${code}`}`);
        this.#settle();
        resolve();
      });
    });
  }

  /** The next message of the child; one call at a time. */
  next(): Promise<Message> {
    return new Promise((resolve, reject) => {
      this.#waiting = { resolve, reject };
      this.#settle();
    });
  }

  /** Tells the child something and waits for its next message. */
  ask(question: unknown): Promise<Message> {
    this.#child.send(question as object);
    return this.next();
  }

  /** Ends it and resolves when its memory is free again. */
  async close(): Promise<void> {
    this.#child.kill('SIGKILL');
    await this.#exited;
  }

  #settle(): void {
    const waiting = this.#waiting;
    if (waiting === undefined || (this.#messages.length === 0 && this.#end === undefined)) {
      return;
    }
    this.#waiting = undefined;
    const message = this.#messages.shift();
    if (message !== undefined) {
      waiting.resolve(message);
    } else {
      waiting.reject(this.#end!);
    }
  }
}

/** The child's side. An uncaught error ends the child with a trace on stderr, and the benchmark with it. */
export const tellParent = (message: unknown): void => {
  process.send!(message);
};

/** Answers every message of the parent, and lives until the parent is gone. */
export const serveParent = (answer: (question: unknown) => Promise<unknown>): void => {
  process.on('message', async (question) => tellParent(await answer(question)));
};
