// A channel as two one-way halves: a file has only one of them, stdio's two are different descriptors.

import { RamferryError } from '../memory/errors.js';
import type { ByteChannel } from './channel.js';

export type InputHalf = Pick<ByteChannel, 'read' | 'pause' | 'resume' | 'destroy' | 'closed'>;
export type OutputHalf = Pick<ByteChannel, 'write' | 'end' | 'destroy' | 'closed'>;

/** Stands for the direction that a medium lacks: nothing comes from there. */
const noInput: InputHalf = {
  read: (reader) => queueMicrotask(() => reader.ended()),
  pause: () => {},
  resume: () => {},
  destroy: () => {},
  closed: Promise.resolve(),
};

/** Stands for the direction that a medium lacks: nothing can be written there. */
const noOutput = (peer: string): OutputHalf => ({
  write: (_bytes, done) =>
    queueMicrotask(() =>
      done(new RamferryError('failed', 'READ_ONLY', `${peer} is open for reading only.`, { file: peer })),
    ),
  end: () => Promise.resolve(),
  destroy: () => {},
  closed: Promise.resolve(),
});

export const joinHalves = (
  peer: string,
  input: InputHalf = noInput,
  output: OutputHalf = noOutput(peer),
): ByteChannel => ({
  peer,
  read: (reader) => input.read(reader),
  pause: () => input.pause(),
  resume: () => input.resume(),
  write: (bytes, done) => output.write(bytes, done),
  end: () => output.end(),
  destroy: () => {
    input.destroy();
    output.destroy();
  },
  closed: Promise.all([input.closed, output.closed]).then(() => {}),
});
