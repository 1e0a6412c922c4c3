// A connection whose other end has to be the destination of a migration: it answers within seconds, and in the words of the
// return path. What it is instead is said by its first bytes; and what it said wins over the broken pipe that follows.

import { RamferryError } from '../memory/errors.js';
import type { ByteChannel, ChannelReader, WriteDone } from './channel.js';

/** For what the peer said before it closed to be read, when a write already fails. */
const LAST_WORDS_MS = 300;

/** How other protocols begin. */
const FOREIGN: readonly (readonly [(head: string) => boolean, string, string])[] = [
  [
    (head) => head.trimStart().startsWith('{"QMP"'),
    "the monitor of a QEMU (QMP), not its migration's address",
    'Give the address of migrate-incoming, or of -incoming.',
  ],
  [(head) => head.startsWith('HTTP/'), 'an HTTP server', 'Give the address of a QEMU that was started with -incoming.'],
  [
    (head) => head.startsWith('SSH-'),
    'an SSH server',
    'To go through SSH, use exec: with a command, or a forwarded port.',
  ],
  [(head) => head.startsWith('RFB '), 'a VNC server', 'Give the address of migrate-incoming, or of -incoming.'],
  [
    // A record of TLS 1.0 to 1.3: an alert, mostly.
    (head) => head.charCodeAt(0) >= 0x14 && head.charCodeAt(0) <= 0x17 && head.charCodeAt(1) === 3,
    'a TLS end, which does not understand what is not encrypted',
    'Switch tls-creds off at the destination: TLS is not supported.',
  ],
  [
    (head) => head.startsWith('QEVM'),
    'the source of a migration itself',
    'A source connects to a destination, and so do we: start the other one with -incoming.',
  ],
];

const SILENT_HINT =
  'A QEMU with the capability multifd waits for more connections: switch it off there. Or it expects TLS (tls-creds), is ' +
  'stopped by a debugger or SIGSTOP, or is no destination of a migration.';

const UNANSWERED_HINT =
  'A QEMU prints why: another machine type, -m or UUID than the guest has, an unknown capability, TLS (tls-creds). One that loads ' +
  'by postcopy also needs userfaultfd: as an ordinary user, vm.unprivileged_userfaultfd=1.';

/** `value` of the error where the peer closed without an answer. */
export const UNANSWERED = 'unanswered';

/**
 * The same channel, which fails by name where the other end is no destination of a migration.
 * @param answerMs for how long that may say nothing
 */
export const answeringChannel = (channel: ByteChannel, answerMs: number): ByteChannel => {
  const { peer } = channel;
  let reader: ChannelReader | undefined;
  let hasAnswered = false;
  let isOver = false;
  let timer: ReturnType<typeof setTimeout> | undefined;
  const held = new Set<() => void>();
  const release = (): void => {
    for (const tell of held) {
      tell();
    }
  };
  const give = (code: string, message: string, hint: string, value?: string): void => {
    if (!isOver) {
      isOver = true;
      clearTimeout(timer);
      reader?.failed(
        new RamferryError('failed', code, message, { file: peer, hint, ...(value !== undefined && { value }) }),
      );
      release();
      channel.destroy();
    }
  };
  const watch = (): void => {
    if (timer === undefined && !hasAnswered && reader !== undefined) {
      const message = `${peer} took the connection, and says nothing for ${answerMs / 1000} s.`;
      timer = setTimeout(() => give('PEER_SILENT', message, SILENT_HINT), answerMs);
      timer.unref?.();
    }
  };
  /** A write that failed is told of when the peer's last words are read. */
  const told =
    (done: WriteDone): WriteDone =>
    (error) => {
      if (error === undefined || isOver || reader === undefined) {
        done(error);
        return;
      }
      const tell = (): void => {
        clearTimeout(patience);
        if (held.delete(tell)) {
          done(error);
        }
      };
      const patience = setTimeout(tell, LAST_WORDS_MS);
      held.add(tell);
    };
  const stop = (): void => {
    isOver = true;
    clearTimeout(timer);
    release();
  };
  const watched = (inner: ChannelReader): ChannelReader => {
    let last: Uint8Array = new Uint8Array(0);
    return {
      buffer: () => {
        last = inner.buffer();
        return last;
      },
      received: (byteCount) => {
        if (isOver) {
          return;
        }
        if (!hasAnswered) {
          hasAnswered = true;
          clearTimeout(timer);
          const head = String.fromCharCode(...last.subarray(0, Math.min(byteCount, 16)));
          const foreign = FOREIGN.find(([matches]) => matches(head));
          if (foreign !== undefined) {
            give('NOT_A_DESTINATION', `${peer} is ${foreign[1]}.`, foreign[2]);
            return;
          }
        }
        inner.received(byteCount);
      },
      ended: () => {
        if (!hasAnswered) {
          give('PEER_CLOSED', `${peer} closed the connection, and no answer came.`, UNANSWERED_HINT, UNANSWERED);
        } else if (!isOver) {
          inner.ended();
          stop();
        }
      },
      failed: (error) => {
        if (!hasAnswered && error instanceof RamferryError && error.code === 'PEER_CLOSED') {
          give('PEER_CLOSED', `${peer} closed the connection, and no answer came.`, UNANSWERED_HINT, UNANSWERED);
        } else if (!isOver) {
          inner.failed(error);
          stop();
        }
      },
    };
  };
  return {
    peer,
    origin: channel.origin,
    closed: channel.closed,
    write: (bytes, done) => {
      watch();
      channel.write(bytes, told(done));
    },
    ...(channel.addressOf !== undefined && { addressOf: (memory: Uint8Array) => channel.addressOf?.(memory) }),
    ...(channel.writeVector !== undefined && {
      writeVector: (vector, done) => channel.writeVector?.(vector, told(done)),
    }),
    read: (inner) => {
      reader = inner;
      channel.read(watched(inner));
    },
    pause: () => channel.pause(),
    resume: () => channel.resume(),
    end: () => channel.end(),
    destroy: () => {
      stop();
      channel.destroy();
    },
  };
};
