// Opens what a migration's URI names, as the sink of the engine.

import { answeringChannel } from '../channel/answering-channel.js';
import { openChannel } from '../channel/open-channel-node.js';
import { openPositionedFile } from '../channel/positioned-file-node.js';
import { parseUri } from '../channel/uri.js';
import { RamferryError } from '../memory/errors.js';
import { MappedRamSink } from '../source/mapped-ram-sink.js';
import type { PageSink } from '../source/page-sink.js';
import { PostcopySink } from '../source/postcopy-sink.js';
import { SILENCE } from '../source/silence.js';
import { StreamSink } from '../source/stream-sink.js';
import type { Trace } from '../source/trace.js';
import type { PostcopyStart, SourceStart } from './source-messages.js';

/** A guest that runs a few milliseconds after its memory was saved is worth a few percent of a CPU while it is waited for. */
const POSTCOPY_RETRY_PAUSE_MS = 2;

/** What a sink tells while it works. */
export interface SinkListeners {
  readonly trace?: Trace;
  /** A destination of postcopy says nothing while it loads the devices (`PostcopySinkOptions.onLoadSilence`). */
  readonly onLoadSilence?: () => void;
}

/** Which of the destinations that answer this is. */
const firstAnswerMs = (uri: string, isPreempting: boolean): number => {
  const { socket, command, preempting } = SILENCE.firstAnswer;
  return parseUri(uri).kind === 'exec' ? command : isPreempting ? preempting : socket;
};

/** How a destination is connected to that asks for the pages of a saved or running guest. */
export interface PostcopyConnection extends Pick<PostcopyStart, 'preempt' | 'token'> {
  readonly uri: string;
  /** For how long a destination that does not listen yet is waited for. */
  readonly retryMs: number;
  readonly signal?: AbortSignal;
}

/** Connects to a destination whose guest runs before it has its memory. Rejects as `openSink`. */
export const openPostcopySink = async (
  { uri, retryMs, signal, preempt = false, token }: PostcopyConnection,
  listeners: SinkListeners,
): Promise<PostcopySink> => {
  const options = { direction: 'both', ...(signal !== undefined && { signal }) } as const;
  const channel = await openChannel(uri, { ...options, retryMs, retryPauseMs: POSTCOPY_RETRY_PAUSE_MS });
  return new PostcopySink(answeringChannel(channel, firstAnswerMs(uri, preempt)), {
    ...listeners,
    loading: SILENCE.loadServed,
    token,
    ...(preempt && { openPreempt: () => openChannel(uri, options) }),
  });
};

/** Rejects with a `RamferryError` that names the URI, or with the signal's reason. */
export async function openSink(start: SourceStart, signal: AbortSignal, listeners: SinkListeners): Promise<PageSink> {
  const { uri, returnPath, retryMs, mappedRam, postcopy } = start;
  if (postcopy !== undefined) {
    return openPostcopySink({ ...postcopy, uri, retryMs, signal }, listeners);
  }
  const { trace = {} } = listeners;
  if (mappedRam === undefined) {
    const channel = await openChannel(uri, { direction: returnPath ? 'both' : 'write', retryMs, signal });
    // The first question loads the library of system calls (10 ms): now, and not when the first pages are to be sent.
    channel.addressOf?.(new Uint8Array(1));
    return new StreamSink(returnPath ? answeringChannel(channel, firstAnswerMs(uri, false)) : channel, {
      returnPath,
      isSaved: parseUri(uri).kind === 'file',
      trace,
    });
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
