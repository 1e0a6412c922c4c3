// The engine's thread: attaches the guest, opens the sink, runs one migration.

import { setTimeout as sleep } from 'node:timers/promises';
import { parentPort, workerData } from 'node:worker_threads';
import { openChannel } from '../channel/open-channel-node.js';
import { watchUnfinishedOutputs } from '../channel/output-file-node.js';
import { RamferryError } from '../memory/errors.js';
import { discardMemory } from '../memory/release-memory-node.js';
import { MigrationSource } from '../source/migration-source.js';
import type { PageSink } from '../source/page-sink.js';
import { createTrace } from '../source/trace.js';
import { DemandList } from './demand-list.js';
import { attachGuest } from './guests.js';
import { openProtector } from './open-protector.js';
import { openSink } from './open-sink.js';
import { refusePreempt, refuseRelease } from './postcopy-obstacles.js';
import { rehearseMeanwhile, rehearsePostcopy } from './rehearsal.js';
import { type FromSource, plainError, ramferryError, type SourceStart, type ToSource } from './source-messages.js';

/** A file that was given up is gone within milliseconds; a command or a disk that hangs is not waited for longer than this. */
const CLOSE_MS = 1000;

const start = workerData as SourceStart;
const port = parentPort;
if (port === null) {
  throw new Error('source-worker runs as a worker thread only');
}
const post = (message: FromSource): void => port.postMessage(message);

/** Aborted when the migration is given up. */
const givenUp = new AbortController();
let source: MigrationSource | undefined;
/** What was ordered before there was an engine to hear it. */
const early: ((source: MigrationSource) => void)[] = [];

/** Whatever comes: an order that makes no sense by the time it arrives is refused, and does not end this thread. */
const obey = (engine: MigrationSource, order: (source: MigrationSource) => void): void => {
  try {
    order(engine);
  } catch (error) {
    engine.warn(`An order was refused: ${plainError(error).message}`);
  }
};

const tell = (order: (source: MigrationSource) => void): void => {
  if (source === undefined) {
    early.push(order);
  } else {
    obey(source, order);
  }
};

/** Before there is an engine, there is only a connection to be given up. */
const giveUp = (error: RamferryError, end: (source: MigrationSource) => boolean): void => {
  if (source === undefined) {
    givenUp.abort(error);
  } else {
    obey(source, (engine) => end(engine) && givenUp.abort(error));
  }
};
const demands = new DemandList();
port.on('message', (message: ToSource) => {
  switch (message.type) {
    case 'cancel':
      giveUp(new RamferryError('failed', 'CANCELLED', 'The migration was cancelled.'), (engine) => engine.cancel());
      break;
    case 'fail': {
      const error = ramferryError(message.error);
      giveUp(error, (engine) => engine.fail(error));
      break;
    }
    case 'not-loaded':
      tell((engine) => engine.notLoaded(ramferryError(message.error)));
      break;
    case 'set-parameters':
      tell((engine) => engine.setParameters(message.changes));
      break;
    case 'start-postcopy':
      tell((engine) => engine.startPostcopy());
      break;
    case 'finish-postcopy':
      tell((engine) => engine.finishPostcopy());
      break;
    case 'pause-postcopy':
      tell((engine) => engine.pausePostcopy());
      break;
    case 'recover-postcopy':
      tell((engine) => engine.recoverPostcopy((signal) => openChannel(message.uri, { direction: 'both', signal })));
      break;
  }
});

watchUnfinishedOutputs((files) => post({ type: 'unfinished', files }));

let sink: PageSink | undefined;
/** Whoever hears of the end finds nothing half written any more. */
const sinkClosed = (): Promise<unknown> => Promise.race([sink?.closed, sleep(CLOSE_MS, undefined, { ref: false })]);

const PAUSED_NOTE =
  'The guest was saved while it was paused: all of its memory goes first, and it stays paused there. --run has it run at once.';

try {
  const trace =
    start.trace === undefined ? {} : createTrace(start.trace, (name, values) => post({ type: 'trace', name, values }));
  // One that runs there already has to get its memory.
  const recovers = start.postcopy?.recovers === true;
  const { guest, facts } = await attachGuest(start.guest, start.postcopy !== undefined && !recovers, givenUp.signal);
  // One that is to stay paused does not wait for its memory. And QEMU would start it: after a postcopy it does not look at the state.
  const staysPaused = facts?.runs === false && !recovers;
  const postcopy = staysPaused ? undefined : start.postcopy;
  if (facts !== undefined) {
    const wholly = staysPaused && start.postcopy !== undefined ? [PAUSED_NOTE] : [];
    post({ type: 'guest', facts: { ...facts, notes: [...facts.notes, ...wholly] } });
  }
  const protector = start.backgroundSnapshot && openProtector(guest, start.backgroundSnapshot, start.hold);
  if (postcopy?.preempt === true) {
    refusePreempt(guest.machine);
  }
  const releases = postcopy?.releaseRam === true;
  if (releases) {
    refuseRelease(guest);
  }
  if (postcopy !== undefined) {
    // Before the destination starts to wait.
    await rehearsePostcopy(guest, givenUp.signal);
  }
  const opening = openSink({ ...start, postcopy }, givenUp.signal, {
    trace,
    onLoadSilence: () => post({ type: 'load-silence' }),
  });
  if (postcopy !== undefined && start.retryMs > 0) {
    await rehearseMeanwhile(opening, guest);
  }
  sink = await opening;
  givenUp.signal.throwIfAborted();
  source = new MigrationSource({
    guest,
    sink,
    parameters: start.parameters,
    claim: start.claim,
    hold: start.hold,
    postcopy: postcopy && { ...postcopy, onDemand: demands.add, ...(releases && { releaseWith: discardMemory }) },
    ...(protector !== undefined && { snapshotWith: protector }),
    trace,
    onStatus: (status) => post({ type: 'status', status }),
    onPass: (pass) => post({ type: 'pass', pass }),
    onProgress: (report) => post({ type: 'progress', report }),
  });
  if (postcopy?.atOnce === true) {
    source.startPostcopy();
  }
  for (const order of early) {
    obey(source, order);
  }
  const report = await source.run();
  const error = report.status === 'completed' ? undefined : plainError(source.error);
  await sinkClosed();
  post({ type: 'ended', report, error, demands: demands.pages });
} catch (error) {
  sink?.abort(error as Error);
  await sinkClosed();
  post({ type: 'refused', error: plainError(error) });
} finally {
  port.close();
}
