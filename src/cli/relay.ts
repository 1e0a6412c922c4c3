// `ramferry relay LISTEN DEST…`: a live guest moves on to one QEMU, or to several at once, without its origin knowing of
// them: it runs there at once and its memory follows.

import type { Command } from 'commander';
import type { ByteChannel } from '../channel/channel.js';
import { openChannel } from '../channel/open-channel-node.js';
import { parseUri } from '../channel/uri.js';
import { DEVICE_TAIL_LIMIT_BYTES } from '../format/stream/device-tail-collector.js';
import { streamMagic } from '../format/stream/write.js';
import { RamferryError } from '../memory/errors.js';
import { identityWarnings } from '../migration/clones.js';
import type { HeldGuestEnd } from '../migration/held-guest.js';
import { type Arrival, type Handover, Relay, type RelayEnd } from '../migration/relay.js';
import { rehearseRelay } from '../migration/relay-rehearsal.js';
import { acceptOne } from './accept-one.js';
import { parseInteger } from './arguments.js';
import { toFailure } from './failure.js';
import { formatBytes, formatCount, formatDuration, formatTable } from './format.js';
import { plural } from './inspect-text.js';
import { rateOption, sizeOption } from './migration-options.js';
import { incomingProgress, progressOf, totalsTable } from './migration-report.js';
import { oneLine } from './safe-text.js';
import { recovery, restart } from './serve-hints.js';
import { REFUSED_AFTER_SWITCH, sourceFailure } from './source-failure.js';
import { isStdout } from './stdout-output.js';
import type { Verb } from './verb.js';

interface RelayVerbOptions {
  readonly spool?: string;
  readonly prefetch: number;
  readonly maxBandwidth: number;
  readonly retry: number;
  readonly run: boolean;
  readonly deviceStateLimit: number;
}

const MS = 1000;

const HELP = `
The origin needs the capability return-path, each destination postcopy-ram and return-path, and then migrate-incoming.
The guest runs in one place at every instant, and no destination takes its disks before the origin has let go. A relay
that dies before it has handed the guest over leaves it running at the origin. Afterwards the guest is in the spool, and
ramferry serve SPOOL starts it in a fresh QEMU; or it runs at the destination already, which is postcopy-paused then, and
ramferry serve --recover SPOOL brings it home.
A guest that is paused goes over whole and stays paused.
The spool takes as much room as the guest has memory that is not zero, and is removed at the end. The guest waits until it
is on disk: /dev/shm is quickest, and does not outlive the host.
With several destinations the first is the guest and the others are clones of it, with the same addresses, keys and random
numbers: give each a network and disks of its own.`;

export const relay: Verb<RelayVerbOptions> = {
  configure: (command: Command) => {
    command
      .option('--spool <file>', 'holds the guest meanwhile; by default relay-PID.mapped, here')
      .option('--prefetch <pages>', 'pages to send behind each one that the guest asks for', parseInteger(0, 4096), 32)
      .addOption(rateOption('--max-bandwidth <bytes>', 'bytes per second at most to a destination; 0 is unlimited', 0))
      .option(
        '--retry <seconds>',
        'wait this long for a destination that does not listen yet',
        parseInteger(0, 86_400),
        0,
      )
      .option('--run', 'start a guest that was paused at the origin', false)
      .addOption(sizeOption('--device-state-limit <size>', 'most device state to accept', DEVICE_TAIL_LIMIT_BYTES))
      .addHelpText('after', HELP);
  },
  examples: [
    ['tcp:0.0.0.0:4444 unix:/run/in.sock', 'then, at the origin: migrate -d tcp:HOST:4444'],
    ['unix:/run/relay.sock tcp:host2:4444 tcp:host3:4444', 'the guest goes on at host2, a clone of it at host3'],
    ['tcp::4444 tcp:host2:4444 --spool /dev/shm/guest', 'the shortest stop, if memory for it is there'],
  ],

  async run({ operands, options, signal, progress }) {
    const [uri, ...targets] = operands as [string, ...string[]];
    const spool = options.spool ?? `relay-${process.pid}.mapped`;
    checkUris(uri, targets);
    checkSpool(spool);
    await rehearseRelay();
    const destinations = await connectAll(targets, options.retry * MS, signal);
    try {
      const relayed = new Relay({
        spool,
        destinations,
        signal,
        prefetchPages: options.prefetch,
        maxBandwidth: options.maxBandwidth,
        deviceTailLimit: options.deviceStateLimit,
        onIncoming: (report, target) => progress.update(incomingProgress(report, target)),
        run: options.run,
        onArrived: ({ devices, runState, runs, by }) => {
          progress.update({ phase: 'device' });
          if (!runs) {
            progress.note(`the guest is ${runState} and stays so; --run starts it`);
          } else if (by === 'memory-first') {
            progress.note('no device of this guest waits for memory: it stands still until all of its memory is there');
          }
          for (const warning of targets.length > 1 ? identityWarnings({ devices }, []) : []) {
            progress.note(`warning: ${warning}`);
          }
        },
        onSendsOn: () => progress.note(REFUSED_AFTER_SWITCH),
        onHandedOver: ({ releasedMs }) =>
          progress.note(
            `handed over to ${targets.join(' and ')}, ${formatDuration(releasedMs)} after the last byte came`,
          ),
        onSeenRunning: (peer) =>
          progress.note(
            `the guest runs at ${peer}: it asks for its memory; should this process die, ${recovery(spool, peer)}`,
          ),
        onProgress: (report) => progress.update(progressOf(report)),
      });
      try {
        const end = await relayed.run(await acceptOne(uri, { signal, progress }));
        return {
          document: documentOf(end, uri, spool),
          text: end.error === undefined ? summary(end) : '',
          failure: end.error === undefined ? incomplete(end, spool) : withHint(end, spool, targets[0]!),
        };
      } finally {
        relayed.abandon();
      }
    } finally {
      for (const channel of destinations) {
        channel.destroy();
      }
    }
  },
};

/** The spool is written at positions, and read again. */
const checkSpool = (spool: string): void => {
  if (isStdout(spool)) {
    throw new RamferryError('usage', 'NOT_SEEKABLE', 'The spool cannot be stdout: it is a file.', {
      hint: 'name one, as in --spool /dev/shm/guest',
    });
  }
};

const checkUris = (uri: string, targets: readonly string[]): void => {
  for (const target of targets) {
    const { kind } = parseUri(target);
    if (kind !== 'tcp' && kind !== 'unix' && kind !== 'fd') {
      throw new RamferryError('usage', 'NOT_A_DESTINATION', `${target} is not a destination that can ask for pages.`, {
        value: target,
        hint: 'relay goes to tcp:, unix: or fd:',
      });
    }
  }
  parseUri(uri);
};

/** Before the origin sends anything: who is not there now would be missed when the guest stands still. */
const connectAll = async (targets: readonly string[], retryMs: number, signal: AbortSignal): Promise<ByteChannel[]> => {
  const results = await Promise.allSettled(
    targets.map(async (target) => {
      const channel = await openChannel(target, { direction: 'both', retryMs, signal });
      // QEMU 10.1 and later peek at the first bytes of a connection, and their monitor stands still until there are some.
      channel.write(streamMagic(), () => {});
      return channel;
    }),
  );
  const channels = results.flatMap((result) => (result.status === 'fulfilled' ? [result.value] : []));
  const failed = results.find((result) => result.status === 'rejected');
  if (failed !== undefined) {
    for (const channel of channels) {
      channel.destroy();
    }
    throw failed.reason;
  }
  return channels;
};

const documentOf = (end: RelayEnd, uri: string, spool: string): object => {
  const { incoming, guest, machine, arrival, handover, destinations, isSpoolKept } = end;
  return {
    uri,
    machine,
    guest,
    ...(isSpoolKept && { spool }),
    ...incoming,
    ramferry: { ...incoming.ramferry, ...(handover !== undefined && { handover }) },
    ...(arrival?.runState !== undefined && { runState: arrival.runState }),
    destinations: destinations.map(({ uri: peer, report, wasSeenRunning }) => ({
      uri: peer,
      ...report,
      seenRunning: wasSeenRunning,
    })),
  };
};

/** The guest is where it was: what to do about it. */
const withHint = ({ error, guest, destinations, switched }: RelayEnd, spool: string, target: string): RamferryError => {
  if (guest === 'unknown') {
    const failure = toFailure(error, 'relay');
    // Never told: whether the destination is to run.
    return failure.with({ hint: `${failure.hint} Then quit the QEMU at the destination, ${restart(spool, target)}` });
  }
  const cause = toFailure(error, 'relay');
  const failure = sourceFailure(cause, true, switched);
  const quit = destinations.length > 0 ? ' Quit the QEMUs at the destinations that have not ended.' : '';
  if (failure !== cause) {
    return failure.with({ hint: `${failure.hint}${quit}` });
  }
  const begin = failure.hint === undefined ? 'The' : `${failure.hint}; the`;
  return failure.with({ hint: `${begin} origin was not told to let go: its guest goes on there.${quit}` });
};

/** The guest is there, and lacks pages. */
const incomplete = ({ destinations }: RelayEnd, spool: string): RamferryError | undefined => {
  const failed = destinations.filter(({ error }) => error !== undefined);
  const [first] = failed;
  return first?.error?.with({
    file: spool,
    value: failed.map(({ uri }) => uri).join(' '),
    hint: first.wasStarted
      ? startedHint[first.by](spool, first.uri)
      : `The guest was not started there: quit that QEMU, ${restart(spool, first.uri)}`,
  });
};

const startedHint = {
  gate: (spool: string, uri: string): string =>
    `If that QEMU is still there it waits for the guest's memory: ${recovery(spool, uri)}`,
  // It answers when it has taken the disks, and started the guest.
  'memory-first': (spool: string, uri: string): string =>
    `All of the guest had been sent there, and it may run: that QEMU's query-status knows. Only if it says "inmigrate", or has ended before it took the guest: quit it, ${restart(spool, uri)}`,
} as const;

const summary = ({ incoming, handover, destinations, machine, arrival }: RelayEnd): string =>
  `${formatTable([['machine', machine], ...handoverRows(handover!)], ['left', 'left'])}${totalsTable(incoming)}${destinations.map((each) => destinationText(each, arrival)).join('')}`;

const handoverRows = ({ loadedMs, toldMs, releasedMs }: Handover): [string, string][] => [
  ['handed over in', formatDuration(releasedMs)],
  ['  devices loaded', formatDuration(loadedMs)],
  ['  held on disk', formatDuration(toldMs - loadedMs)],
  ['  origin let go', formatDuration(releasedMs - toldMs)],
];

const destinationText = (end: HeldGuestEnd, arrival: Arrival | undefined): string => {
  const { uri, report } = end;
  const { ram, ramferry } = report;
  const { demandedPages = 0, prefetchedPages = 0 } = ramferry.postcopy ?? {};
  const pages =
    ramferry.postcopy === undefined
      ? ''
      : `, ${plural(demandedPages, 'page')} asked for, ${formatCount(prefetchedPages)} came along`;
  return `\n${oneLine(uri)}: ${report.status}, ${formatBytes(ram.transferred)} in ${formatDuration(report['total-time'])}${pages}\n  ${whatIsKnown(end, arrival)}\n`;
};

/** Of the guest, without a word of the destination's monitor. */
const whatIsKnown = ({ wasSeenRunning }: HeldGuestEnd, arrival: Arrival | undefined): string => {
  if (wasSeenRunning) {
    return 'the guest runs: it asked for its memory';
  }
  return arrival?.runs === true
    ? 'all of the guest is there; its query-status says whether it runs'
    : `all of the guest is there, ${arrival?.runState} as it was; cont starts it`;
};
