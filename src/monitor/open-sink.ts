// Opens what a migration's URI names, as the sink of the engine.

import { answeringChannel } from '../channel/answering-channel.js';
import type { ByteChannel } from '../channel/channel.js';
import { openChannel } from '../channel/open-channel-node.js';
import { openPositionedFile } from '../channel/positioned-file-node.js';
import { parseUri } from '../channel/uri.js';
import { RamferryError } from '../memory/errors.js';
import { MappedRamSink } from '../source/mapped-ram-sink.js';
import type { PageSink } from '../source/page-sink.js';
import { PostcopySink } from '../source/postcopy-sink.js';
import { StreamSink } from '../source/stream-sink.js';
import type { Trace } from '../source/trace.js';
import type { SourceStart } from './source-messages.js';

/** A guest that runs a few milliseconds after its memory was saved is worth a few percent of a CPU while it is waited for. */
const POSTCOPY_RETRY_PAUSE_MS = 2;

/** A destination that loads devices asks for pages or says that it has them; one of QEMU 11.1 that cannot load them says nothing. */
export const LOAD_STALL_MS = 5000;

/** A command may log in somewhere first, and be asked for a password. */
const COMMAND_ANSWER_MS = 60_000;

/** The sink that asks for a preempt channel knows best why a destination says nothing, and gives it up after 10 s. */
const PREEMPT_ANSWER_MS = 15_000;

const answering = (channel: ByteChannel, uri: string, hasPreempt = false): ByteChannel =>
  answeringChannel(
    channel,
    parseUri(uri).kind === 'exec' ? COMMAND_ANSWER_MS : hasPreempt ? PREEMPT_ANSWER_MS : undefined,
  );

/** Rejects with a `RamferryError` that names the URI, or with the signal's reason. */
export async function openSink(start: SourceStart, signal: AbortSignal, trace: Trace): Promise<PageSink> {
  const { uri, returnPath, retryMs, mappedRam, postcopy } = start;
  if (postcopy !== undefined) {
    const retryPauseMs = POSTCOPY_RETRY_PAUSE_MS;
    const channel = await openChannel(uri, { direction: 'both', retryMs, retryPauseMs, signal });
    const openPreempt = (): Promise<ByteChannel> => openChannel(uri, { direction: 'both', signal });
    return new PostcopySink(answering(channel, uri, postcopy.preempt), {
      trace,
      loadStallMs: LOAD_STALL_MS,
      token: postcopy.token,
      ...(postcopy.preempt === true && { openPreempt }),
    });
  }
  if (mappedRam === undefined) {
    const channel = await openChannel(uri, { direction: returnPath ? 'both' : 'write', retryMs, signal });
    // The first question loads the library of system calls (10 ms): now, and not when the first pages are to be sent.
    channel.addressOf?.(new Uint8Array(1));
    return new StreamSink(returnPath ? answering(channel, uri) : channel, { returnPath, trace });
  }
  const endpoint = parseUri(uri);
  if (endpoint.kind !== 'file') {
    // MR-18
    throw new RamferryError('usage', 'NOT_SEEKABLE', `mapped-ram writes at positions, which "${uri}" does not allow.`, {
      value: uri,
      hint: 'use file:PATH[,offset=N]',
    });
  }
  const file = await openPositionedFile(endpoint.path, { ...mappedRam, start: endpoint.offset });
  if (signal.aborted) {
    file.abort();
    signal.throwIfAborted();
  }
  return new MappedRamSink(file, { trace });
}
