// The destination engine: one incoming migration, from any channel into any target. What postcopy adds is in
// postcopy-incoming.ts; here is what it does to the course of a migration.

import type { ByteChannel } from '../channel/channel.js';
import type { IncomingConnections } from '../channel/incoming-connections.js';
import { be32 } from '../format/bytes.js';
import type { StreamConfiguration } from '../format/stream/configuration.js';
import { Command, DEFAULT_TARGET_PAGE_SIZE, ElementType } from '../format/stream/constants.js';
import type { DeviceSection } from '../format/stream/device-sections.js';
import { StreamReader } from '../format/stream/read.js';
import { pong, shut, switchoverAck } from '../format/stream/return-path.js';
import type { RamSetup, StreamHandler, StreamSummary } from '../format/stream/stream-handler.js';
import { RamferryError } from '../memory/errors.js';
import { DestinationToken } from './destination-token.js';
import { recovers } from './first-words.js';
import { PostcopyIncoming } from './postcopy-incoming.js';
import { PostcopyTarget } from './postcopy-target.js';
import { RefusedPostcopy, type SwitchedSource } from './refused-postcopy.js';
import { ReturnPathWriter } from './return-path-writer.js';
import { type IncomingReport, type IncomingStatus, type PhaseMarks, phaseTimes, RateWindow } from './statistics.js';
import { SwitchoverAck } from './switchover-ack.js';
import type { MigrationTarget, ReceiveArea } from './target.js';
import { Waiters } from './waiters.js';
import { WholePostcopy } from './whole-postcopy.js';

const PROGRESS_MS = 100;

/** Bytes of answers that may wait before the source is not read any more: 8192 PONGs, against a handful in a real migration. */
const ANSWER_BACKLOG_BYTES = 64 * 1024;

/** How long a peer may take to close, or to take our last message, before the channel is dropped. */
const LINGER_MS = 1000;

/** More than what a source sends besides pages; it may have been refused for the size of its devices. */
const REFUSED_BYTES = 2 ** 30;

/** For a recovery, from its first words to POSTCOPY_RESUME: some round trips, and the received bitmaps. */
const RECOVERY_MS = 30_000;

/** Where bytes go that nobody will look at. Its content is never read. */
const discarded = new Uint8Array(64 * 1024);

/** Everything that arrived besides the pages. */
export interface IncomingState {
  readonly configuration: StreamConfiguration;
  readonly ram: RamSetup;
  readonly summary: StreamSummary;
}

export interface MigrationDestinationOptions {
  readonly channel: ByteChannel;
  readonly target: MigrationTarget;
  /** Throws to refuse a source, e.g. for its machine type, before anything is loaded. */
  readonly accept?: (configuration: StreamConfiguration) => void;
  /**
   * Applies a device section that comes before the first page, after the RAM blocks are known: what a memory device has
   * plugged, say. Throws to refuse the source. `body` is valid only during the call.
   */
  readonly earlySection?: (section: DeviceSection, body: Uint8Array) => void;
  /**
   * Makes it final once everything has arrived: the file synced and renamed, the guest built and ready to run. The source is
   * told only afterwards; if this rejects, its guest runs on there. A cancel comes too late from here on. In postcopy it is
   * called when the devices are there, before the pages; the guest is lost if it rejects then.
   */
  readonly commit?: (state: IncomingState) => Promise<void>;
  /**
   * Accept a switch to postcopy. The target must be a `PostcopyTarget` in which the guest runs while its pages come. With `whole`
   * it can be any: nothing runs here, and the migration is final when all of the memory has come. Default: a source that may
   * switch is refused.
   */
  readonly postcopy?: IncomingPostcopyOptions | 'whole';
  /**
   * Cancels: the connection ends, and the source's guest runs on if there is a return path. After a switch to postcopy the guest
   * is lost, and its threads end.
   */
  readonly signal?: AbortSignal;
  readonly onStatus?: (status: IncomingStatus) => void;
  /** At most every 100 ms. */
  readonly onProgress?: (report: IncomingReport) => void;
  /** Refuse a source without a return path, which would let go of its guest unasked. Default false. */
  readonly needsReturnPath?: boolean;
  /** The stream comes out of a file or a pipe: nobody is there to hear answers, whatever it asks for. Default false. */
  readonly isRecording?: boolean;
  /** How long the source may take to close once it was told that all is well; default 1 s. Only `sourceLeft` waits for it. */
  readonly lingerMs?: number;
  /** Page size of streams that do not carry it; by default it is found by the machine type, or by the first records. */
  readonly targetPageSize?: number;
  /** Most bytes of device state; default 256 MiB. */
  readonly deviceTailLimit?: number;
}

/** What postcopy takes besides (capability postcopy-ram). */
export interface IncomingPostcopyOptions {
  /** Runs the guest, which `commit` has made ready. */
  readonly run: () => Promise<void>;
  /**
   * Where the source comes again when the connection broke while the guest ran here; strangers are dropped. Default: the guest
   * is given up then, as it is when no connection will come any more.
   */
  readonly connections?: IncomingConnections;
  /** How long a source that came again may take until its recovery is done, before the next one has its turn; default 30 s. */
  readonly recoveryMs?: number;
}

/**
 * Runs one incoming migration, once.
 *
 *   channel ──▶ target.area() ──▶ StreamReader ──▶ target (pages, sections)
 *      ▲                              └─ PING ──▶ PONG ─┐
 *      └────────────────────────────────────────────────┤
 *   end of the stream ──▶ target.finish() ──▶ commit ──▶ SHUT(0)
 *   anything else ─────────────────────────────────────▶ SHUT(1), close
 *
 * Postcopy:
 *
 *   package ──▶ commit ──▶ run, while pages come ──▶ end of the stream ──▶ target.finish() ──▶ SHUT(0)
 *                            │         ▲
 *               link breaks  ▼         │ received bitmaps, POSTCOPY_RESUME
 *                         paused ──▶ connections.find(…)
 *
 * Writes nothing unless the source opened a return path.
 */
export class MigrationDestination {
  readonly #options: MigrationDestinationOptions;
  #channel: ByteChannel;
  readonly #target: MigrationTarget;
  readonly #postcopy: PostcopyIncoming | undefined;
  readonly #whole: WholePostcopy | undefined;
  #refused: RefusedPostcopy | undefined;
  readonly #reader: StreamReader;
  #returnPath: ReturnPathWriter;
  readonly #waiters = new Waiters();

  #status: IncomingStatus = 'none';
  #error: Error | undefined;
  #configuration: StreamConfiguration | undefined;
  #ram: RamSetup | undefined;
  #summary: StreamSummary | undefined;

  // Received bytes that the reader has not consumed: [#from, #to) of the area.
  #area: ReceiveArea = { bytes: discarded, start: 0, end: 0 };
  #from = 0;
  #to = 0;
  #isPaused = false;

  #returnPathOpen = false;
  readonly #switchoverAck = new SwitchoverAck();
  /** The source was told that all is well: from here on it may close. */
  #confirmed = false;
  /** The source has ended its direction, after that. */
  #sourceEnded = false;
  /** It has ended its direction at all. */
  #peerHasEnded = false;
  #channelBroke = false;
  /** It has announced that it may switch to postcopy. */
  #isAnnounced = false;
  /** How the connection to a source that has switched was lost when all had come of it. */
  #leftUntold: Error | undefined;

  #pings = 0;
  #ramSections = 0;
  /** When the last RAM section so far ended. */
  #ramEndedAt = 0;
  /** Bytes behind the end of the stream. */
  #trailingBytes = 0;

  /** Since the package came: the guest is here and nowhere else. Resolves when it runs. */
  #switch: Promise<void> | undefined;
  #runsAt: number | undefined;
  /** Why the connection has to be replaced. */
  #linkError: Error | undefined;
  #recoveries = 0;
  #recoveryTimer: ReturnType<typeof setTimeout> | undefined;
  readonly #token = new DestinationToken();
  /** Where the first connection came from. */
  readonly #origin: string | undefined;
  readonly #marks: PhaseMarks = { start: 0 };
  readonly #rate = new RateWindow();

  constructor(options: MigrationDestinationOptions) {
    const { channel, target, targetPageSize, deviceTailLimit } = options;
    this.#options = options;
    this.#channel = channel;
    this.#origin = channel.origin;
    this.#target = target;
    if (options.postcopy === 'whole') {
      this.#whole = new WholePostcopy((pings) => this.#devicesHere(pings));
    } else {
      this.#postcopy = options.postcopy && this.#acceptPostcopy(target);
    }
    this.#reader = new StreamReader(this.#handler(), {
      file: channel.peer,
      ...(targetPageSize !== undefined && { targetPageSize }),
      ...(target.pageSize !== undefined && { expectedPageSize: target.pageSize }),
      ...(target.refusesIterable !== undefined && { refusesIterable: target.refusesIterable }),
      ...(deviceTailLimit !== undefined && { deviceTailLimit }),
    });
    this.#returnPath = this.#openReturnPath(channel);
  }

  #openReturnPath(channel: ByteChannel): ReturnPathWriter {
    return new ReturnPathWriter(channel, (error) => this.#linkFailed(channel, error));
  }

  /** How a guest runs here while its pages come. */
  get #running(): IncomingPostcopyOptions | undefined {
    const { postcopy } = this.#options;
    return postcopy === 'whole' ? undefined : postcopy;
  }

  #acceptPostcopy(target: MigrationTarget): PostcopyIncoming {
    if (!(target instanceof PostcopyTarget)) {
      throw new RamferryError('usage', 'POSTCOPY_TARGET', 'Postcopy needs memory in which a guest can wait for pages.');
    }
    const returnPath = (): ReturnPathWriter => this.#returnPath;
    return new PostcopyIncoming(target, {
      get returnPath() {
        return returnPath();
      },
      run: (summary, pings) => {
        this.#switch = this.#runGuest(summary, pings);
        this.#switch.catch((error) => this.#fail(error));
      },
      resumed: () => {
        clearTimeout(this.#recoveryTimer);
        this.#enter('postcopy-active');
      },
    });
  }

  #devicesHere(pings: readonly number[]): void {
    this.#enter('postcopy-active');
    // QEMU 11 sends no page before it knows that its devices were loaded.
    for (const value of pings) {
      this.#answer(value);
    }
  }

  /** What a source that has switched to postcopy does after a failure; undefined if it has not switched, and its guest runs. */
  get switchedSource(): SwitchedSource | undefined {
    if (this.#whole?.hasSwitched !== true) {
      return undefined;
    }
    return this.#refused?.source ?? 'gone';
  }

  /** Why the migration failed or was cancelled: the first thing that went wrong. */
  get error(): Error | undefined {
    return this.#error;
  }

  /**
   * Runs the migration to its end: `completed`, `cancelled` or `failed`, which the report says. Never rejects otherwise.
   * Once it resolves, the channel closes by itself (`ByteChannel.closed`).
   * @throws RamferryError `MIGRATION_IN_PROGRESS` if it was started before
   */
  async run(): Promise<IncomingReport> {
    if (this.#status !== 'none') {
      throw new RamferryError('usage', 'MIGRATION_IN_PROGRESS', 'This migration was already started.');
    }
    this.#marks.start = performance.now();
    this.#rate.start(this.#marks.start);
    const { signal } = this.#options;
    let isCancelled = false;
    const cancel = (): void => {
      isCancelled = this.#fail(new RamferryError('failed', 'CANCELLED', 'The migration was cancelled.'));
    };
    try {
      this.#enter('setup');
      if (signal?.aborted === true) {
        cancel();
      }
      signal?.addEventListener('abort', cancel);
      await this.#receive();
      this.#marks.commit = performance.now();
      await this.#finishTarget();
      signal?.removeEventListener('abort', cancel);
      await this.#confirm();
      this.#marks.ended = performance.now();
      this.#target.release?.();
      this.#enter('completed');
      this.#leave();
    } catch (error) {
      this.#fail(error);
      this.#marks.ended ??= performance.now();
      this.#abandon();
      this.#target.release?.();
      this.#enter(isCancelled ? 'cancelled' : 'failed');
    } finally {
      signal?.removeEventListener('abort', cancel);
      clearTimeout(this.#recoveryTimer);
    }
    return this.report();
  }

  /** Whether the word that all is well was sent, or may have been: the source alone knows whether it came. */
  get mayBeTold(): boolean {
    return this.#confirmed;
  }

  /**
   * After a migration that completed: resolves when the connection is gone, with whether the source closed it in order. QEMU
   * does so when it was told and has let go of its guest; of a link that broke, nobody knows whether the word arrived.
   */
  async sourceLeft(): Promise<boolean> {
    let isGone = false;
    void this.#channel.closed.then(() => {
      isGone = true;
      this.#waiters.wake();
    });
    await this.#waiters.until(() => this.#sourceEnded || isGone);
    return this.#sourceEnded;
  }

  /** The figures at this moment. */
  report(): IncomingReport {
    const now = performance.now();
    const { pages } = this.#target;
    const transferred = this.#reader.position;
    const phases = phaseTimes(this.#marks, now);
    const pageSize = this.#ram?.targetPageSize ?? DEFAULT_TARGET_PAGE_SIZE;
    const rate = this.#marks.ended === undefined ? this.#rate : new RateWindow();
    if (this.#marks.ended !== undefined) {
      rate.start(this.#marks.ram ?? this.#marks.start);
      rate.close(this.#marks.commit ?? this.#marks.ended, transferred, this.#pageCount());
    }
    const warnings = [...this.#target.warnings, ...(this.#summary?.warnings ?? [])];
    if (this.#trailingBytes > 0) {
      warnings.push(
        `The source sent ${this.#trailingBytes} bytes after the end of its stream, at byte ${transferred}.`,
      );
    }
    return {
      status: this.#status,
      'total-time': Math.round((this.#marks.ended ?? now) - this.#marks.start),
      'setup-time': Math.round(phases.setupMs),
      ram: {
        transferred,
        total: this.#ram?.totalBytes ?? 0,
        duplicate: pages.zero,
        normal: pages.normal,
        'normal-bytes': pages.normal * pageSize,
        'page-size': pageSize,
        mbps: rate.mbps,
        'pages-per-second': rate.pagesPerSecond,
      },
      ...(this.#error === undefined ? {} : { 'error-desc': this.#error.message }),
      ramferry: {
        phases,
        xbzrlePages: pages.xbzrle,
        sections: { ram: this.#ramSections, devices: this.#summary?.devices.length ?? 0 },
        returnPath: this.#returnPathOpen,
        pings: this.#pings,
        warnings,
        ...(this.#switch !== undefined && {
          postcopy: {
            requests: this.#postcopy!.requests,
            duplicates: (this.#target as PostcopyTarget).duplicates,
            recoveries: this.#recoveries,
            strangers: this.#running?.connections?.refused ?? 0,
            ...(this.#runsAt !== undefined && {
              runningMs: Math.round((this.#runsAt - this.#marks.start) * 100) / 100,
            }),
          },
        }),
      },
    };
  }

  async #receive(): Promise<void> {
    this.#throwIfFailed();
    this.#read(this.#channel);
    for (;;) {
      await this.#waiters.until(() => {
        this.#throwIfFailed();
        return this.#summary !== undefined || this.#linkError !== undefined;
      });
      if (this.#linkError === undefined || this.#summary !== undefined) {
        return;
      }
      await this.#recover(this.#linkError);
    }
  }

  /** What comes over a connection that was replaced counts no more. */
  #read(channel: ByteChannel): void {
    const isCurrent = (): boolean => channel === this.#channel && this.#linkError === undefined;
    channel.read({
      buffer: () => (isCurrent() ? this.#space() : discarded),
      received: (byteCount) => isCurrent() && this.#received(byteCount),
      ended: () => isCurrent() && this.#peerEnded(),
      failed: (error) => {
        this.#channelBroke = true;
        if (this.#sourceNeeded) {
          this.#linkFailed(channel, error);
        }
      },
    });
  }

  /** The guest is here: its devices are loaded and it runs, whatever becomes of the connection meanwhile. */
  async #runGuest(summary: StreamSummary, pings: readonly number[]): Promise<void> {
    const { commit } = this.#options;
    const channel = this.#channel;
    this.#enter('postcopy-active');
    await commit?.({ configuration: this.#configuration!, ram: this.#ram!, summary });
    await this.#running?.run();
    this.#runsAt = performance.now();
    if (channel === this.#channel && this.#linkError === undefined) {
      for (const value of pings) {
        this.#answer(value);
      }
      this.#returnPath.flush();
    }
  }

  /** Pauses until there is another connection, and goes on over that. */
  async #recover(error: Error): Promise<void> {
    clearTimeout(this.#recoveryTimer);
    this.#channel.destroy();
    this.#postcopy?.pause();
    this.#enter('postcopy-paused');
    const next = await this.#nextConnection(error);
    this.#channel = next;
    this.#returnPath = this.#openReturnPath(next);
    this.#linkError = undefined;
    this.#token.reconnected();
    // A half received unit is not there (RC-5).
    this.#to = this.#from;
    this.#isPaused = false;
    this.#reader.resume();
    this.#recoveries += 1;
    this.#enter('postcopy-recover');
    this.#limitRecovery(next);
    this.#read(next);
  }

  /** The one that is the source's, as far as its first words tell. */
  async #nextConnection(error: Error): Promise<ByteChannel> {
    const { connections } = this.#running!;
    if (connections === undefined) {
      throw error;
    }
    let next: ByteChannel | undefined;
    const stopped = new AbortController();
    const judge = recovers({
      token: this.#token.ofSource,
      origin: this.#origin,
      blockNames: new Set(this.#ram!.blocks.map(({ name }) => name)),
    });
    connections.find(judge, stopped.signal).then(
      (channel) => {
        // Found in the turn in which the migration was given up: nobody waits for it any more.
        if (this.#error !== undefined) {
          channel.destroy();
        }
        next = channel;
        this.#waiters.wake();
      },
      (reason) => this.#fail(reason),
    );
    try {
      await this.#waiters.until(() => {
        this.#throwIfFailed();
        return next !== undefined;
      });
      return next!;
    } catch (reason) {
      next?.destroy();
      throw reason;
    } finally {
      stopped.abort(error);
    }
  }

  /** Somebody who knows what to say first and then says nothing must not keep the source waiting. */
  #limitRecovery(channel: ByteChannel): void {
    const { recoveryMs: limitMs = RECOVERY_MS } = this.#running!;
    this.#recoveryTimer = setTimeout(() => {
      const { peer } = channel;
      const message = `The source ${peer} has not finished its recovery within ${limitMs / 1000} s.`;
      this.#linkFailed(channel, new RamferryError('failed', 'PEER_STALLED', message, { file: peer, value: limitMs }));
    }, limitMs);
  }

  /** Can still be cancelled, and fails if the source goes. */
  async #finishTarget(): Promise<void> {
    let isFinished = false;
    this.#target.finish().then(
      () => {
        isFinished = true;
        this.#waiters.wake();
      },
      (error) => this.#fail(error),
    );
    await this.#waiters.until(() => {
      this.#throwIfFailed();
      return isFinished;
    });
  }

  async #confirm(): Promise<void> {
    await (this.#switch ??
      this.#options.commit?.({ configuration: this.#configuration!, ram: this.#ram!, summary: this.#summary! }));
    // A source that left meanwhile has not heard of the success, so its guest runs on there.
    this.#throwIfFailed();
    this.#confirmed = true;
    if (this.#leftUntold !== undefined) {
      throw this.#leftUntold;
    }
    if (this.#returnPathOpen) {
      this.#returnPath.append(shut(0));
      // A source that does not hear of it any more stays paused; the guest is whole here (8.2).
      await this.#returnPath.drained().catch((error) => {
        if (this.#switch === undefined) {
          throw error;
        }
      });
    }
  }

  /** The source closes first, so that nothing of ours is lost on the way; one that does not is left. */
  #leave(): void {
    this.#dropLater(this.#options.lingerMs);
    this.#channel.end().catch(() => this.#channel.destroy());
  }

  #abandon(): void {
    this.#postcopy?.abandon();
    if (!this.#returnPathOpen || this.#switch !== undefined) {
      this.#channel.destroy();
      return;
    }
    const isLost = this.#peerHasEnded || this.#channelBroke;
    if (this.#isAnnounced && !isLost) {
      this.#refuse();
      return;
    }
    this.#channel.pause();
    this.#dropLater();
    this.#returnPath.append(shut(1));
    const drop = (): void => this.#channel.destroy();
    this.#returnPath.drained().then(drop, drop);
  }

  /** One that has announced a switch may be about to: its stream is on its way while it runs no guest any more. */
  #refuse(): void {
    this.#refused = new RefusedPostcopy({
      channel: this.#channel,
      tell: () => {
        this.#returnPath.append(shut(1));
        this.#returnPath.flush();
      },
      isTold: this.#whole?.hasSwitched !== true || this.#summary !== undefined,
      byteLimit: 2 * (this.#ram?.totalBytes ?? 0) + REFUSED_BYTES,
    });
    this.#isPaused = false;
    this.#channel.resume();
  }

  #dropLater(lingerMs = LINGER_MS): void {
    const timer = setTimeout(() => this.#channel.destroy(), lingerMs);
    void this.#channel.closed.then(() => clearTimeout(timer));
  }

  // What the channel calls. Nothing may be thrown into it.

  #space(): Uint8Array {
    if (this.#error === undefined && this.#summary === undefined) {
      try {
        return this.#nextSpace();
      } catch (error) {
        this.#linkFailed(this.#channel, error);
      }
    }
    return discarded;
  }

  #nextSpace(): Uint8Array {
    const { bytes } = this.#area;
    const next = this.#target.area();
    const held = this.#to - this.#from;
    if (held > 0 && (next.bytes !== bytes || next.start !== this.#from)) {
      next.bytes.set(bytes.subarray(this.#from, this.#to), next.start);
    }
    this.#area = next;
    this.#from = next.start;
    this.#to = next.start + held;
    return next.bytes.subarray(this.#to, next.end);
  }

  #received(byteCount: number): void {
    if (this.#error !== undefined) {
      this.#refused?.received(byteCount);
      return;
    }
    if (this.#summary !== undefined) {
      this.#trailingBytes += byteCount;
      return;
    }
    this.#to += byteCount;
    try {
      this.#from += this.#reader.push(this.#area.bytes, this.#from, this.#to);
      this.#target.consumed(this.#from);
      this.#progress();
    } catch (error) {
      this.#linkFailed(this.#channel, error);
      return;
    }
    if (this.#reader.done) {
      this.#trailingBytes = this.#to - this.#from;
    }
    this.#returnPath.flush();
    this.#throttle();
  }

  #peerEnded(): void {
    this.#sourceEnded = this.#confirmed;
    this.#peerHasEnded = true;
    this.#waiters.wake();
    if (this.#refused !== undefined) {
      this.#channel.destroy();
      return;
    }
    try {
      // Does nothing if the stream is complete, and ends one without a VM description, which only this can end.
      this.#reader.end();
    } catch (error) {
      this.#linkFailed(this.#channel, error);
    }
    if (this.#sourceNeeded && this.#returnPathOpen) {
      this.#linkFailed(
        this.#channel,
        new RamferryError(
          'failed',
          'PEER_CLOSED',
          `The source ${this.#channel.peer} closed the connection before it was told that the migration is complete.`,
          {
            file: this.#channel.peer,
            offset: this.#reader.position,
            ...(this.#whole?.hasSwitched !== true && { hint: 'Its guest runs on there.' }),
          },
        ),
      );
    }
  }

  /**
   * Whether all has come of a source that has switched to postcopy. If the connection breaks now QEMU 10 and 11 go on with the guest
   * there, 7.2 never does: what is here may be all that is left of it, and is kept.
   */
  get #isHere(): boolean {
    return this.#whole?.hasDevices === true && this.#summary !== undefined;
  }

  /** Whether the migration fails if the connection does. */
  get #sourceNeeded(): boolean {
    return !this.#confirmed && (this.#summary === undefined || this.#returnPathOpen);
  }

  #throttle(): void {
    if (this.#isPaused || (this.#target.ready && this.#returnPath.backlog <= ANSWER_BACKLOG_BYTES)) {
      return;
    }
    this.#isPaused = true;
    this.#channel.pause();
    const channel = this.#channel;
    Promise.all([this.#target.whenReady(), this.#returnPath.drained()]).then(
      () => {
        if (this.#error === undefined && channel === this.#channel) {
          this.#isPaused = false;
          channel.resume();
        }
      },
      (error) => this.#linkFailed(channel, error),
    );
  }

  #progress(): void {
    const { onProgress } = this.#options;
    const now = performance.now();
    if (onProgress !== undefined && this.#rate.age(now) >= PROGRESS_MS) {
      this.#rate.close(now, this.#reader.position, this.#pageCount());
      onProgress(this.report());
    }
  }

  // What the stream reader calls.

  #handler(): StreamHandler {
    const target = this.#target;
    const accepted = this.#postcopy ?? this.#whole;
    return {
      configuration: (configuration) => {
        this.#options.accept?.(configuration);
        this.#configuration = configuration;
        this.#switchoverAck.configuration(configuration.machine);
        target.configuration?.(configuration);
      },
      ramSetup: (setup) => {
        if (this.#options.needsReturnPath === true && !this.#returnPathOpen) {
          throw noReturnPath(this.#channel.peer);
        }
        target.ramSetup(setup);
        this.#ram = setup;
        this.#marks.ram = performance.now();
        this.#enter('active');
      },
      earlySection: (section, body) => this.#options.earlySection?.(section, body),
      records: (block, bytes, start, end, offset) => target.records?.(block, bytes, start, end, offset) ?? 0,
      zeroPage: (block, page) => target.zeroPage(block, page),
      page: (block, page, bytes, at, offset) => target.page(block, page, bytes, at, offset),
      xbzrlePage: (block, page, bytes, at, length, offset) => target.xbzrlePage(block, page, bytes, at, length, offset),
      ramSectionEnd: (type) => {
        this.#ramSections += 1;
        this.#ramEndedAt = performance.now();
        if (this.#returnPathOpen && this.#switchoverAck.sectionEnded(type, this.#pageCount())) {
          this.#returnPath.append(switchoverAck());
        }
        if (type === ElementType.SECTION_END) {
          this.#marks.device = this.#ramEndedAt;
          if (this.#switch === undefined && this.#whole?.hasDevices !== true) {
            this.#enter('device');
          }
        }
      },
      command: (command, payload) => {
        target.command?.(command, payload);
        if (this.#options.isRecording === true) {
          return;
        }
        if (command === Command.OPEN_RETURN_PATH) {
          this.#returnPathOpen = true;
          if (this.#switchoverAck.returnPathOpened()) {
            this.#returnPath.append(switchoverAck());
          }
        } else if (command === Command.PING) {
          this.#pinged(be32(payload, 0));
        } else if (command === Command.POSTCOPY_ADVISE && this.#returnPathOpen) {
          this.#isAnnounced = true;
          if (this.#options.postcopy === undefined) {
            throw postcopyAnnounced(this.#channel.peer, this.#reader.position);
          }
        }
      },
      ...(accepted !== undefined && { postcopy: accepted }),
      notSaved: (bytes, start, end) => target.notSaved?.(bytes, start, end),
      end: (summary) => {
        if (!summary.complete) {
          throw new RamferryError(
            'invalid',
            'STREAM_INCOMPLETE',
            `The stream ends inside its VM description, at byte ${summary.bytes}: its source may have failed.`,
            { offset: summary.bytes },
          );
        }
        // A background snapshot has no END section.
        this.#marks.device ??= this.#ramEndedAt;
        if (this.#whole?.hasDevices === true) {
          target.lateDevices?.(summary.tail);
        }
        this.#summary = summary;
        this.#waiters.wake();
      },
    };
  }

  #pinged(value: number): void {
    const mayShow = this.#switch === undefined;
    const answer = this.#postcopy === undefined ? undefined : this.#token.pinged(value, mayShow, this.#channel.peer);
    if (answer === undefined) {
      this.#answer(value);
    } else {
      this.#returnPath.append(answer);
    }
  }

  #answer(ping: number): void {
    this.#pings += 1;
    this.#returnPath.append(pong(ping));
  }

  #pageCount(): number {
    const { zero, normal, xbzrle } = this.#target.pages;
    return zero + normal + xbzrle;
  }

  #enter(status: IncomingStatus): void {
    this.#status = status;
    this.#options.onStatus?.(status);
  }

  /** The first error is the one reported (PL-5); says whether this is it. */
  #fail(error: unknown): boolean {
    if (this.#error !== undefined) {
      return false;
    }
    this.#error = error instanceof Error ? error : new Error(String(error));
    this.#waiters.wake();
    return true;
  }

  /** A guest that runs here waits for another connection; any other migration has failed. */
  #linkFailed(channel: ByteChannel, error: unknown): void {
    if (this.#isHere) {
      this.#leftUntold ??= error instanceof Error ? error : new Error(String(error));
    } else if (this.#switch === undefined) {
      this.#fail(error);
    } else if (channel === this.#channel && this.#linkError === undefined) {
      this.#linkError = error instanceof Error ? error : new Error(String(error));
      this.#waiters.wake();
    }
  }

  #throwIfFailed(): void {
    if (this.#error !== undefined) {
      throw this.#error;
    }
  }
}

/**
 * A source that has announced postcopy may switch to it at any moment, and is then unable to go on with its guest, whatever it
 * hears: it has to be refused while the guest runs. A stream in a file cannot switch; it has no return path.
 */
const postcopyAnnounced = (peer: string, offset: number): RamferryError =>
  new RamferryError(
    'failed',
    'POSTCOPY_ANNOUNCED',
    `The source ${peer} announces that it may switch to postcopy, which cannot be taken here; at byte ${offset} of its stream.`,
    {
      file: peer,
      offset,
      value: Command.POSTCOPY_ADVISE,
      hint: 'set the capability postcopy-ram off at the source and migrate again; its guest runs on there',
    },
  );

const noReturnPath = (peer: string): RamferryError =>
  new RamferryError(
    'failed',
    'NO_RETURN_PATH',
    `The source ${peer} has no return path: it would let go of its guest without waiting for a word.`,
    { file: peer, hint: 'set the capability return-path at the source and migrate again; its guest runs on there' },
  );
