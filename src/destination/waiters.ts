// Where callbacks meet promises: channels and sinks report with callbacks, the engine waits for states.

export class Waiters {
  #resolvers: (() => void)[] = [];

  /** Resolves once `holds` returns true, which is looked at now and after every `wake`. Rejects with what it throws. */
  async until(holds: () => boolean): Promise<void> {
    while (!holds()) {
      await new Promise<void>((resolve) => this.#resolvers.push(resolve));
    }
  }

  /** Something changed. */
  wake(): void {
    for (const resolve of this.#resolvers.splice(0)) {
      resolve();
    }
  }
}
