// The stream sink of a migration that may switch to postcopy: it announces that, and after the switch it sends the package,
// reads requests and, on a new connection, asks what has arrived.
//
//   engine ── pages, package ──▶ channel ──▶ destination
//   engine ── requested pages ─▶ preempt channel ─▶ ┤    a second connection to it, where it has QEMU's postcopy-preempt
//   engine ◀── PageRequests ──── return path ◀──────┘    the queue is full ─▶ the return path is not read for a while

import { GUEST_PAGE_SIZE } from '../../kernels/kernels.js';
import type { ByteChannel } from '../channel/channel.js';
import { ElementType } from '../format/stream/constants.js';
import type { DeviceTail } from '../format/stream/device-tail.js';
import {
  askReceivedBitmap,
  DiscardWriter,
  PostcopyPing,
  postcopyPackage,
  postcopyResume,
} from '../format/stream/postcopy-commands.js';
import { receivedBitmapBytes } from '../format/stream/return-path.js';
import { ping, ramBodyEnd, ramPart } from '../format/stream/write.js';
import { RamferryError } from '../memory/errors.js';
import type { RamBlock } from '../memory/ram-block.js';
import type { RamBlockList } from '../memory/ram-block-list.js';
import { type Clock, systemClock } from './clock.js';
import type { SourceGuest } from './guest.js';
import type { PageRequests } from './page-requests.js';
import type { PageBatch } from './page-sink.js';
import { RecordWriter, URGENT_SLOTS } from './record-writer.js';
import { type LoadLimits, loadLimitMs, SILENCE } from './silence.js';
import { SourceToken } from './source-token.js';
import { StreamSink } from './stream-sink.js';
import type { Trace } from './trace.js';

/** A destination with nothing to read needs microseconds to look at a new connection, or until it gets its turn on a CPU. */
const ACCEPT_MS = 3;

export interface PostcopySinkOptions {
  readonly trace?: Trace;
  readonly clock?: Clock;
  /** Default `SILENCE.stall`. */
  readonly stallMs?: number;
  /** For how long it may say nothing while it loads the devices. Default `stallMs`. */
  readonly loading?: LoadLimits;
  /** It has said nothing for `loading.askMs` while it loads the devices: somebody may know more. Called again after as long. */
  readonly onLoadSilence?: (() => void) | undefined;
  /** The first eight bytes of the stream have left already. */
  readonly isBegun?: boolean;
  /**
   * Makes another connection to the destination: the preempt channel, for the pages that are asked for (QEMU's capability
   * `postcopy-preempt`, since 8.0). Default: there is none.
   */
  readonly openPreempt?: (() => Promise<ByteChannel>) | undefined;
  /**
   * What a destination of ours knows this source by when it comes again: 16 secret bytes. One that takes over from another has
   * to show the same. Default: random ones.
   */
  readonly token?: Uint8Array | undefined;
}

/** What the sink needs to know of the phase behind the switch. */
export interface PostcopyPhase {
  /** Gets what the destination asks for. */
  readonly requests: PageRequests;
  /** Writes under way at most. */
  readonly maxWrites: number;
  /** Whether there is something to send over the preempt channel. */
  isAsked(): boolean;
  /** Called with each batch. What it returns, for one that was asked for, is called when the system has taken all of it. */
  whenTaken(): (() => void) | undefined;
}

export class PostcopySink extends StreamSink {
  /** Whether the destination has digested the package: until then it must not see the end of the stream (7.9 item 6). */
  isLoaded = false;
  /** Whether the destination has loaded everything that comes in front of the gate of its package. */
  isAtGate = false;
  /** Whether the pages of the next batch were asked for, and may go over the preempt channel (PC-15). */
  isUrgent = false;
  readonly #clock: Clock;
  readonly #stallMs: number;
  readonly #loading: LoadLimits;
  readonly #onLoadSilence: (() => void) | undefined;
  #stateBytes = 0;
  readonly #openPreempt: (() => Promise<ByteChannel>) | undefined;
  #preempt: RecordWriter | undefined;
  #pongs = 0;
  #phase: PostcopyPhase | undefined;
  #hasEnded = false;
  #isPartOpen = false;
  #isPaused = false;
  #lastSign = 0;
  /** Blocks whose received bitmap was asked for and is not there. */
  readonly #awaited = new Map<string, Uint8Array>();
  #isAcknowledged = false;
  readonly #token: SourceToken;

  constructor(
    channel: ByteChannel,
    {
      trace = {},
      clock = systemClock,
      stallMs = SILENCE.stall,
      loading = { askMs: stallMs, giveUpMs: stallMs, bytesPerMs: Number.POSITIVE_INFINITY },
      onLoadSilence,
      isBegun = false,
      openPreempt,
      token,
    }: PostcopySinkOptions = {},
  ) {
    super(channel, { returnPath: true, isAdvised: true, isBegun, trace });
    this.#clock = clock;
    this.#stallMs = stallMs;
    this.#loading = loading;
    this.#onLoadSilence = onLoadSilence;
    this.#openPreempt = openPreempt;
    this.#token = new SourceToken(token);
  }

  protected override introduce(): void {
    this.append(this.#token.introduction());
  }

  /** The other end, for messages. */
  get peer(): string {
    return this.channel.peer;
  }

  protected override returnPathHandler(): ReturnType<StreamSink['returnPathHandler']> {
    return {
      pong: (value) => {
        if (this.#token.ponged(value, this.peer)) {
          return;
        }
        this.#pongs += 1;
        this.isLoaded ||= value === PostcopyPing.DEVICES_LOADED;
        this.isAtGate ||= value === PostcopyPing.GATE;
        this.wake();
      },
      requestPages: (blockName, start, length) => this.#requested(blockName, start, length),
      recovery: {
        bitmapTarget: (blockName) => this.#bitmapTarget(blockName),
        bitmapReceived: (blockName) => {
          this.#awaited.delete(blockName);
          this.wake();
        },
        resumeAck: (value) => {
          if (value !== 1) {
            throw this.#refused('RESUME_ACK', `acknowledges the resume with ${value} instead of 1`, value);
          }
          this.#isAcknowledged = true;
          this.wake();
        },
      },
    };
  }

  /** From now on pages may be asked for. */
  accept(phase: PostcopyPhase): void {
    this.#phase = phase;
    this.maxWrites = phase.maxWrites;
  }

  #requested(blockName: string, start: number, length: number): void {
    const requests = this.#phase?.requests;
    if (requests === undefined) {
      throw this.#refused('RETURN_PATH_MESSAGE', 'asks for pages before it was given the devices', start);
    }
    requests.add(blockName, start, length, this.#clock.now());
    if (requests.isFull && !this.#isPaused) {
      this.#isPaused = true;
      this.channel.pause();
    }
    this.wake();
  }

  /** Reads on where the queue had no room. */
  readRequests(): void {
    if (this.#isPaused && this.#phase?.requests.isFull === false) {
      this.#isPaused = false;
      this.channel.resume();
    }
  }

  /** Whether there is a preempt channel. */
  get isPreempting(): boolean {
    return this.#preempt !== undefined;
  }

  /**
   * Opens the preempt channel, if there shall be one, while the guest still runs here. Not before the first PONG: QEMU takes
   * whichever connection it accepts first for the main one. A destination that wants no second one drops it, at the latest
   * when it has answered two PINGs: one may still be answered in the same turn of its event loop. That turn lasts for as long as
   * there is something to read, so it gets nothing for a moment before each.
   */
  async openPreempt(): Promise<void> {
    if (this.#openPreempt === undefined) {
      return;
    }
    const hint = 'QEMU before 8.0 expects the preempt channel earlier, and is not supported with it';
    const ponged = (count: number): Promise<void> =>
      this.#unlessStalled(
        super.until(() => this.#pongs >= count),
        Math.min(SILENCE.preempt, this.#stallMs),
        hint,
      );
    await ponged(1);
    await this.#connectPreempt(this.#openPreempt);
    for (const count of [this.#pongs + 1, this.#pongs + 2]) {
      await this.#clock.sleep(ACCEPT_MS);
      this.append(ping(PostcopyPing.RETURN_PATH));
      this.writer.writeSlot();
      await ponged(count);
    }
  }

  async #connectPreempt(open: () => Promise<ByteChannel>): Promise<void> {
    const channel = await open().catch((error) => {
      throw this.#noPreempt(error);
    });
    try {
      this.throwIfBroken();
    } catch (error) {
      channel.destroy();
      throw error;
    }
    const isCurrent = (): boolean => this.#preempt?.channel === channel;
    this.#preempt = new RecordWriter(channel, URGENT_SLOTS, (byteCount, error) => {
      if (isCurrent() && error !== undefined) {
        this.#preemptClosed(error);
      } else if (isCurrent()) {
        this.transferred += byteCount;
        this.wake();
      }
    });
    this.#preempt.mayGather = this.writer.mayGather;
    const buffer = new Uint8Array(1);
    channel.read({
      buffer: () => buffer,
      received: () => {
        if (isCurrent()) {
          this.fail(this.#refused('PREEMPT_CHANNEL', 'says something on the preempt channel', buffer[0]));
        }
      },
      ended: () => isCurrent() && this.#preemptClosed(),
      failed: (error) => isCurrent() && this.#preemptClosed(error),
    });
  }

  /** Behind the end of the stream the destination closes it: nothing is asked for any more. */
  #preemptClosed(error?: Error): void {
    if (this.#hasEnded) {
      this.#dropPreempt();
      this.wake();
    } else {
      this.fail(this.#noPreempt(error));
    }
  }

  #dropPreempt(): void {
    const preempt = this.#preempt;
    this.#preempt = undefined;
    preempt?.channel.destroy();
  }

  #noPreempt(cause: Error | undefined): RamferryError {
    const { peer } = this;
    return new RamferryError('failed', 'PREEMPT_CHANNEL', `The destination ${peer} has no preempt channel for us.`, {
      file: peer,
      cause,
      // Once its guest runs, it had one.
      ...(!this.isLoaded && { hint: 'it needs the capability postcopy-preempt, set before migrate-incoming' }),
    });
  }

  /**
   * Says which pages of a block are stale or were never sent: runs of the set bits of its send bitmap, and nothing else
   * (PC-1, PC-2). Returns whether there are any.
   */
  discard(block: RamBlock, { bitmaps: { kernels } }: RamBlockList): boolean {
    const { send } = block.bitmaps;
    const discards = new DiscardWriter(block.name);
    for (let page = 0; page < block.usedPages; ) {
      const first = kernels.findNextSet(send, page, block.usedPages);
      page = kernels.findNextClear(send, first, block.usedPages);
      if (page > first) {
        discards.add(first * GUEST_PAGE_SIZE, (page - first) * GUEST_PAGE_SIZE);
      }
    }
    const commands = discards.finish();
    this.append(commands);
    return commands.length > 0;
  }

  /** All that makes the destination's guest run; nothing brings it back from there. */
  writePackage({ sections }: DeviceTail, gate?: Uint8Array): void {
    this.#stateBytes = sections.length;
    this.append(ping(PostcopyPing.DISCARDED));
    this.append(postcopyPackage(sections, gate));
    this.append(ping(PostcopyPing.RUNNING));
  }

  // One PART stays open for all pages of the phase: a requested page has nothing before it.
  override beginIteration(last: boolean): void {
    if (this.#phase === undefined) {
      super.beginIteration(last);
    } else if (!this.#isPartOpen && !this.#hasEnded) {
      this.#isPartOpen = true;
      this.append(ramPart(ElementType.SECTION_PART, this.ramSectionId));
    }
  }

  override endIteration(): void {
    if (this.#phase === undefined) {
      super.endIteration();
    }
  }

  protected override get pageWriter(): RecordWriter {
    return (this.isUrgent ? this.#preempt : undefined) ?? this.writer;
  }

  override writePages(batch: PageBatch): number {
    const zeroPages = super.writePages(batch);
    if (this.#phase !== undefined) {
      this.pageWriter.writeSlot(this.#phase.whenTaken());
    }
    return zeroPages;
  }

  /** Whether a page that is asked for can still be sent: behind the end of the stream only over the preempt channel. */
  get mayAnswer(): boolean {
    return this.#preempt !== undefined || !this.#hasEnded;
  }

  /** Whether pages that nobody has asked for can be written now. */
  get hasRoom(): boolean {
    return super.ready && !this.#hasEnded;
  }

  /** After the switch never without a wait: what the destination asks for is read in it. */
  override get ready(): boolean {
    return this.#phase === undefined && super.ready;
  }

  override async whenReady(): Promise<void> {
    await this.until(() =>
      this.#preempt === undefined
        ? super.ready
        : this.#preempt.writes === 0 && (super.ready || this.#phase?.isAsked() === true),
    );
    await this.#clock.yield();
  }

  override async finish(): Promise<void> {
    if (this.#phase !== undefined) {
      if (this.#isPartOpen) {
        this.append(ramBodyEnd(this.ramSectionId));
      }
      this.append(ramPart(ElementType.SECTION_END, this.ramSectionId));
      this.append(ramBodyEnd(this.ramSectionId));
      this.#isPartOpen = false;
      this.#hasEnded = true;
      this.appendEnd(Uint8Array.of(ElementType.EOF));
    }
    try {
      await super.finish();
    } finally {
      this.#dropPreempt();
    }
  }

  override abort(reason: Error): void {
    super.abort(reason);
    this.#dropPreempt();
  }

  /**
   * The handshake of a recovery, on a new connection (spec/qemu-wire-format.md 5.8): every block's received bitmap, then, once
   * `haveReceived` has made of them what is to be sent, the preempt channel, which `open` makes as well, and the order to go on.
   * The destination repeats its requests (RC-7).
   */
  async recover(
    open: (() => Promise<ByteChannel>) | undefined,
    channel: ByteChannel | undefined,
    { ramSectionId, blocks }: SourceGuest,
    haveReceived: () => void,
  ): Promise<void> {
    this.ramSectionId = ramSectionId;
    // The guest runs there, or it could not have paused.
    this.isLoaded = true;
    this.#isPartOpen = false;
    this.#hasEnded = false;
    this.#isPaused = false;
    this.#isAcknowledged = false;
    this.#awaited.clear();
    const { buffer } = blocks.bitmaps.memory;
    const migrated = blocks.blocks.filter((block) => block.migrated);
    for (const { name, bitmaps, usedPages } of migrated) {
      this.#awaited.set(name, new Uint8Array(buffer, bitmaps.received, receivedBitmapBytes(usedPages)));
    }
    if (channel !== undefined) {
      this.reconnect(channel);
    }
    this.append(this.#token.proof());
    for (const { name } of migrated) {
      this.append(askReceivedBitmap(name));
    }
    await this.until(() => this.#awaited.size === 0);
    this.#token.check(this.peer);
    haveReceived();
    if (this.#openPreempt !== undefined) {
      await this.#connectPreempt(open ?? this.#openPreempt);
    }
    this.append(postcopyResume());
    await this.until(() => this.#isAcknowledged);
  }

  #bitmapTarget(blockName: string): Uint8Array {
    const target = this.#awaited.get(blockName);
    if (target === undefined) {
      throw this.#refused('RECEIVED_BITMAP', `sends a received bitmap of "${blockName}", unasked`, blockName);
    }
    return target;
  }

  protected override wake(): void {
    this.#lastSign = this.#clock.now();
    super.wake();
  }

  protected override async until(condition: () => boolean): Promise<void> {
    await this.#unlessStalled(super.until(condition));
  }

  /** Resolves when the destination has said something. While it loads devices it has to, within `stallMs`, unless it `waits` for us. */
  async nextMessage(waits: boolean): Promise<void> {
    await (this.isLoaded || waits ? this.activity() : this.#whileLoading(this.activity()));
    this.throwIfBroken();
  }

  #whileLoading(waiting: Promise<void>): Promise<void> {
    // One that has never answered is another matter.
    if (this.#pongs === 0) {
      return this.#unlessStalled(waiting);
    }
    const hint = this.isPreempting
      ? undefined
      : 'Either it cannot load the devices, and prints why once the connection is closed: the same machine and devices are ' +
        'needed. Or it has the capability postcopy-preempt, and waits for a second connection: serve --preempt makes one.';
    const asking = setInterval(() => this.#onLoadSilence?.(), this.#loading.askMs);
    return this.#unlessStalled(waiting, loadLimitMs(this.#loading, this.#stateBytes), hint).finally(() =>
      clearInterval(asking),
    );
  }

  /** Ends a `nextMessage`. */
  notify(): void {
    this.wake();
  }

  async #unlessStalled(waiting: Promise<void>, stallMs = this.#stallMs, hint?: string): Promise<void> {
    this.#lastSign = this.#clock.now();
    const watch = setInterval(() => {
      if (this.#clock.now() - this.#lastSign >= stallMs) {
        const { peer } = this;
        const message = `The destination ${peer} has neither said nor read anything for ${Math.round(stallMs / 10) / 100} s.`;
        const details = { file: peer, value: stallMs, ...(hint !== undefined && { hint }) };
        this.abort(new RamferryError('failed', 'PEER_STALLED', message, details));
      }
    }, stallMs / 4);
    try {
      await waiting;
    } finally {
      clearInterval(watch);
    }
  }

  #refused(code: string, what: string, value: number | string): RamferryError {
    const { peer } = this;
    return new RamferryError('failed', code, `The destination ${peer} ${what}.`, { file: peer, value });
  }
}
