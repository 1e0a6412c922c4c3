// QEMU's migration stream as a sink: the elements around the pages' records, and what the destination answers.

import { GUEST_PAGE_SIZE } from '../../kernels/kernels.js';
import type { ByteChannel } from '../channel/channel.js';
import { withFile } from '../format/invalid.js';
import { Command, ElementType } from '../format/stream/constants.js';
import type { DeviceTail } from '../format/stream/device-tail.js';
import { postcopyAdvise } from '../format/stream/postcopy-commands.js';
import { type ReturnPathHandler, ReturnPathReader } from '../format/stream/return-path.js';
import {
  command,
  ping,
  ramBodyEnd,
  ramPart,
  ramStart,
  streamEnd,
  streamHeader,
  streamMagic,
} from '../format/stream/write.js';
import { RamferryError } from '../memory/errors.js';
import type { Extent } from '../memory/ram-block.js';
import type { SourceGuest } from './guest.js';
import type { PageBatch, PageSink } from './page-sink.js';
import { MAIN_SLOTS, RecordWriter } from './record-writer.js';
import type { Trace } from './trace.js';

/** Writes under way at most. Four MiB keep a socket busy; more would only sit in front of a rate limit or a cancel. */
const MAX_WRITES = 4;

/** Several times the longest message (516 bytes). */
const RETURN_PATH_BUFFER_BYTES = 4096;

export interface StreamSinkOptions {
  /** Ask the destination to confirm (SHUT): a failure there leaves the guest running here. */
  readonly returnPath: boolean;
  /** The stream becomes a file: its guest may run on here. Default: whoever reads it runs the guest. */
  readonly isSaved?: boolean;
  /** Announce postcopy (`postcopy-ram`): the destination discards all its RAM, and pages may be sent after the devices. */
  readonly isAdvised?: boolean;
  /** The first eight bytes of the stream (`streamMagic`) have left already. */
  readonly isBegun?: boolean;
  readonly trace?: Trace;
}

export class StreamSink implements PageSink {
  transferred = 0;
  queued = 0;
  readonly movesGuest: boolean;
  onConfirmed = (): void => {};

  /** Postcopy's goes on over another one when its connection breaks. */
  protected writer: RecordWriter;
  /** Writes under way at most. */
  protected maxWrites = MAX_WRITES;
  protected ramSectionId = 0;
  readonly #options: StreamSinkOptions;
  readonly #trace: Trace;
  #error: Error | undefined;
  #shut: number | undefined;
  #isConfirmed = false;
  /** Whether the end of the stream was handed to the channel: only then can the destination have all of it. */
  #isWhole = false;
  /** Whether the system may have taken the end, so that the destination can have all of it. */
  #mayHaveLeft = false;
  /** Whoever waits for a write to end, for the destination's answer, or for the end of it all. */
  #waiters: (() => void)[] = [];

  constructor(channel: ByteChannel, options: StreamSinkOptions) {
    this.writer = this.#writerTo(channel);
    this.#options = options;
    this.movesGuest = options.isSaved !== true;
    this.#trace = options.trace ?? {};
    if (options.returnPath) {
      this.#readReturnPath();
    }
  }

  /** What messages of the return path mean beyond precopy. */
  protected returnPathHandler(): Partial<ReturnPathHandler> {
    return {};
  }

  /** Goes on over a new connection, as if nothing had been written; the destination says what has arrived. */
  protected reconnect(channel: ByteChannel): void {
    const { mayGather } = this.writer;
    this.writer = this.#writerTo(channel);
    this.writer.mayGather = mayGather;
    this.#error = undefined;
    this.#shut = undefined;
    this.#isWhole = false;
    this.#mayHaveLeft = false;
    this.#readReturnPath();
  }

  get closed(): Promise<void> {
    return this.channel.closed;
  }

  protected get channel(): ByteChannel {
    return this.writer.channel;
  }

  #writerTo(channel: ByteChannel): RecordWriter {
    const writer = new RecordWriter(channel, MAIN_SLOTS, (byteCount, error) => {
      if (writer !== this.writer) {
        return;
      }
      if (error !== undefined) {
        this.#trace.migration_completion_file_err?.();
        this.fail(error);
        return;
      }
      this.transferred += byteCount;
      this.#noteEnd();
      this.wake();
    });
    return writer;
  }

  get ready(): boolean {
    return this.#error === undefined && this.writer.writes < this.maxWrites;
  }

  /** Whether the destination has everything and may run the guest, but has not said so. */
  get isUndecided(): boolean {
    return this.movesGuest && this.#isWhole && this.#shut === undefined && this.#error === undefined;
  }

  /** Without a return path nobody can tell any more whether the destination runs the guest. */
  get staysUndecided(): boolean {
    return this.movesGuest && this.#mayHaveLeft && !this.#options.returnPath;
  }

  async whenReady(): Promise<void> {
    await this.until(() => this.ready);
  }

  start(guest: SourceGuest): void {
    const { machine, uuid, targetPageBits, ramSectionId, earlySections } = guest;
    this.ramSectionId = ramSectionId;
    this.writer.mayGather = guest.extentAt === undefined;
    const header = streamHeader({ machine, uuid, targetPageBits, capabilities: [] });
    this.append(this.#options.isBegun === true ? header.subarray(streamMagic().length) : header);
    if (this.#options.returnPath) {
      this.append(command(Command.OPEN_RETURN_PATH));
      this.append(ping(1));
      this.introduce();
    }
    const { isAdvised = false } = this.#options;
    const blocks = guest.blocks.blocks.filter((block) => block.migratable);
    if (isAdvised) {
      const migrated = blocks.filter((block) => block.migrated);
      this.append(postcopyAdvise(migrated, GUEST_PAGE_SIZE));
    }
    this.#trace.savevm_section_start?.('ram', ramSectionId);
    this.append(ramStart(ramSectionId, blocks, [], isAdvised));
    this.#trace.savevm_section_end?.('ram', ramSectionId, 0);
    if (earlySections !== undefined && earlySections.length > 0) {
      this.append(earlySections);
    }
  }

  /** What there is to say to the destination before anything else. */
  protected introduce(): void {}

  /** Takes the pages of the next batch. */
  protected get pageWriter(): RecordWriter {
    return this.writer;
  }

  batchLimit(extent: Extent): number {
    return this.pageWriter.batchLimit(extent);
  }

  beginIteration(last: boolean): void {
    this.#trace.savevm_section_start?.('ram', this.ramSectionId);
    this.append(ramPart(last ? ElementType.SECTION_END : ElementType.SECTION_PART, this.ramSectionId));
  }

  writePages(batch: PageBatch): number {
    const { pageWriter } = this;
    const before = pageWriter.queued;
    const zeroPages = pageWriter.add(batch);
    this.queued += pageWriter.queued - before;
    return zeroPages;
  }

  endIteration(): void {
    this.append(ramBodyEnd(this.ramSectionId));
    this.writer.writeSlot();
    this.#trace.savevm_section_end?.('ram', this.ramSectionId, 0);
  }

  async flush(): Promise<void> {
    this.writer.writeSlot();
    await this.until(() => this.writer.writes === 0 && this.#error === undefined);
  }

  writeDevices(devices: DeviceTail): void {
    this.append(devices.sections);
    this.appendEnd(streamEnd(devices.description));
  }

  async finish(): Promise<void> {
    // What it confirms it has, whether the system has told us of it or not.
    await this.until(() => this.#isConfirmed || (this.writer.writes === 0 && !this.#options.returnPath));
    await this.channel.end();
    // Nobody reads any more; without this a socket would stay until its peer closes, unnoticed.
    this.channel.destroy();
  }

  abort(reason: Error): void {
    this.fail(reason);
    this.channel.destroy();
  }

  /** The last bytes of the stream. */
  protected appendEnd(bytes: Uint8Array): void {
    this.append(bytes);
    this.writer.writeSlot();
    this.#isWhole = true;
    this.#noteEnd();
  }

  /** The end is the last write, and begun when all before it have been taken. */
  #noteEnd(): void {
    this.#mayHaveLeft ||= this.#isWhole && this.writer.writes <= 1;
  }

  /** Bytes that are not page records. */
  protected append(bytes: Uint8Array): void {
    this.queued += bytes.length;
    this.writer.append(bytes);
  }

  #readReturnPath(): void {
    const messages = this.returnPathHandler();
    const { channel } = this;
    // What a connection says that was given up is of no interest.
    const failed = (error: Error): void => {
      if (channel === this.channel) {
        this.fail(error);
      }
    };
    const unexpected = (what: string) => () => {
      throw new RamferryError('failed', 'RETURN_PATH_MESSAGE', `The destination ${channel.peer} ${what} in precopy.`, {
        file: channel.peer,
      });
    };
    const reader = new ReturnPathReader({
      pong: (value) => {
        this.#trace.source_return_path_thread_pong?.(value);
        messages.pong?.(value);
      },
      shut: (value) => {
        this.#trace.source_return_path_thread_shut?.(value);
        this.#hasShut(value);
      },
      requestPages: messages.requestPages ?? unexpected('requested pages'),
      // A destination with that capability agrees unasked, and so does one that cannot know whether it was asked.
      switchoverAck: () => {},
      ...(messages.recovery !== undefined && { recovery: messages.recovery }),
    });
    const buffer = new Uint8Array(RETURN_PATH_BUFFER_BYTES);
    let held = 0;
    channel.read({
      buffer: () => buffer.subarray(held),
      received: (byteCount) => {
        if (channel !== this.channel) {
          return;
        }
        held += byteCount;
        try {
          const consumed = reader.push(buffer, 0, held);
          buffer.copyWithin(0, consumed, held);
          held -= consumed;
        } catch (error) {
          failed(withFile(error, channel.peer) as Error);
        }
      },
      ended: () => {
        if (this.#shut === undefined) {
          failed(this.#peerClosed());
        }
      },
      failed: (error) => {
        if (this.#shut === undefined) {
          failed(error);
        }
      },
    });
  }

  /** The destination's last word. It is a confirmation only of a stream that is whole, and that was not given up. */
  #hasShut(value: number): void {
    this.#shut = value;
    if (value !== 0) {
      this.fail(this.#destinationFailed(value));
    } else if (!this.#isWhole) {
      this.fail(this.#confirmedTooEarly());
    } else if (this.#error === undefined) {
      this.#isConfirmed = true;
      this.onConfirmed();
    }
    this.wake();
  }

  #confirmedTooEarly(): RamferryError {
    const { peer } = this.channel;
    return new RamferryError(
      'failed',
      'CONFIRMED_TOO_EARLY',
      `The destination ${peer} confirmed the migration after ${this.queued} bytes, before it had all of it.`,
      {
        file: peer,
        value: this.queued,
      },
    );
  }

  #destinationFailed(value: number): RamferryError {
    const { peer } = this.channel;
    return new RamferryError(
      'failed',
      'DESTINATION_FAILED',
      `The destination ${peer} reports that loading failed (SHUT ${value}).`,
      {
        file: peer,
        value,
      },
    );
  }

  #peerClosed(): RamferryError {
    const { peer } = this.channel;
    if (this.isUndecided) {
      return new RamferryError(
        'failed',
        'PEER_CLOSED',
        `The destination ${peer} had everything and closed the return path without confirming it.`,
        {
          file: peer,
          hint: 'Make sure that the guest does not run there: look at the destination, which says why it gave up.',
        },
      );
    }
    return new RamferryError(
      'failed',
      'PEER_CLOSED',
      `The destination ${peer} closed the return path before it confirmed the migration.`,
      {
        file: peer,
        hint: 'Look at the destination: it says why it gave up.',
      },
    );
  }

  /** Resolves once `condition` holds; rejects if the sink breaks before. */
  protected async until(condition: () => boolean): Promise<void> {
    while (!condition()) {
      this.throwIfBroken();
      await this.activity();
    }
  }

  throwIfBroken(): void {
    if (this.#error !== undefined) {
      throw this.#error;
    }
  }

  /** Resolves when a write has ended, the destination has said something, or the sink has broken. */
  activity(): Promise<void> {
    return new Promise((resolve) => this.#waiters.push(resolve));
  }

  protected wake(): void {
    const waiters = this.#waiters;
    this.#waiters = [];
    for (const resolve of waiters) {
      resolve();
    }
  }

  /** The first error is the one reported (PL-5). */
  protected fail(error: Error): void {
    this.#error ??= error;
    this.writer.isBroken = true;
    this.wake();
  }
}
