// Postcopy (spec/algorithms.md sections 8 and 9): the guest runs at the destination and its pages follow, those it waits for
// first. What the engine's loop does differently after the switch is here; the loop itself, the sink and the send bitmap are
// those of every migration.
//
//   switch: stop │ last sync, host pages, discards │ package │ ◀ downtime ends
//   then:   host page in flight ▸ requested page and what is likely asked for next ▸ first pages ▸ everything else
//         with a preempt channel, the requested page goes there, and the rest in this order over the main one meanwhile
//   link breaks: paused ▸ new connection ▸ received bitmaps ▸ what is missing is sent

import { GUEST_PAGE_SIZE } from '../../kernels/kernels.js';
import type { ByteChannel } from '../channel/channel.js';
import { RamferryError } from '../memory/errors.js';
import type { Extent, RamBlock } from '../memory/ram-block.js';
import type { Clock } from './clock.js';
import { excludeDiscarded } from './discarded-pages.js';
import { FirstPages, FOLLOWING_PAGES, type GuestPage, type PageRange } from './first-pages.js';
import type { SourceGuest } from './guest.js';
import { type PageRequest, PageRequests } from './page-requests.js';
import type { PageSink } from './page-sink.js';
import { PostcopySink } from './postcopy-sink.js';
import type { SendBitmap } from './send-bitmap.js';
import { type ReleasePages, SentPagesRelease } from './sent-pages-release.js';
import { ServiceTimes } from './service-times.js';
import type { DowntimeBreakdown, PostcopyReport } from './statistics.js';
import type { MigrationStatus } from './status.js';

export type { GuestPage } from './first-pages.js';

/** Makes a connection to the destination; with the signal's reason it rejects if nobody wants it any more. */
export type OpenChannel = (signal: AbortSignal) => Promise<ByteChannel>;

export interface PostcopyOptions {
  /** Pages sent behind each requested one with it. */
  readonly prefetchPages: number;
  /** Send only what is asked for, and `firstPages`, until `finish` is called. */
  readonly isLazy?: boolean;
  /** What the guest asked for last time, in that order: it comes before everything else that nobody asks for. */
  readonly firstPages?: readonly GuestPage[];
  /** The guest runs at the destination already, and its former source is gone: begin with the recovery. */
  readonly recovers?: boolean;
  /** Until `release` is called, send only the pages that the destination needs to load its devices. */
  readonly isHeld?: boolean;
  /**
   * A section of device state that is loaded behind all others, and needs memory for it. Where the guest is held the destination
   * waits there for the release; it has not come to the order to run the guest then, and has not taken its disks. Without one, or
   * if the section does without memory, it is told to run, and the guest's processors wait for their first page.
   */
  readonly gate?: Uint8Array | undefined;
  /** The package with the devices has left. */
  readonly onPackage?: () => void;
  /** The destination has loaded the devices; running the guest is the next thing it does, unless it `waits` for the release. */
  readonly onLoaded?: () => void;
  /** The destination has come to the order to run the guest. */
  readonly onStarted?: () => void;
  /** Give the source's memory back as it is sent (`release-ram`); a link that breaks cannot be mended then. */
  readonly releaseWith?: ReleasePages | undefined;
  /** A page was asked for that had not been sent. */
  readonly onDemand?: (page: GuestPage) => void;
  /** The guest itself has asked for a page, and not a device that is loaded: it runs. Called for each. */
  readonly onGuestDemand?: () => void;
}

/** What postcopy needs of the engine whose loop it uses. */
export interface PostcopyEngine {
  readonly send: SendBitmap;
  /** Aborted once the migration is given up. */
  readonly cancelled: AbortSignal;
  stopGuest(): Promise<void>;
  /** The sync with the guest stopped. */
  syncLast(): void;
  /** The point of no return: from here on the guest is the destination's (PC-11). Throws if the migration was given up. */
  giveGuestAway(): void;
  /** Whether the destination has confirmed that it has everything: nothing is left to go wrong. */
  isConfirmed(): boolean;
  /** One run of the loop. */
  sendFor(): Promise<void>;
  enter(status: MigrationStatus): void;
  /** The guest runs at the destination; how long it stood still. */
  switched(downtime: DowntimeBreakdown): void;
  /** The link broke, and `error` says why. */
  paused(error: Error): void;
  /** Throws if the migration was given up. */
  throwIfStopped(): void;
}

/**
 * Background pages at once. A request waits for those under way, so there are few while the guest keeps asking: 256 KiB, a fifth
 * of a millisecond. With half as many all of a gigabyte is there in 0.86 instead of 0.79 s, and the slowest percent of the
 * requests waits 1.2 instead of 1.5 ms. 512 KiB at a time carry all that a socket does.
 */
const PAGES_WHILE_ASKED = 64;
const PAGES_OTHERWISE = 128;

/**
 * Writes under way: a page that is asked for waits behind them, so few; but while the destination takes one the next is filled,
 * which is worth a tenth of the time.
 */
const MAX_WRITES = 2;

/** Where more is looked for behind a page that is asked for and not in the list. */
const UNKNOWN_PAGES = 1024;

/** For so long after a request the next one is likely near. */
const ASKED_MS = 10;

/** RC-8 */
export const RELEASED =
  'With release-ram a postcopy cannot be recovered: pages that were on the line when it broke are nowhere any more.';

export class Postcopy {
  readonly #guest: SourceGuest;
  readonly #sink: PostcopySink;
  readonly #options: PostcopyOptions;
  readonly #clock: Clock;
  readonly #requests: PageRequests;
  readonly #firstPages: FirstPages;
  readonly #times = new ServiceTimes();
  readonly #release: SentPagesRelease | undefined;
  /** Whether the send bitmap's batch is the last one sent, and its pages are still here. */
  #isBatchHere = false;
  #isOrdered = false;
  #begun = false;
  #isLazy: boolean;
  #isHeld: boolean;
  #wasLoaded = false;
  #wasStarted = false;
  #current: PageRequest | undefined;
  /** The request whose page is in the next batch. */
  #serving: PageRequest | undefined;
  #wasUrgent = false;
  #lastRequestAt = Number.NEGATIVE_INFINITY;
  #nextFirstPage = 0;
  /** What comes along with the last request, and how many pages of it still may. */
  #following = { ranges: [] as readonly PageRange[], next: 0, pages: 0 };
  /** Rest of a host page of which a part was sent: nothing may come in between (PC-6). */
  #unfinished: PageRange | undefined;
  #behind: PageRange | undefined;
  #demands = 0;
  #demandedPages = 0;
  #prefetchedPages = 0;
  #recoveries = 0;
  /** Set while the migration is paused: takes the way to a new connection. */
  #reconnect: ((open: OpenChannel) => void) | undefined;

  constructor(guest: SourceGuest, sink: PageSink, options: PostcopyOptions, clock: Clock) {
    if (!(sink instanceof PostcopySink)) {
      throw new RamferryError(
        'usage',
        'POSTCOPY_SINK',
        'Postcopy needs a destination that answers: a socket, no file.',
      );
    }
    this.#guest = guest;
    this.#sink = sink;
    this.#options = options;
    this.#clock = clock;
    this.#isLazy = options.isLazy ?? false;
    this.#isHeld = options.isHeld ?? false;
    this.#requests = new PageRequests(this.#blocks, sink.peer);
    const { releaseWith } = options;
    this.#release = releaseWith && new SentPagesRelease(this.#blocks, guest.blocks.bitmaps.kernels, releaseWith);
    this.#firstPages = new FirstPages(options.firstPages ?? [], this.#blocks, options.prefetchPages);
  }

  get #blocks(): readonly RamBlock[] {
    return this.#guest.blocks.blocks.filter((block) => block.migrated);
  }

  /** Whether the engine shall switch as soon as it can. */
  get isOrdered(): boolean {
    return this.#isOrdered || this.recovers;
  }

  /** Whether the destination's guest may run: the source's never does again (PC-11). */
  get hasBegun(): boolean {
    return this.#begun;
  }

  /** Whether the last batch was asked for: it does not count for the bandwidth limit (PC-18). */
  get wasUrgent(): boolean {
    return this.#begun && this.#wasUrgent;
  }

  get recovers(): boolean {
    return this.#options.recovers ?? false;
  }

  get requestCount(): number {
    return this.#requests.received;
  }

  /** Orders the switch (`migrate-start-postcopy`). */
  start(): void {
    this.#isOrdered = true;
  }

  /** Whether pages are asked for: nobody pauses then (PC-18). */
  get isAsked(): boolean {
    return !this.#requests.isEmpty;
  }

  /** Called with each request for pages. */
  set onRequest(listener: () => void) {
    this.#requests.onArrival = listener;
  }

  /** Ends laziness: everything is sent, and then the migration is over. */
  finish(): void {
    this.#isLazy = false;
    this.#sink.notify();
  }

  /** Lets the guest go on at the destination, where it was held. */
  release(): void {
    this.#isHeld = false;
    this.#sink.notify();
  }

  /** Whether the destination has the devices, and has not said that it has loaded them. */
  get isAwaitingLoad(): boolean {
    return this.#begun && !this.#sink.isLoaded;
  }

  /** Takes the link down (`migrate-pause`). Without effect before the switch. */
  pause(): void {
    if (this.#begun) {
      this.#sink.abort(new RamferryError('failed', 'POSTCOPY_PAUSED', 'The migration was paused.'));
    }
  }

  /**
   * Goes on over a new connection; false if it is not paused (RC-8).
   * @throws RamferryError `usage`, if pages that did not arrive may have been released
   */
  recover(open: OpenChannel): boolean {
    if (this.#release !== undefined) {
      throw new RamferryError('usage', 'RELEASE_RAM', RELEASED);
    }
    const reconnect = this.#reconnect;
    this.#reconnect = undefined;
    reconnect?.(open);
    return reconnect !== undefined;
  }

  /**
   * What a guest knows to be zero, the destination has: it discards all memory when postcopy is announced. Such pages are
   * sent only to a guest thread that waits for one.
   */
  leaveOutZeroPages(send: SendBitmap): void {
    const { contentBitmap } = this.#guest;
    if (contentBitmap !== undefined) {
      for (const block of this.#blocks) {
        send.intersect(block, contentBitmap.call(this.#guest, block));
      }
    }
  }

  /** All of it, from the switch on, to the destination's confirmation. */
  async run(engine: PostcopyEngine): Promise<void> {
    let step = this.recovers ? () => this.#handshake(engine) : await this.#switchOver(engine);
    for (;;) {
      try {
        await step();
        await this.#sendAll(engine);
        await this.#finish(engine);
        this.#release?.finish();
        return;
      } catch (error) {
        if (engine.isConfirmed()) {
          throw error;
        }
        engine.throwIfStopped();
        const open = await this.#pause(engine, error as Error);
        step = () => this.#handshake(engine, open);
      }
    }
  }

  /** Up to the point of no return: whatever fails in here leaves the guest to the source. Returns the step behind it. */
  async #switchOver(engine: PostcopyEngine): Promise<() => Promise<void>> {
    const { send } = engine;
    await this.#sink.openPreempt();
    const marks = [this.#clock.now()];
    await engine.stopGuest();
    marks.push(this.#clock.now());
    engine.syncLast();
    marks.push(this.#clock.now());
    let isAnyDiscarded = false;
    for (const block of this.#blocks) {
      this.#forgetReceived(block);
      this.#noteContent(block);
      send.roundToHostPages(block);
      isAnyDiscarded = this.#sink.discard(block, this.#guest.blocks) || isAnyDiscarded;
    }
    if (!isAnyDiscarded) {
      // QEMU 10 waits for ever where there was none (spec/qemu-wire-format.md 5.2): a page that has come comes again.
      const block = this.#blocks.find(({ discardManager }) => discardManager === undefined) ?? this.#blocks[0];
      const pageCount = block.hostPageSize / GUEST_PAGE_SIZE;
      send.include(block, 0, pageCount);
      this.#guest.blocks.bitmaps.kernels.setRange(block.bitmaps.received, 0, pageCount);
      this.#sink.discard(block, this.#guest.blocks);
    }
    send.rewind();
    await this.#sink.flush();
    marks.push(this.#clock.now());
    const devices = this.#guest.saveDevices();
    engine.enter('postcopy-active');
    return async () => {
      engine.giveGuestAway();
      this.#begin();
      this.#sink.writePackage(devices, this.#options.gate);
      await this.#sink.flush();
      this.#options.onPackage?.();
      marks.push(this.#clock.now());
      const part = (index: number): number => Math.round((marks[index + 1] - marks[index]) * 100) / 100;
      // PC-10
      engine.switched({ stopMs: part(0), syncMs: part(1), ramMs: part(2), deviceMs: part(3), ackMs: 0 });
    };
  }

  #begin(): void {
    this.#begun = true;
    this.#sink.accept({
      requests: this.#requests,
      // PC-16: what is released must have left.
      maxWrites: this.#release === undefined ? MAX_WRITES : 1,
      isAsked: () => this.#unfinished === undefined && this.#isAsked,
      whenTaken: () => {
        const serving = this.#serving;
        this.#serving = undefined;
        return serving && (() => this.#times.add(this.#clock.now() - serving.at));
      },
    });
  }

  /** The link is gone. Resolves with the way to the next one, once there is an order to take it. */
  async #pause(engine: PostcopyEngine, error: Error): Promise<() => Promise<ByteChannel>> {
    this.#sink.abort(error);
    const { cancelled } = engine;
    let goOn = (): void => {};
    let open: OpenChannel | undefined;
    const ordered = new Promise<void>((resolve) => {
      goOn = resolve;
      this.#reconnect = (ordered) => {
        open = ordered;
        resolve();
      };
    });
    cancelled.addEventListener('abort', goOn);
    // Who hears of it may give up at once.
    engine.paused(error);
    await ordered;
    cancelled.removeEventListener('abort', goOn);
    this.#reconnect = undefined;
    engine.throwIfStopped();
    engine.enter('postcopy-recover-setup');
    return () => (open as OpenChannel)(cancelled);
  }

  /**
   * Asks what has arrived and makes of it what is to be sent. What was sent and is not there was under way when the link
   * broke (RC-3). Without `open` the sink's first connection is the new one.
   */
  async #handshake(engine: PostcopyEngine, open?: () => Promise<ByteChannel>): Promise<void> {
    const channel = await open?.();
    try {
      engine.giveGuestAway();
      engine.enter('postcopy-recover');
    } catch (error) {
      channel?.destroy();
      throw error;
    }
    this.#begin();
    this.#requests.clear();
    this.#current = undefined;
    this.#serving = undefined;
    this.#following.ranges = [];
    this.#behind = undefined;
    this.#unfinished = undefined;
    await this.#sink.recover(open, channel, this.#guest, () => {
      for (const block of this.#blocks) {
        engine.send.replaceByMissing(block);
        this.#noteContent(block);
      }
      this.leaveOutZeroPages(engine.send);
      // RD-6
      excludeDiscarded(engine.send, this.#guest.blocks);
      engine.send.recount();
      engine.send.rewind();
    });
    engine.enter('postcopy-active');
    this.#recoveries += 1;
  }

  /** The phase: until everything is sent and nothing can be asked for any more (PC-12). */
  async #sendAll(engine: PostcopyEngine): Promise<void> {
    const { send } = engine;
    for (;;) {
      await engine.sendFor();
      engine.throwIfStopped();
      this.#sink.throwIfBroken();
      const waits = this.#waitsAtGate;
      if ((this.#sink.isLoaded || waits) && !this.#wasLoaded) {
        this.#wasLoaded = true;
        this.#options.onLoaded?.();
      }
      if (this.#sink.isLoaded && !this.#wasStarted) {
        this.#wasStarted = true;
        this.#options.onStarted?.();
      }
      const isIdle = this.#isWithheld || !(this.#isAsked || this.#mayPush(send));
      if (isIdle && send.remaining === 0 && this.#sink.isLoaded) {
        send.checkEmpty();
        return;
      }
      const isSweeping = !this.#isAsked && this.#sink.hasRoom && this.#release?.sweep() === true;
      await (isIdle && !isSweeping ? this.#sink.nextMessage(waits) : this.#sink.whenReady());
    }
  }

  /**
   * The end of the stream, and the destination's confirmation. With a preempt channel it waits for what it has asked for before
   * it confirms (spec/qemu-wire-format.md 5.9), which may be a page that was left out because it is zero.
   */
  async #finish(engine: PostcopyEngine): Promise<void> {
    const finished = this.#sink.finish();
    let isFinished = false;
    const wake = (): void => {
      isFinished = true;
      this.#sink.notify();
    };
    finished.then(wake, wake);
    while (this.#sink.isPreempting && !isFinished) {
      await engine.sendFor();
      if (!this.#isAsked && !isFinished) {
        await this.#sink.activity();
      }
    }
    await finished;
  }

  /** Whether no page may leave: what is asked for from now on, the guest asks for, or the device that holds it. */
  get #isWithheld(): boolean {
    return this.#isHeld && (this.#sink.isLoaded || this.#sink.isAtGate);
  }

  /** Whether the destination waits for the page that lets it go on to the order to run. */
  get #waitsAtGate(): boolean {
    return this.#isHeld && this.#sink.isAtGate && !this.#sink.isLoaded && !this.#requests.isEmpty;
  }

  /**
   * Whether nothing but what is asked for may leave: the guest waits for its devices, and they for pages that everything else
   * would be in front of.
   */
  get #isLoading(): boolean {
    return this.#isHeld || !this.#sink.isLoaded;
  }

  /** Whether something was asked for that may not be sent yet; a large host page takes several runs of the loop. */
  get #isAsked(): boolean {
    return !this.#requests.isEmpty || this.#current !== undefined || this.#unfinished !== undefined;
  }

  /** Whether there are pages to send that nobody has asked for. */
  #mayPush(send: SendBitmap): boolean {
    const isFollowing = this.#following.next < this.#following.ranges.length;
    const isPushing =
      !this.#isLazy ||
      isFollowing ||
      this.#behind !== undefined ||
      this.#nextFirstPage < this.#firstPages.ranges.length;
    return send.remaining > 0 && !this.#isLoading && isPushing;
  }

  /**
   * Makes the send bitmap's batch of the pages to send next; false if there are none at present, undefined before the switch.
   * With `isLimited` only pages that were asked for (PC-8, PC-18).
   */
  next(send: SendBitmap, limit: (extent: Extent) => number, isLimited: boolean): boolean | undefined {
    if (!this.#begun) {
      return undefined;
    }
    // PC-16
    if (this.#isBatchHere && this.#sink.hasRoom) {
      this.#release?.batch(send.batch);
    }
    const found = !this.#isWithheld && this.#find(send, limit, !isLimited && !this.#isLoading);
    // What is begun over the preempt channel, `#current` finishes.
    if (found && !this.#isOnPreempt) {
      this.#noteUnfinished(send);
    }
    this.#isBatchHere = found;
    // There may be room for requests again.
    this.#sink.readRequests();
    return found;
  }

  #find(send: SendBitmap, limit: (extent: Extent) => number, mayPush: boolean): boolean {
    const urgentLimit = (extent: Extent): number => this.#sink.batchLimit(extent);
    const { isPreempting } = this.#sink;
    this.#sink.isUrgent = false;
    if (this.#nextUnfinished(send, urgentLimit) || (mayPush && !isPreempting && this.#nextFollowing(send, limit))) {
      return true;
    }
    this.#sink.isUrgent = true;
    if (this.#sink.mayAnswer && this.#nextRequested(send, urgentLimit)) {
      return true;
    }
    this.#sink.isUrgent = false;
    const hasRoom = mayPush && (!isPreempting || this.#sink.hasRoom);
    return (
      hasRoom && (this.#nextBehind(send, limit) || this.#nextFollowing(send, limit) || this.#nextPushed(send, limit))
    );
  }

  /** Whether the last batch goes over the preempt channel. */
  get #isOnPreempt(): boolean {
    return this.#sink.isUrgent && this.#sink.isPreempting;
  }

  #nextUnfinished(send: SendBitmap, limit: (extent: Extent) => number): boolean {
    const unfinished = this.#unfinished;
    this.#unfinished = undefined;
    return unfinished !== undefined && send.nextIn(unfinished.block, unfinished.firstPage, unfinished.endPage, limit);
  }

  #nextRequested(send: SendBitmap, limit: (extent: Extent) => number): boolean {
    this.#wasUrgent = true;
    for (;;) {
      this.#current ??= this.#take(send);
      if (this.#current === undefined) {
        this.#wasUrgent = false;
        return false;
      }
      const { block, firstPage, pageCount } = this.#current;
      const end = firstPage + pageCount;
      const prefetchEnd = this.#hostPageEnd(block, end + (this.#isHeld ? 0 : this.#options.prefetchPages));
      // PC-15
      const lastEnd = this.#isOnPreempt ? end : prefetchEnd;
      if (this.#isMissing(this.#current) && send.nextIn(block, firstPage, lastEnd, limit)) {
        this.#behind = lastEnd < prefetchEnd ? { block, firstPage: end, endPage: prefetchEnd } : undefined;
        const { count, pages } = send.batch;
        const asked = pages[count - 1] < end ? count : pages.subarray(0, count).findIndex((page) => page >= end);
        this.#demandedPages += asked;
        this.#prefetchedPages += count - asked;
        return true;
      }
      this.#current = undefined;
    }
  }

  /** What is behind the last requested page, and was not sent with it because that went over the preempt channel. */
  #nextBehind(send: SendBitmap, limit: (extent: Extent) => number): boolean {
    const behind = this.#behind;
    if (behind !== undefined && send.nextIn(behind.block, behind.firstPage, behind.endPage, limit)) {
      this.#prefetchedPages += send.batch.count;
      return true;
    }
    this.#behind = undefined;
    return false;
  }

  /**
   * What likely is asked for next. Nobody asked for a page that is not in the list because the background brought it in time, and
   * now the guest is quicker: nothing is known of its order, but there are more of the kind. Where all of 300 MB is used
   * at random, the guest gets on as quickly with this as without it, and asks 0.4 times as often.
   */
  #likelyAfter({ block, firstPage }: PageRequest): readonly PageRange[] {
    const following = this.#firstPages.following(block, firstPage);
    // Without a list, its own order makes one.
    const isKnown = following.length > 0 || this.#firstPages.ranges.length === 0;
    return isKnown || this.#isLazy ? following : [{ block, firstPage, endPage: firstPage + UNKNOWN_PAGES }];
  }

  #isMissing({ block, firstPage, pageCount }: PageRequest): boolean {
    return this.#guest.blocks.bitmaps.kernels.countRange(block.bitmaps.send, firstPage, pageCount) > 0;
  }

  /** The request that waits longest and asks for something that is not sent yet (PC-7). */
  #take(send: SendBitmap): PageRequest | undefined {
    for (let request = this.#requests.take(); request !== undefined; request = this.#requests.take()) {
      const { block, firstPage } = request;
      this.#includeZeroPages(send, request);
      if (this.#isMissing(request)) {
        this.#lastRequestAt = this.#clock.now();
        this.#demands += 1;
        this.#serving = request;
        this.#options.onDemand?.({ blockName: block.name, page: firstPage });
        if (this.#sink.isLoaded) {
          this.#options.onGuestDemand?.();
        }
        const ranges = this.#isHeld ? [] : this.#likelyAfter(request);
        this.#following = { ranges, next: 0, pages: FOLLOWING_PAGES };
        return request;
      }
    }
    return undefined;
  }

  /** Pages without content are in no send bitmap before they are asked for. In runs: a request may be for a whole block. */
  #includeZeroPages(send: SendBitmap, { block, firstPage, pageCount }: PageRequest): void {
    if (this.#guest.contentBitmap === undefined) {
      return;
    }
    const { kernels } = this.#guest.blocks.bitmaps;
    const { received } = block.bitmaps;
    const end = firstPage + pageCount;
    for (let page = kernels.findNextClear(received, firstPage, end); page < end; ) {
      const first = page;
      page = kernels.findNextSet(received, first, end);
      kernels.setRange(received, first, page - first);
      send.include(block, first, page - first);
      page = kernels.findNextClear(received, page, end);
    }
  }

  /** What followed last time on the page that was asked for: as one answer to its request, but within the limit. */
  #nextFollowing(send: SendBitmap, limit: (extent: Extent) => number): boolean {
    const following = this.#following;
    if (following.next >= following.ranges.length || (this.#current !== undefined && this.#isMissing(this.#current))) {
      return false;
    }
    this.#wasUrgent = false;
    for (; following.next < following.ranges.length && following.pages > 0; following.next += 1) {
      if (this.#nextOf(following.ranges[following.next], send, limit)) {
        following.pages -= send.batch.count;
        this.#prefetchedPages += send.batch.count;
        return true;
      }
    }
    following.ranges = [];
    return false;
  }

  #nextPushed(send: SendBitmap, limit: (extent: Extent) => number): boolean {
    const { ranges } = this.#firstPages;
    for (; this.#nextFirstPage < ranges.length; this.#nextFirstPage += 1) {
      if (this.#nextOf(ranges[this.#nextFirstPage], send, limit)) {
        return true;
      }
    }
    const isAsked = this.#clock.now() - this.#lastRequestAt < ASKED_MS;
    return !this.#isLazy && send.next(limit, isAsked ? PAGES_WHILE_ASKED : PAGES_OTHERWISE);
  }

  #nextOf({ block, firstPage, endPage }: PageRange, send: SendBitmap, limit: (extent: Extent) => number): boolean {
    const first = firstPage - (firstPage % hostPagePages(block));
    return send.nextIn(block, first, this.#hostPageEnd(block, endPage), limit);
  }

  #hostPageEnd(block: RamBlock, page: number): number {
    const pages = hostPagePages(block);
    return Math.ceil(page / pages) * pages;
  }

  #noteUnfinished({ batch: { block, pages, count } }: SendBitmap): void {
    const firstPage = pages[count - 1] + 1;
    const endPage = this.#hostPageEnd(block, firstPage);
    if (firstPage < endPage) {
      this.#unfinished = { block, firstPage, endPage };
    }
  }

  /**
   * In the send phase `received` notes which pages need not be included when they are asked for: those with content, and those
   * that were.
   */
  #noteContent(block: RamBlock): void {
    const content = this.#guest.contentBitmap?.(block);
    if (content !== undefined) {
      this.#guest.blocks.bitmaps.kernels.merge(content, block.bitmaps.received, Math.ceil(block.usedPages / 64));
    }
  }

  /** A relayed guest has something there. */
  #forgetReceived(block: RamBlock): void {
    this.#guest.blocks.bitmaps.kernels.testAndClearRange(block.bitmaps.received, 0, block.maxPages);
  }

  report(): PostcopyReport {
    const serviceMs = this.#times.report();
    return {
      demands: this.#demands,
      demandedPages: this.#demandedPages,
      prefetchedPages: this.#prefetchedPages,
      ...(serviceMs !== undefined && { serviceMs }),
      recoveries: this.#recoveries,
    };
  }
}

const hostPagePages = (block: RamBlock): number => block.hostPageSize / GUEST_PAGE_SIZE;
