// Lets another agent come between two accesses to shared memory, in one thread: while `work` runs, `step` is called before
// every `Atomics` operation on one of the buffers. What `step` runs is not interrupted itself.

const OPERATIONS = ['load', 'store', 'exchange', 'compareExchange', 'add', 'sub', 'or', 'and'] as const;

type Operation = (array: Int32Array, ...parameters: number[]) => number;

export const withAtomicSteps = <Value>(
  buffers: readonly SharedArrayBuffer[],
  step: () => void,
  work: () => Value,
): Value => {
  const atomics = Atomics as unknown as Record<string, Operation>;
  const originals = new Map(OPERATIONS.map((name) => [name, atomics[name]!]));
  let isStepping = false;
  for (const [name, original] of originals) {
    atomics[name] = (array, ...parameters) => {
      if (!isStepping && (buffers as readonly ArrayBufferLike[]).includes(array.buffer)) {
        isStepping = true;
        try {
          step();
        } finally {
          isStepping = false;
        }
      }
      return original.call(Atomics, array, ...parameters);
    };
  }
  try {
    return work();
  } finally {
    for (const [name, original] of originals) {
      atomics[name] = original;
    }
  }
};
