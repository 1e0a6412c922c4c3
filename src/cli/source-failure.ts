// What a failed migration means for the source of it, which `receive` and `relay` are told by how its connection ended.

import type { SwitchedSource } from '../destination/refused-postcopy.js';
import { RamferryError } from '../memory/errors.js';

/** Why this process goes on for a while after a failure. */
export const REFUSED_AFTER_SWITCH =
  'the source has switched to postcopy: it sends the rest of its memory, which is dropped here, and is told then that it failed';

const RUNS_ON = 'its guest runs on there';

/** What a source does, or may do, whose guest stood still already. */
const SWITCHED_HINTS: Readonly<Record<SwitchedSource, string>> = {
  'sends-on': 'it had switched to postcopy, and is told of the failure when it has sent all of its memory',
  told: 'it had switched to postcopy, and was told: QEMU 10 and 11 go on with the guest, 7.2 after cont',
  gone: 'it had switched to postcopy, and could not be told: if its QEMU is there, query-status says whether the guest runs; in finish-migrate no command makes it go on',
};

/**
 * A source that leaves too early has failed, or was told to cancel; only from a file that means a damaged stream.
 * @param switched how a source fares that had switched to postcopy
 */
export const sourceFailure = (error: Error, isLive: boolean, switched?: SwitchedSource): RamferryError => {
  if (!(error instanceof RamferryError)) {
    throw error;
  }
  const { file, offset } = error;
  if (error.code !== 'STREAM_INCOMPLETE' || !isLive) {
    if (switched === undefined) {
      return error;
    }
    const advice = error.hint === undefined ? '' : `${error.hint.replace(/\.$/, '')}; `;
    return error.with({ hint: `${advice}${SWITCHED_HINTS[switched]}.` });
  }
  const hint = switched === undefined ? RUNS_ON : SWITCHED_HINTS[switched];
  return new RamferryError('failed', 'PEER_CLOSED', `The source closed the connection too early. ${error.message}`, {
    ...(file !== undefined && { file }),
    ...(offset !== undefined && { offset }),
    hint: `It has failed or was cancelled, and says more about it; ${hint}.`,
    cause: error,
  });
};
