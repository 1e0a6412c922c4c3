// `ramferry receive URI OUT`: the destination of a live migration, which saves the guest instead of running it.
//
//   source ──▶ stream reader ──▶ OUT.ramferry-partial-PID ──▶ fsync, rename to OUT ──▶ SHUT(0) ──▶ source lets go
//                                                                  └─ anything before this fails: no OUT, and the
//                                                                     guest runs on at the source

import fs from 'node:fs';
import { promisify } from 'node:util';
import { type Command, Option } from 'commander';
import type { ByteChannel } from '../channel/channel.js';
import { channelError } from '../channel/channel-error.js';
import { openChannel } from '../channel/open-channel-node.js';
import { OutputFile } from '../channel/output-file-node.js';
import type { PositionedFile } from '../channel/positioned-file.js';
import { positionedFile } from '../channel/positioned-file-node.js';
import { type Endpoint, parseUri } from '../channel/uri.js';
import { FileTarget } from '../destination/file-target.js';
import { MappedRamTarget } from '../destination/mapped-ram-target.js';
import { type IncomingState, MigrationDestination } from '../destination/migration-destination.js';
import { PassTarget } from '../destination/pass-target.js';
import type { IncomingReport } from '../destination/statistics.js';
import type { DigestingTarget, DigestOption } from '../destination/target.js';
import type { RamDigest } from '../format/ram-digest.js';
import { STREAM_VERSION } from '../format/stream/constants.js';
import { DEVICE_TAIL_LIMIT_BYTES } from '../format/stream/device-tail-collector.js';
import { RamferryError } from '../memory/errors.js';
import { digestOf } from '../memory-file/check-digest-sidecar-node.js';
import { writeSidecar } from '../memory-file/write-digest-sidecar-node.js';
import { acceptOne } from './accept-one.js';
import { parseSize } from './arguments.js';
import { hasSidecar, NO_DIGEST_HELP, outputsWithSidecar, refuseForeignOutput } from './digest-sidecar.js';
import { toFailure } from './failure.js';
import { pathsOfUri } from './files-of-run.js';
import { formatBytes, formatCount, formatTable } from './format.js';
import { incomingProgress, totalsTable } from './migration-report.js';
import type { Progress } from './progress.js';
import {
  type FileOptions,
  inSlices,
  pageSizeOption,
  readWholeMemoryFile,
  type Surroundings,
} from './read-memory-file.js';
import { ReceivedOnStdout } from './received-on-stdout.js';
import { oneLine } from './safe-text.js';
import { REFUSED_AFTER_SWITCH, sourceFailure } from './source-failure.js';
import { isStdout, refuseUnorderedStdout } from './stdout-output.js';
import { terminalColors } from './terminal.js';
import type { Verb } from './verb.js';

const write = promisify(fs.write);

type Format = 'mapped-ram' | 'stream';

interface ReceiveOptions extends FileOptions {
  readonly to: Format;
  readonly deviceStateLimit: number;
  readonly digest: boolean;
}

export const receive: Verb<ReceiveOptions> = {
  configure: (command: Command) => {
    command
      .addOption(new Option('--to <format>', 'format of the file').choices(['mapped-ram', 'stream']).default('stream'))
      .addOption(
        new Option('--device-state-limit <size>', 'most device state to accept')
          .argParser(parseSize)
          .default(DEVICE_TAIL_LIMIT_BYTES, formatBytes(DEVICE_TAIL_LIMIT_BYTES)),
      )
      .option('--no-digest', NO_DIGEST_HELP)
      .addOption(pageSizeOption())
      .addHelpText(
        'after',
        '\nMemory: below 100 MiB plus three times the device state; the digest takes 2 MiB more for each GiB of guest\n' +
          'memory that is not zero, --to mapped-ram two bits a page.\n' +
          'A stream file holds all that the source sends: a guest that is busy meanwhile makes it larger than its RAM.\n' +
          'A mapped-ram file has one place for each page, and none for zero pages; load it with capability mapped-ram.',
      );
  },
  examples: [
    ['tcp:0.0.0.0:4444 guest.mig', 'then, at the source: migrate -d tcp:HOST:4444'],
    ['unix:/run/in.sock guest.mig --to mapped-ram --json', 'never larger than RAM; with a JSON report'],
    ["'exec:ssh host2 cat guest.mig' guest.mig", 'checks and copies a file of another host'],
  ],

  files: ([uri, out], { digest }) => ({ reads: pathsOfUri(uri!, 'read'), writes: outputsWithSidecar(out!, digest) }),

  async run({ operands, options, signal, progress }) {
    const [uri, out] = operands as [string, string];
    const endpoint = parseUri(uri);
    if (options.digest) {
      refuseForeignOutput(out);
    }
    if (options.to === 'mapped-ram') {
      refuseUnorderedStdout(out, options.to, 'name a file, or receive it as a stream');
    }
    const file: Received = isStdout(out)
      ? new ReceivedOnStdout()
      : openReceived[options.to](OutputFile.open(out), { digests: options.digest });
    try {
      const isHeard = hasListener(endpoint);
      const channel = await connect(uri, endpoint, signal, progress);
      const target = new PassTarget(file.target);
      let received: IncomingState | undefined;
      const destination = new MigrationDestination({
        channel,
        target,
        signal,
        isRecording: !isHeard,
        ...(isHeard && { postcopy: 'whole' as const }),
        deviceTailLimit: options.deviceStateLimit,
        ...(options.pageSize !== undefined && { targetPageSize: options.pageSize }),
        commit: async (state) => {
          received = state;
          progress.update({ phase: 'syncing the file' });
          await file.commit(state);
        },
        onProgress: (report) => progress.update(incomingProgress(report, target)),
      });
      const report = await destination.run();
      if (destination.switchedSource === 'sends-on') {
        progress.note(REFUSED_AFTER_SWITCH);
      }
      // The source may still be reading our last word; the process must not end before it has.
      await channel.closed;
      const { machine } = target;
      const facts = {
        uri: channel.peer,
        file: out,
        fileBytes: file.bytes,
        container: 'qemu',
        streamVersion: STREAM_VERSION,
        machine,
      };
      const document = { ...facts, format: options.to, ...report };
      if (destination.error !== undefined) {
        const { error, switchedSource } = destination;
        const failure = file.isCommitted
          ? notTold(out, error, switchedSource !== undefined)
          : sourceFailure(error, isLive(endpoint), switchedSource);
        return { document, text: '', failure };
      }
      const text = summary(out, file.bytes, report, machine, isLive(endpoint));
      if (!options.digest || !hasSidecar(out)) {
        return { document, text };
      }
      // The source need not wait for this.
      try {
        const { configuration, summary: read } = received!;
        const { fingerprint } = file.target;
        const ramDigest = file.target.digest ?? (await digestOfFile(out, { signal, progress }));
        const digest = await writeSidecar(out, { configuration, tail: read.tail, fingerprint }, ramDigest);
        return { document: { ...document, digest }, text };
      } catch (error) {
        return { document, text, failure: toFailure(error, 'receive') };
      }
    } finally {
      await file.abandon();
    }
  },
};

/** Reads the file again, which costs little while it is in the page cache. */
const digestOfFile = async (file: string, surroundings: Surroundings): Promise<RamDigest> => {
  const { snapshot, close } = await readWholeMemoryFile(file, surroundings);
  try {
    return await digestOf(snapshot, (...slices) => inSlices(surroundings, ...slices));
  } finally {
    close();
  }
};

/** The one connection of the source, or the medium that holds its stream. */
const connect = (uri: string, { kind }: Endpoint, signal: AbortSignal, progress: Progress): Promise<ByteChannel> =>
  kind === 'tcp' || kind === 'unix'
    ? acceptOne(uri, { signal, progress })
    : openChannel(uri, { direction: kind === 'exec' ? 'both' : 'read', signal });

/** The output file with what writes it. */
interface Received {
  readonly target: DigestingTarget;
  /** Size of the file so far. */
  readonly bytes: number;
  readonly isCommitted: boolean;
  commit(state: IncomingState): Promise<void>;
  /** Does nothing after `commit`. */
  abandon(): Promise<void>;
}

/** Bytes in order, and no descriptor closed while a thread still writes to it. */
class ReceivedStream implements Received {
  readonly target: FileTarget;
  bytes = 0;
  isCommitted = false;
  readonly #file: OutputFile;
  #error: RamferryError | undefined;
  #writes = Promise.resolve();

  constructor(file: OutputFile, options: DigestOption) {
    this.#file = file;
    this.target = new FileTarget(this, options);
  }

  write(bytes: Uint8Array, done: (error: Error | undefined) => void): void {
    this.#writes = this.#writes.then(async () => {
      try {
        await this.#append(bytes);
      } catch (error) {
        this.#error = channelError(error, 'write', this.#file.path);
      }
      done(this.#error);
    });
  }

  async #append(bytes: Uint8Array): Promise<void> {
    for (let at = 0; at < bytes.length && this.#error === undefined; ) {
      const { bytesWritten } = await write(this.#file.descriptor, bytes, at);
      at += bytesWritten;
      this.bytes += bytesWritten;
    }
  }

  async commit(): Promise<void> {
    await this.#file.commit();
    this.isCommitted = true;
  }

  async abandon(): Promise<void> {
    await this.#writes;
    this.#file.abort();
  }
}

class ReceivedMappedRam implements Received {
  readonly target: MappedRamTarget;
  isCommitted = false;
  readonly #file: PositionedFile;

  constructor(file: OutputFile, options: DigestOption) {
    this.#file = positionedFile(file);
    this.target = new MappedRamTarget(this.#file, options);
  }

  get bytes(): number {
    return this.target.fileBytes;
  }

  async commit({ summary }: IncomingState): Promise<void> {
    this.target.writeDevices(summary.tail);
    await this.#file.commit();
    this.isCommitted = true;
  }

  async abandon(): Promise<void> {
    this.#file.abort();
  }
}

const openReceived: Readonly<Record<Format, (file: OutputFile, options: DigestOption) => Received>> = {
  'mapped-ram': (file, options) => new ReceivedMappedRam(file, options),
  stream: (file, options) => new ReceivedStream(file, options),
};

/** Whether a source is at the other end that has a guest, and not a file. */
const isLive = ({ kind }: Endpoint): boolean => kind === 'tcp' || kind === 'unix' || kind === 'fd';

/**
 * Whether there is somebody who hears what we answer. Files and pipes may hold the stream of a source that wanted
 * answers when it was recorded.
 */
const hasListener = (endpoint: Endpoint): boolean => {
  if (endpoint.kind === 'fd') {
    // A descriptor that is none is found when it is opened.
    return endpoint.descriptor > 2 && isSocket(endpoint.descriptor);
  }
  return endpoint.kind !== 'file' && endpoint.kind !== 'stdio';
};

const isSocket = (descriptor: number): boolean => {
  try {
    return fs.fstatSync(descriptor).isSocket();
  } catch {
    return false;
  }
};

/** The one failure that leaves a file: only when it is there the source may be told, and now the source is gone. */
const notTold = (out: string, error: Error, hasSwitched: boolean): RamferryError =>
  new RamferryError(
    'failed',
    'SOURCE_NOT_TOLD',
    `${out} is complete, but the source could not be told. ${error.message}`,
    {
      file: out,
      hint: hasSwitched
        ? 'Ask its query-status, as it had switched to postcopy. Running: the file is a snapshot of it. In finish-migrate, or gone: the guest is in the file, and nowhere else.'
        : 'Its guest runs on there: the file is a snapshot of it, not its continuation.',
      cause: error,
    },
  );

const summary = (
  out: string,
  fileBytes: number,
  report: IncomingReport,
  machine: string,
  hasSource: boolean,
): string => {
  const { returnPath, warnings } = report.ramferry;
  const colors = terminalColors(process.stdout);
  const confirmed = returnPath
    ? ['source told', isStdout(out) ? 'once all was written to stdout' : 'once the file was on disk']
    : ['source told', colors.yellow('not: without a return path it does not wait for the file to be on disk')];
  const facts = formatTable(
    [['machine', machine], ['file', `${formatCount(fileBytes)} bytes`], ...(hasSource ? [confirmed] : [])],
    ['left', 'left'],
  );
  const lines = `${facts}${totalsTable(report)}`.replace(/^(?=.)/gm, '  ');
  const odd = warnings.map((text) => `${colors.yellow('warning:')} ${oneLine(text)}\n`).join('');
  return `${colors.bold(out)}: ${colors.green('saved')}, ${formatBytes(fileBytes)}\n\n${lines}${odd === '' ? '' : `\n${odd}`}`;
};
