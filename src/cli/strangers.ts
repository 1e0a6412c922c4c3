// Who connected to a verb that waits for the source of a migration, and is none.

import type { Stranger } from '../channel/incoming-connections.js';
import { oneLine } from './safe-text.js';

/** How many are named. A port scan is not to fill the terminal. */
const MOST_NAMED = 8;

const SHOWN_BYTES = 40;

/** What a client may take us for, and sources that are set up for another kind of migration. */
const KNOWN: readonly (readonly [matches: (head: string) => boolean, what: string])[] = [
  [(head) => head.startsWith('\x16\x03'), 'it speaks TLS, which is not supported: switch tls-creds off at the source'],
  [
    (head) => head.startsWith('\x11\x22\x33\x44'),
    'it is a multifd channel: switch the capability multifd off at the source',
  ],
  [(head) => head.startsWith('\x08\x00'), 'it is a source that recovers a broken postcopy migration, and not this one'],
  [(head) => /^[A-Z]{3,7} \S+ HTTP\//.test(head), 'it is an HTTP client'],
  [(head) => head.startsWith('SSH-'), 'it is an SSH client'],
  [(head) => /^\s*\{\s*"(execute|QMP)"/.test(head), 'it speaks QMP, which is for the monitor of a QEMU'],
];

const head = (bytes: Uint8Array): string => String.fromCharCode(...bytes.subarray(0, 200));

/** The beginning of what it said, in quotation marks, or as hexadecimal digits where it is no text. */
const quoted = (said: Uint8Array): string => {
  const [line = ''] = head(said).split(/[\r\n]/);
  if (/^[\x20-\x7e]+$/.test(line)) {
    return `"${line.slice(0, SHOWN_BYTES)}${line.length > SHOWN_BYTES ? '…' : ''}"`;
  }
  return `the bytes ${Buffer.from(said.subarray(0, 8)).toString('hex')}${said.length > 8 ? '…' : ''}`;
};

/** At a unix socket all have the same address, and one that is gone already has none. */
const nameOf = ({ channel: { peer, origin } }: Stranger): string =>
  origin === undefined ? 'somebody' : origin.startsWith('user ') ? `a process of ${origin}` : peer;

const behaviour = ({ why, said }: Stranger): string => {
  const words = said.length === 0 ? '' : quoted(said);
  if (why === 'said something else') {
    const known = KNOWN.find(([matches]) => matches(head(said)));
    return `is no source of a migration: ${known?.[1] ?? `it says ${words}`}`;
  }
  return why === 'left'
    ? `connected and left, having said ${words === '' ? 'nothing' : `only ${words}`}`
    : `is connected and says ${words === '' ? 'nothing' : `nothing but ${words}`}`;
};

/** Names strangers, each kind of each origin once, and not without end. */
export class Strangers {
  readonly #note: (text: string) => void;
  readonly #named = new Set<string>();

  constructor(note: (text: string) => void) {
    this.#note = note;
  }

  add(stranger: Stranger): void {
    const { channel } = stranger;
    const what = behaviour(stranger);
    const key = `${channel.origin ?? channel.peer} ${what}`;
    if (this.#named.size > MOST_NAMED || this.#named.has(key)) {
      return;
    }
    this.#named.add(key);
    this.#note(
      this.#named.size > MOST_NAMED
        ? 'there are more connections that are none of a source: they are not named any more'
        : `${oneLine(`${nameOf(stranger)} ${what}`)}; still listening`,
    );
  }
}
