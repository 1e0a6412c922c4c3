// What to type when a guest is left without the one that brought its memory. The end of a hint: the command is its last word.

import { parseUri } from '../channel/uri.js';
import { shellCommand } from '../memory/shell-command.js';

/** Whether a destination can be told to listen at the address once more. */
const isListenedAt = (uri: string): boolean => ['tcp', 'unix'].includes(parseUri(uri).kind);

/** For a QEMU that runs the guest and has lost its source: it says `postcopy-paused`. */
export const recovery = (file: string, uri: string): string =>
  isListenedAt(uri)
    ? `give it migrate-recover with ${uri}, then: ${shellCommand`ramferry serve ${file} ${uri} --recover`}`
    : `give it migrate-recover with an address, and serve ${file} there with --recover.`;

/** For a guest that was not started, and is in `file` alone. */
export const restart = (file: string, uri: string): string =>
  isListenedAt(uri)
    ? `start one that waits at ${uri}, then: ${shellCommand`ramferry serve ${file} ${uri}`}`
    : `start one that waits for it, and serve ${file} there.`;
