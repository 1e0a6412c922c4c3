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
import { listen } from '../channel/listen-node.js';
import { openChannel } from '../channel/open-channel-node.js';
import { type Endpoint, parseUri } from '../channel/uri.js';
import { FileTarget } from '../destination/file-target.js';
import { MigrationDestination } from '../destination/migration-destination.js';
import type { IncomingReport } from '../destination/statistics.js';
import type { StreamConfiguration } from '../format/stream/configuration.js';
import { STREAM_VERSION } from '../format/stream/constants.js';
import { DEVICE_TAIL_LIMIT_BYTES } from '../format/stream/device-tail-collector.js';
import type { RamSetup, ReadRamBlock } from '../format/stream/stream-handler.js';
import { RamferryError } from '../memory/errors.js';
import { parseSize } from './arguments.js';
import { formatBytes, formatTable } from './format.js';
import { totalsTable } from './migration-report.js';
import { OutputFile } from './output-file.js';
import type { Progress, ProgressState } from './progress.js';
import type { Verb } from './verb.js';

const write = promisify(fs.write);

interface ReceiveOptions {
  readonly to: 'stream';
  readonly deviceStateLimit: number;
}

export const receive: Verb<ReceiveOptions> = {
  configure: (command: Command) => {
    command
      .addOption(new Option('--to <format>', 'format of the file').choices(['stream']).default('stream'))
      .option(
        '--device-state-limit <size>',
        'most device state to accept; memory use stays below 100 MiB plus three times that',
        parseSize,
        DEVICE_TAIL_LIMIT_BYTES,
      );
  },
  examples: [
    ['tcp:0.0.0.0:4444 guest.mig', 'then, at the source: migrate -d tcp:HOST:4444'],
    ['unix:/run/in.sock guest.mig --json', 'with a JSON report'],
    ["'exec:ssh host2 cat guest.mig' guest.mig", 'checks and copies a file of another host'],
  ],

  async run({ operands, options, signal, progress }) {
    const [uri, out] = operands as [string, string];
    const endpoint = parseUri(uri);
    const file = new ReceivedFile(OutputFile.open(out));
    try {
      const channel = await connect(uri, endpoint, signal, progress);
      const target = new PassTarget(file);
      const destination = new MigrationDestination({
        channel,
        target,
        signal,
        deviceTailLimit: options.deviceStateLimit,
        commit: () => {
          progress.update({ phase: 'syncing the file' });
          return file.commit();
        },
        onProgress: (report) => progress.update(progressOf(report, target)),
      });
      const report = await destination.run();
      // The source may still be reading our last word; the process must not end before it has.
      await channel.closed;
      const { machine } = target;
      const facts = { file: out, fileBytes: file.bytes, container: 'qemu', streamVersion: STREAM_VERSION, machine };
      const document = { ...facts, format: options.to, ...report };
      if (destination.error !== undefined) {
        signal.throwIfAborted();
        return { document, text: '', failure: sourceFailure(destination.error, endpoint, channel.peer) };
      }
      return { document, text: summary(out, file.bytes, report, machine) };
    } finally {
      await file.abandon();
    }
  },
};

/** The one connection of the source, or the medium that holds its stream. */
const connect = async (
  uri: string,
  { kind }: Endpoint,
  signal: AbortSignal,
  progress: Progress,
): Promise<ByteChannel> => {
  if (kind !== 'tcp' && kind !== 'unix') {
    return openChannel(uri, { direction: kind === 'exec' ? 'both' : 'read', signal });
  }
  const listener = await listen(uri);
  const close = (): void => void listener.close();
  signal.addEventListener('abort', close);
  try {
    progress.note(`listening on ${listener.uri}`);
    return await listener.accept();
  } finally {
    signal.removeEventListener('abort', close);
    await listener.close();
  }
};

/** The output file as the target's sink: bytes in order, and no descriptor closed while a thread still writes to it. */
class ReceivedFile {
  bytes = 0;
  readonly #file: OutputFile;
  #error: RamferryError | undefined;
  #writes = Promise.resolve();

  constructor(file: OutputFile) {
    this.#file = file;
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

  commit(): Promise<void> {
    return this.#file.commit();
  }

  /** Does nothing after `commit`. */
  async abandon(): Promise<void> {
    await this.#writes;
    this.#file.abort();
  }
}

/**
 * Knows how far the source is in its pass over memory. The stream does not say; but a source goes through its blocks in
 * the order in which it listed them, and so where the pages go backwards a new pass begins.
 */
class PassTarget extends FileTarget {
  machine = '';
  passes = 0;
  /** Of each block, in the memory of all of them. */
  #offsets: number[] = [];
  #targetPageSize = 0;
  #position = 0;

  /** Bytes of guest memory that the pass has left behind. */
  get position(): number {
    return this.#position;
  }

  configuration({ machine }: StreamConfiguration): void {
    this.machine = machine;
  }

  override ramSetup(setup: RamSetup): void {
    super.ramSetup(setup);
    let offset = 0;
    this.#offsets = setup.blocks.map(({ usedLength }) => (offset += usedLength) - usedLength);
    this.#position = offset;
    this.#targetPageSize = setup.targetPageSize;
  }

  override zeroPage(block: ReadRamBlock, page: number): void {
    super.zeroPage(block, page);
    this.#reached(block, page);
  }

  override page(block: ReadRamBlock, page: number): void {
    super.page(block, page);
    this.#reached(block, page);
  }

  #reached({ index }: ReadRamBlock, page: number): void {
    const position = this.#offsets[index]! + page * this.#targetPageSize;
    this.passes += position < this.#position ? 1 : 0;
    this.#position = position;
  }
}

const progressOf = ({ status, ram }: IncomingReport, target: PassTarget): ProgressState =>
  status === 'active'
    ? {
        phase: status,
        totalBytes: ram.total,
        remainingBytes: ram.total - target.position,
        bytesPerSecond: ram['pages-per-second'] * ram['page-size'],
        iteration: target.passes,
      }
    : { phase: status };

/** A source that leaves too early has failed, or was told to cancel; only from a file that means a damaged stream. */
const sourceFailure = (error: Error, { kind }: Endpoint, peer: string): RamferryError => {
  if (!(error instanceof RamferryError)) {
    throw error;
  }
  if (error.code !== 'STREAM_INCOMPLETE' || kind === 'file' || kind === 'stdio') {
    return error;
  }
  return new RamferryError('failed', 'PEER_CLOSED', `The source closed the connection too early. ${error.message}`, {
    file: peer,
    ...(error.offset !== undefined && { offset: error.offset }),
    hint: 'It has failed or was cancelled, and says more about it; its guest runs on there.',
    cause: error,
  });
};

const summary = (out: string, fileBytes: number, report: IncomingReport, machine: string): string => {
  const { returnPath, warnings } = report.ramferry;
  const confirmed = returnPath
    ? 'yes, once the file was on disk'
    : 'no: without a return path it does not wait for the file to be on disk';
  const rows = [
    ['file', `${out}, ${formatBytes(fileBytes)}`],
    ['machine', machine],
    ['source told', confirmed],
  ];
  return `${formatTable(rows, ['left', 'left'])}${totalsTable(report)}${warnings.map((text) => `warning: ${text}\n`).join('')}`;
};
