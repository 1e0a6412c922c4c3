// The source engine: one loop for every guest and every sink.

import { GUEST_PAGE_SIZE, NORMAL_RECORD_BYTES } from '../../kernels/kernels.js';
import { RateLimit } from '../channel/rate-limit.js';
import { clampClearBitmapShift } from '../dirty-log/clear-bitmap.js';
import type { DirtyLog } from '../dirty-log/dirty-log.js';
import { checkMethods } from '../dirty-log/dirty-log-contract.js';
import type { WriteProtector } from '../dirty-log/write-protector.js';
import { RamferryError } from '../memory/errors.js';
import { type GuestClaim, geometryChanged } from '../memory/guest-claim.js';
import type { Extent, RamBlock } from '../memory/ram-block.js';
import type { RamBlockList } from '../memory/ram-block-list.js';
import { BackgroundSnapshot } from './background-snapshot.js';
import { BandwidthWindow } from './bandwidth.js';
import { type Clock, systemClock } from './clock.js';
import { excludeDiscarded } from './discarded-pages.js';
import { Ending } from './ending.js';
import { FreePageHints } from './free-page-hints.js';
import type { SourceGuest } from './guest.js';
import { GuestHold } from './guest-hold.js';
import { HintWait } from './hint-wait.js';
import type { PageSink } from './page-sink.js';
import { changeParameters, effectiveParameters, type MigrationParameters } from './parameters.js';
import { Pause } from './pause.js';
import { type OpenChannel, Postcopy, type PostcopyOptions } from './postcopy.js';
import { SendBitmap } from './send-bitmap.js';
import { Counters, type DowntimeBreakdown, type Iteration, type MigrationReport } from './statistics.js';
import type { MigrationState, MigrationStatus } from './status.js';
import { Throttle } from './throttle.js';
import type { Trace } from './trace.js';

/** A run of sending is cut after this long, so that cancelling, hints and requests are looked at (PL-2). */
const ITERATION_MS = 50;

/** With auto-converge a pass that takes longer is interrupted by a sync, or throttling would wait for its end (TH-6). */
const THROTTLE_SYNC_MS = 5000;

/** With hints, longer waits are cut into pieces: the guest's sweep must not stand still because the ring is full. */
const HINT_POLL_MS = 5;

/** While the first sweep is awaited, and nothing else is to be done: the shortest a timer can wait. */
const HINT_WAIT_MS = 1;

/** Dirty rate and throttling are judged over periods of this length (ST-2, TH-5). */
const PERIOD_MS = 1000;

const MAY_RUN_THERE =
  'The destination may have had everything by then, and nothing tells whether it runs the guest, which therefore stands still here.';

export interface MigrationSourceOptions {
  readonly guest: SourceGuest;
  readonly sink: PageSink;
  readonly parameters: MigrationParameters;
  /** Announce postcopy to the destination, so that the migration can switch to it; `sink` is a `PostcopySink` then. */
  readonly postcopy?: PostcopyOptions | undefined;
  /** Saves the guest as it is at one instant and leaves it running (background-snapshot.ts), instead of migrating it. */
  readonly snapshotWith?: WriteProtector;
  /**
   * The claim on the guest that the thread which ordered the migration has made for it (`GuestClaim.token`). Default: a claim of
   * its own. Either way it is released at the end of `run`.
   */
  readonly claim?: number | undefined;
  /** Where another thread finds what is done to the guest (`allocateGuestHold`), should this one die. Default: nowhere. */
  readonly hold?: SharedArrayBuffer;
  readonly clock?: Clock;
  readonly trace?: Trace;
  /** The state moved (QMP's MIGRATION event). */
  readonly onStatus?: (status: MigrationStatus) => void;
  /** A log sync happened (QMP's MIGRATION_PASS event). */
  readonly onPass?: (pass: number) => void;
  /** A window closed: at most every 100 ms. */
  readonly onProgress?: (report: MigrationReport) => void;
}

/**
 * Migrates one guest into one sink, once.
 *
 *   setup ─▶ ┌─▶ estimate pending ─ below threshold? ─▶ sync (exact) ─ still below? ─▶ switchover
 *            └── send for 50 ms or until the rate budget is spent ◀── no ──┴── no ──┘
 *
 *   switchover: stop the guest, last sync, send the rest, device state, wait for the destination's answer
 *
 * A background snapshot has its instant at the end of the setup, sends until nothing is left, and ends without a stop.
 *
 * Whatever fails before that answer leaves the guest running where it is (G-10, PL-36), and after it nothing brings the guest back
 * (ending.ts). After a switch to postcopy, which may be ordered at any moment, the guest is at the destination (postcopy.ts).
 * Whatever was done to the guest on the way is undone in the end (guest-hold.ts).
 */
export class MigrationSource {
  readonly #guest: SourceGuest;
  readonly #sink: PageSink;
  readonly #clock: Clock;
  readonly #trace: Trace;
  readonly #options: MigrationSourceOptions;
  readonly #rateLimit: RateLimit;
  readonly #shift: number;
  readonly #warnings: string[] = [];
  readonly #counters = new Counters();
  readonly #iterations: Iteration[] = [];
  readonly #throttle = new Throttle();
  readonly #hold: GuestHold;
  readonly #ending: Ending;
  readonly #pause: Pause;
  readonly #postcopy: Postcopy | undefined;
  readonly #snapshot: BackgroundSnapshot | undefined;

  #parameters: MigrationParameters;
  #send!: SendBitmap;
  /** The guest's blocks as they were when it was claimed. */
  #claimed!: { readonly claim: GuestClaim; readonly list: RamBlockList; readonly blocks: readonly RamBlock[] };
  #hints: FreePageHints | undefined;
  #window!: BandwidthWindow;
  #startedAt = 0;
  #setupMs = 0;
  #discardedPages = 0;
  #totalMs: number | undefined;
  #downtime: DowntimeBreakdown | undefined;
  #passStart = { at: 0, normalPages: 0, zeroPages: 0, bytes: 0, calls: 0, pages: 0 };
  #period = { at: 0, transferred: 0 };
  #lastSyncAt = 0;

  constructor(options: MigrationSourceOptions) {
    this.#options = options;
    this.#guest = options.guest;
    this.#sink = options.sink;
    this.#clock = options.clock ?? systemClock;
    this.#trace = options.trace ?? {};
    this.#parameters = changeParameters(options.parameters, {});
    this.#pause = new Pause(this.#clock);
    this.#hold = new GuestHold(options.guest, options.snapshotWith, options.hold);
    this.#snapshot =
      options.snapshotWith && new BackgroundSnapshot(this.#guest, options.snapshotWith, this.#hold, this.#clock);
    // A guest thread that waits for its page must not wait for a rate (PL-30).
    const isLimited = this.#snapshot === undefined;
    this.#rateLimit = new RateLimit(isLimited ? this.#parameters.maxBandwidth : 0, this.#clock.now());
    this.#postcopy = options.postcopy && new Postcopy(options.guest, options.sink, options.postcopy, this.#clock);
    const { shift, warning } = clampClearBitmapShift(options.parameters.clearBitmapShift);
    this.#shift = shift;
    if (warning !== undefined) {
      this.#warnings.push(warning);
    }
    this.#ending = new Ending({
      sink: this.#sink,
      clock: this.#clock,
      couldRunTwice: () => this.#hold.willRun,
      onConfirmed: () => this.#confirmed(),
      onStatus: (status) => {
        this.#trace.migrate_set_state?.(status);
        options.onStatus?.(status);
      },
    });
    this.#sink.onConfirmed = () => this.#ending.confirm();
    this.#ending.signal.addEventListener('abort', () => this.#pause.end(), { once: true });
    if (this.#postcopy !== undefined) {
      this.#postcopy.onRequest = () => this.#pause.interrupt();
    }
  }

  get state(): MigrationState {
    return this.#ending.state;
  }

  /** Takes effect at once, in the middle of a migration too. */
  setParameters(changes: Partial<MigrationParameters>): void {
    this.#parameters = changeParameters(this.#parameters, changes);
    if (this.#snapshot === undefined) {
      this.#limitBandwidth();
    }
  }

  #limitBandwidth(): void {
    const { maxBandwidth, maxPostcopyBandwidth } = this.#parameters;
    this.#rateLimit.setLimit(this.#postcopy?.hasBegun === true ? maxPostcopyBandwidth : maxBandwidth);
  }

  /**
   * Orders the switch to postcopy, at any moment before the end of precopy (`migrate-start-postcopy`).
   * @throws RamferryError `usage`, if postcopy was not announced to the destination
   */
  startPostcopy(): void {
    this.#announcedPostcopy().start();
  }

  /** Sends everything after all, where only what is asked for is sent. */
  finishPostcopy(): void {
    this.#announcedPostcopy().finish();
  }

  /** Lets the guest go on at the destination, where it was held from the switch on (`PostcopyOptions.isHeld`). */
  releasePostcopy(): void {
    this.#announcedPostcopy().release();
  }

  /** Takes the link down, without harm to the guest, which runs at the destination (`migrate-pause`). */
  pausePostcopy(): void {
    this.#announcedPostcopy().pause();
  }

  /**
   * Goes on with a paused postcopy over the connection that `open` makes. If that fails, or what is then said over it, it is
   * paused again (RC-6).
   * @throws RamferryError `usage`, if it is not paused (RC-8)
   */
  recoverPostcopy(open: OpenChannel): void {
    if (!this.#announcedPostcopy().recover(open)) {
      throw new RamferryError(
        'usage',
        'NOT_PAUSED',
        `Only a paused postcopy can be recovered; this migration is ${this.state.value}.`,
      );
    }
  }

  #announcedPostcopy(): Postcopy {
    if (this.#postcopy === undefined) {
      throw new RamferryError(
        'usage',
        'POSTCOPY_OFF',
        'This migration was started without postcopy, which its destination does not expect.',
      );
    }
    return this.#postcopy;
  }

  /**
   * Ends the migration; the guest runs on here. Without effect once the destination has confirmed (PL-4), or after the switch to
   * postcopy; says whether it can have one. A destination that has everything, and may be running the guest already, is
   * waited for some seconds: if it confirms after all, the migration is completed.
   */
  cancel(): boolean {
    this.#trace.migration_cancel?.();
    return this.#ending.cancel();
  }

  /**
   * Fails the migration from outside, e.g. because a RAM block is being resized (DM-23); the first error wins (PL-5). It
   * gives up a postcopy: the guest stays at the destination, without the pages that are missing there. Says whether it can have an
   * effect, as `cancel`.
   */
  fail(error: Error): boolean {
    return this.#ending.fail(error);
  }

  /** Fails the migration as its destination is known not to load the devices, unless it has said by now that it has. */
  notLoaded(error: Error): void {
    if (this.#postcopy?.isAwaitingLoad === true) {
      this.fail(error);
    }
  }

  /** Says something in the report. */
  warn(warning: string): void {
    this.#warnings.push(warning);
  }

  /**
   * Runs the migration to its end: `completed`, `cancelled` or `failed`, which the report says. Never rejects. A guest that
   * somebody else migrates, saves or loads is left alone: the migration fails with `GUEST_BUSY`.
   * @throws RamferryError `MIGRATION_IN_PROGRESS` if it was started before
   */
  async run(): Promise<MigrationReport> {
    if (!this.#ending.start()) {
      throw new RamferryError(
        'usage',
        'MIGRATION_IN_PROGRESS',
        `This migration was already started (it is ${this.state.value}).`,
      );
    }
    this.#startedAt = this.#clock.now();
    let unsubscribe = (): void => {};
    try {
      unsubscribe = this.#claimGuest();
    } catch (error) {
      // The guest is somebody else's: nothing of it is touched, not even to clean up.
      this.#ending.threw(error);
      this.#totalMs = 0;
      this.#ending.close();
      return this.report();
    }
    try {
      return await this.#run();
    } finally {
      unsubscribe();
      this.#claimed.claim.release();
    }
  }

  /** Returns the function that ends what it subscribed to. */
  #claimGuest(): () => void {
    const list = this.#guest.blocks;
    const claim =
      this.#options.claim === undefined
        ? list.claim(this.#snapshot === undefined ? 'migration' : 'backgroundSnapshot')
        : list.adoptClaim(this.#options.claim);
    this.#claimed = { claim, list, blocks: list.blocks };
    // Who waits for a slow destination hears of it at once.
    return list.subscribe({
      resizing: ({ name }) => {
        this.fail(geometryChanged(`RAM block ${name} was resized`, name));
      },
    });
  }

  /**
   * Fails by name where the guest's blocks are not those any more that the migration began with: pages would be left out, or
   * waited for without end.
   */
  #checkGeometry(): void {
    const { claim, list, blocks } = this.#claimed;
    claim.check(this.#blockName);
    if (this.#guest.blocks !== list || list.blocks !== blocks) {
      const other = this.#guest.blocks.blocks.find((block) => !blocks.includes(block));
      throw geometryChanged(
        other === undefined ? "The guest's list of RAM blocks changed" : `RAM block ${other.name} was plugged`,
        other?.name,
      );
    }
  }

  readonly #blockName = (wanted: number): string | undefined =>
    this.#claimed.blocks.find(({ id }) => id === wanted)?.name;

  async #run(): Promise<MigrationReport> {
    try {
      await this.#setup();
      if (this.#postcopy?.recovers !== true) {
        this.#ending.enter('active');
        await this.#iterate();
        this.#ending.enter('device');
      }
      await (this.#postcopy?.isOrdered === true ? this.#completeByPostcopy(this.#postcopy) : this.#complete());
      this.#ending.confirm();
      this.#ending.throwIfUnconfirmed();
    } catch (error) {
      this.#threw(error);
    }
    await this.#cleanUp();
    this.#ending.close();
    return this.report();
  }

  /** Why the migration failed or was cancelled. */
  get error(): Error | undefined {
    return this.state.ended ? this.#ending.error : undefined;
  }

  /** From here on nothing resumes the guest here: it is where it was sent to. */
  #confirmed(): void {
    if (this.#snapshot === undefined) {
      this.#hold.giveAway(this.#sink.movesGuest === true);
    }
  }

  #threw(error: unknown): void {
    this.#ending.threw(error);
    if (this.#ending.isConfirmed) {
      this.warn(`After the destination had confirmed: ${error instanceof Error ? error.message : String(error)}`);
      return;
    }
    if (this.#sink.staysUndecided !== true) {
      this.#hold.withdraw();
    } else if (this.#hold.isUndecided) {
      this.warn(MAY_RUN_THERE);
    }
    this.#downtime = undefined;
    if (this.state.value !== 'cancelling') {
      this.#trace.migrate_error?.((this.#ending.error as Error).message);
    }
  }

  #throwIfStopped(): void {
    this.#ending.throwIfStopped();
    this.#checkGeometry();
  }

  async #setup(): Promise<void> {
    const { blocks } = this.#guest;
    const log = this.#snapshot === undefined ? this.#guest.log : undefined;
    if (log !== undefined) {
      checkMethods(log);
    }
    this.#window = new BandwidthWindow(this.#startedAt, this.#parameters.downtimeLimit);
    this.#period = { at: this.#startedAt, transferred: 0 };
    this.#send = new SendBitmap({
      blocks,
      log,
      clearBitmapShift: this.#parameters.eagerClear ? undefined : this.#shift,
      ...(this.#guest.extentAt !== undefined && { extentAt: this.#guest.extentAt.bind(this.#guest) }),
      trace: this.#trace,
    });
    this.#hold.freezeDiscards();
    if (this.#snapshot !== undefined) {
      this.#hold.protect();
    }
    this.#hints = this.#hintsOf(log);
    if (this.#snapshot === undefined) {
      this.#hold.startLog();
    }
    // The first sync adds nothing, every bit is set already; it records the debts of the first pass (PL-7).
    if (this.#snapshot === undefined) {
      this.#sync(false);
    }
    // Not before that sync: it would bring back what dirty memory still had (RD-5).
    this.#discardedPages = excludeDiscarded(this.#send, blocks);
    this.#postcopy?.leaveOutZeroPages(this.#send);
    if (this.#postcopy?.recovers !== true) {
      this.#sink.start(this.#guest);
      await this.#sink.flush();
    }
    this.#throwIfStopped();
    this.#downtime = await this.#snapshot?.take();
    this.#setupMs = this.#clock.now() - this.#startedAt;
    this.#trace.migration_thread_setup_complete?.();
  }

  #hintsOf(log: DirtyLog | undefined): FreePageHints | undefined {
    const { hints: source, blocks } = this.#guest;
    // A postcopy destination would wait for a page that was left out (FH-16); a background snapshot has no syncs, and no log.
    if (source === undefined || log === undefined || this.#postcopy !== undefined) {
      return undefined;
    }
    this.#hold.takeHints();
    const { hintWaitMs, maxBandwidth } = this.#parameters;
    return new FreePageHints({
      source,
      send: this.#send,
      blocks,
      forgotten: (block, firstPage, pageCount) => this.#sink.forget?.(block, firstPage, pageCount),
      wait: new HintWait(hintWaitMs, maxBandwidth, this.#send.totalPages, this.#clock.now()),
      trace: this.#trace,
    });
  }

  async #iterate(): Promise<void> {
    while (this.#postcopy?.isOrdered !== true && !this.#converged()) {
      await this.#sendFor(ITERATION_MS, false);
      await this.#waitForHints();
      await this.#clock.yield();
      this.#throwIfStopped();
      if (
        this.#parameters.autoConverge &&
        this.#snapshot === undefined &&
        this.#clock.now() - this.#lastSyncAt >= THROTTLE_SYNC_MS
      ) {
        this.#sync(false);
      }
    }
  }

  /** While the rest is held back and nothing is under way either, time is no transfer time. */
  async #waitForHints(): Promise<void> {
    if (this.#hints?.holding === true) {
      const isIdle = this.#sink.transferred === this.#sink.queued;
      const before = this.#clock.now();
      await this.#sleep(HINT_WAIT_MS);
      this.#window.exclude(isIdle ? this.#clock.now() - before : 0);
    }
  }

  /** Whether what is left fits the downtime limit. Syncs before it says yes, and only then (PL-10, PL-11). */
  #converged(): boolean {
    if (this.#snapshot !== undefined) {
      return this.#send.remaining === 0;
    }
    const estimate = this.#send.remainingBytes;
    this.#trace.migrate_pending_estimate?.(estimate, estimate, 0);
    // A guest that does not run has no downtime to save: all of it is sent before the switchover.
    if (estimate > 0 && (estimate >= this.#window.threshold || !this.#guest.isRunning())) {
      return false;
    }
    this.#sync(false);
    const exact = this.#send.remainingBytes;
    this.#trace.migrate_pending_exact?.(exact, exact, 0);
    if (exact > 0 && exact >= this.#window.residualThreshold) {
      return false;
    }
    this.#trace.migration_thread_low_pending?.(exact);
    return true;
  }

  /**
   * Sends dirty pages until none is left, `milliseconds` have passed or the rate budget is spent; with `last` until
   * none is left.
   */
  async #sendFor(milliseconds: number, last: boolean): Promise<void> {
    this.#throwIfStopped();
    const { batch } = this.#send;
    const startedAt = this.#clock.now();
    const queuedAtStart = this.#sink.queued;
    let queued = queuedAtStart;
    let batches = 0;
    this.#sink.beginIteration(last);
    // Close to the end of the budget batches get smaller: a whole one would overshoot a low limit by half.
    const room = (): number =>
      last ? Number.POSITIVE_INFINITY : Math.max(1, Math.floor(this.#rateLimit.left / NORMAL_RECORD_BYTES));
    const limit = (extent: Extent): number => Math.min(this.#sink.batchLimit(extent), room());
    const isLimited = (): boolean => this.#rateLimit.exceededFor(this.#clock.now()) > 0;
    const next = (): boolean =>
      this.#snapshot?.next(this.#send, limit) ??
      this.#postcopy?.next(this.#send, limit, isLimited()) ??
      this.#hints?.next(limit, this.#clock.now()) ??
      this.#send.next(limit);
    while (next()) {
      const zeroPages = this.transferBatch(this.#send, this.#sink);
      this.#counters.normalPages += batch.count - zeroPages;
      this.#counters.zeroPages += zeroPages;
      batches += 1;
      if (this.#snapshot !== undefined) {
        await this.#sink.flush();
        this.#snapshot.release(batch);
      }
      if (!this.#sink.ready) {
        await this.#sink.whenReady();
      }
      this.#throwIfStopped();
      const now = this.#clock.now();
      this.#updateWindow(now);
      if (last) {
        continue;
      }
      this.#rateLimit.spent(this.#postcopy?.wasUrgent === true ? 0 : this.#sink.queued - queued);
      queued = this.#sink.queued;
      if (this.#rateLimit.exceededFor(now) > 0) {
        break;
      }
      if (now - startedAt > milliseconds) {
        this.#trace.ram_save_iterate_big_wait?.(now - startedAt, batches);
        break;
      }
    }
    this.#sink.endIteration();
    const phase = this.#postcopy?.hasBegun === true ? 'postcopyBytes' : last ? 'downtimeBytes' : 'precopyBytes';
    this.#counters[phase] += this.#sink.queued - queuedAtStart;
    if (!last) {
      await this.#limitRate();
    }
  }

  /**
   * The order that nothing may change: clear the log, take the page out of the bitmap, read it (CB-1, G-4).
   * Returns how many pages were zero.
   */
  protected transferBatch(send: SendBitmap, sink: PageSink): number {
    send.payDebts();
    send.take();
    return sink.writePages(send.batch);
  }

  async #limitRate(): Promise<void> {
    const wait = this.#rateLimit.exceededFor(this.#clock.now());
    if (wait > 0) {
      this.#trace.migration_rate_limit_pre?.(wait);
      await this.#sleep(wait);
      this.#trace.migration_rate_limit_post?.(0);
    }
    this.#updateWindow(this.#clock.now());
  }

  /** Takes hints meanwhile; ends early for a page request (PC-18). */
  async #sleep(milliseconds: number): Promise<void> {
    const until = this.#clock.now() + milliseconds;
    const longest = this.#hints === undefined ? milliseconds : HINT_POLL_MS;
    for (let left = milliseconds; left > 0 && this.#postcopy?.isAsked !== true; ) {
      const piece = Math.min(left, longest);
      if (await this.#pause.sleep(piece)) {
        return;
      }
      this.#hints?.take(this.#clock.now());
      left = Math.min(left - piece, until - this.#clock.now());
    }
  }

  #sync(last: boolean): void {
    const before = this.#clock.now();
    this.#trace.migration_bitmap_sync_start?.();
    this.#checkGeometry();
    if (last) {
      // The guest stands still: from here on a resize would come too late to fail the migration.
      this.#claimed.claim.seal(this.#blockName);
    }
    this.#hints?.stop();
    const added = this.#send.sync(last);
    if (last || !this.#guest.isRunning()) {
      this.#hints?.done();
    } else {
      this.#hints?.request();
    }
    const now = this.#clock.now();
    this.#lastSyncAt = now;
    this.#counters.syncCount += 1;
    this.#counters.periodDirtyPages += added;
    this.#counters.bytesDirtyAtLastSync = this.#send.remainingBytes;
    this.#window.exclude(now - before);
    this.#trace.migration_bitmap_sync_end?.(this.#counters.periodDirtyPages);
    this.#endPass(now, added, true);
    this.#endPeriod(now);
    this.#options.onPass?.(this.#counters.syncCount);
  }

  /** Closes the record of the pass that ends now; one in which nothing was sent is none. */
  #endPass(now: number, dirtiedPages: number, guestRunning: boolean): void {
    const { normalPages, zeroPages } = this.#counters;
    const { calls, pages } = this.#send.logClears;
    const bytes = this.#sink.queued;
    const from = this.#passStart;
    if (normalPages + zeroPages > from.normalPages + from.zeroPages) {
      this.#iterations.push({
        iteration: this.#iterations.length + 1,
        guestRunning,
        startMs: Math.round(from.at - this.#startedAt),
        durationMs: Math.round(now - from.at),
        normalPages: normalPages - from.normalPages,
        zeroPages: zeroPages - from.zeroPages,
        bytes: bytes - from.bytes,
        dirtiedPages,
        logClears: { calls: calls - from.calls, pages: pages - from.pages },
      });
    }
    this.#passStart = { at: now, normalPages, zeroPages, bytes, calls, pages };
  }

  #endPeriod(now: number): void {
    const elapsed = now - this.#period.at;
    if (elapsed < PERIOD_MS) {
      return;
    }
    const dirtied = this.#counters.periodDirtyPages;
    const transferred = this.#sink.transferred - this.#period.transferred;
    this.#counters.dirtyPagesRate = Math.round((dirtied * 1000) / elapsed);
    this.#counters.periodDirtyPages = 0;
    this.#period = { at: now, transferred: this.#sink.transferred };
    if (
      this.#parameters.autoConverge &&
      this.#guest.throttle !== undefined &&
      this.#throttle.judge(dirtied * GUEST_PAGE_SIZE, transferred, this.#parameters)
    ) {
      this.#trace.migration_throttle?.();
      this.#trace.cpu_throttle_set?.(this.#throttle.percentage);
      this.#hold.throttle(this.#throttle.percentage);
    }
  }

  #updateWindow(now: number): void {
    const figures = this.#window.update(
      now,
      this.#sink.transferred,
      this.#counters.pages,
      {
        downtimeLimit: this.#parameters.downtimeLimit,
        availSwitchoverBandwidth: this.#parameters.availSwitchoverBandwidth,
        fixedMs: this.#guest.log?.syncCostMs() ?? 0,
      },
      this.#counters.dirtyPagesRate > 0 ? this.#counters.bytesDirtyAtLastSync : 0,
    );
    if (figures === undefined) {
      return;
    }
    this.#trace.migrate_transferred?.(
      figures.transferred,
      figures.spentMs,
      figures.bandwidth,
      figures.expectedBandwidth,
      this.#window.threshold,
    );
    this.#options.onProgress?.(this.report());
  }

  /** The switchover. The downtime clock runs from the order to stop until the destination confirmed. */
  async #complete(): Promise<void> {
    if (this.#snapshot !== undefined) {
      this.#send.checkEmpty();
      this.#claimed.claim.seal(this.#blockName);
      this.#endPass(this.#clock.now(), 0, true);
      this.#snapshot.end();
      this.#sink.writeDevices(this.#snapshot.devices);
      await this.#sink.flush();
      await this.#sink.finish();
      return;
    }
    const marks = [this.#clock.now()];
    const mark = (checkpoint: string): void => {
      marks.push(this.#clock.now());
      this.#trace.vmstate_downtime_checkpoint?.(checkpoint);
    };
    this.#trace.vmstate_downtime_checkpoint?.('src-downtime-start');
    await this.#hold.stop();
    mark('src-vm-stopped');
    // Exactly one sync with the guest stopped; after it no layer gains bits (G-7, PL-34).
    this.#sync(true);
    mark('src-last-sync');
    await this.#sendFor(Number.POSITIVE_INFINITY, true);
    this.#send.checkEmpty();
    await this.#sink.flush();
    this.#endPass(this.#clock.now(), 0, false);
    mark('src-iterable-saved');
    const devices = this.#guest.saveDevices();
    if (this.#sink.movesGuest === true) {
      this.#hold.offer();
    }
    this.#sink.writeDevices(devices);
    await this.#sink.flush();
    mark('src-non-iterable-saved');
    await this.#sink.finish();
    mark('src-downtime-end');
    const part = (index: number): number =>
      Math.round(((marks[index + 1] as number) - (marks[index] as number)) * 100) / 100;
    this.#downtime = { stopMs: part(0), syncMs: part(1), ramMs: part(2), deviceMs: part(3), ackMs: part(4) };
  }

  async #completeByPostcopy(postcopy: Postcopy): Promise<void> {
    await postcopy.run({
      send: this.#send,
      cancelled: this.#ending.signal,
      stopGuest: () => this.#hold.stop(),
      syncLast: () => this.#sync(true),
      sendFor: () => this.#sendFor(ITERATION_MS, false),
      enter: (status) => this.#ending.enter(status),
      giveGuestAway: () => {
        this.#throwIfStopped();
        this.#hold.giveAway(true);
      },
      isConfirmed: () => this.#ending.isConfirmed,
      switched: (downtime) => {
        this.#downtime = downtime;
        this.#limitBandwidth();
      },
      paused: (error) => this.#ending.pausedBy(error),
      throwIfStopped: () => this.#throwIfStopped(),
    });
  }

  /** Never throws; what could not be undone is said in the report. */
  async #cleanUp(): Promise<void> {
    this.#trace.migration_cleanup?.();
    // Whoever took the claim from outside has undone what was done to the guest, and another migration may have it by now.
    const failures = this.#claimed.claim.isHeld ? await this.#hold.undo(() => this.#send?.release()) : [];
    this.#totalMs = this.#clock.now() - this.#startedAt;
    for (const { what, error } of failures) {
      this.warn(`The guest was not left as it was. ${what}: ${error.message}`);
    }
    if (this.#ending.wasTooLate) {
      this.warn(
        'The migration was given up when the destination had everything, and then the destination confirmed it.',
      );
    }
  }

  /** The figures at this moment. */
  report(): MigrationReport {
    const completed = this.state.value === 'completed';
    const totalMs = this.#totalMs ?? this.#clock.now() - this.#startedAt;
    const wholeRunMbps = (this.#sink.transferred * 8) / Math.max(1, totalMs - this.#setupMs) / 1000;
    const downtime = this.#downtime;
    const { error } = this.#ending;
    return {
      status: this.state.value,
      'total-time': Math.round(totalMs),
      'setup-time': Math.round(this.#setupMs),
      ...(downtime === undefined
        ? { 'expected-downtime': this.#window?.expectedDowntime ?? this.#parameters.downtimeLimit }
        : {
            downtime: Math.ceil(
              downtime.stopMs + downtime.syncMs + downtime.ramMs + downtime.deviceMs + downtime.ackMs,
            ),
          }),
      ram: this.#counters.ram(
        this.#sink.transferred,
        this.#send?.remaining ?? 0,
        this.#send?.totalPages ?? 0,
        completed ? wholeRunMbps : (this.#window?.mbps ?? 0),
        this.#window?.pagesPerSecond ?? 0,
        this.#postcopy?.requestCount ?? 0,
      ),
      ...(this.#throttle.percentage > 0 && !this.state.ended
        ? { 'cpu-throttle-percentage': this.#throttle.percentage }
        : {}),
      ...(error === undefined ? {} : { 'error-desc': error.message }),
      ramferry: {
        parameters: effectiveParameters(this.#parameters, this.#shift),
        iterations: [...this.#iterations],
        ...(downtime === undefined ? {} : { downtimeBreakdown: downtime }),
        logClears: { ...(this.#send?.logClears ?? { calls: 0, pages: 0 }) },
        hints: this.#hints?.statistics ?? { pages: 0, honoured: 0, stale: 0 },
        discardedPages: this.#discardedPages,
        ...(this.#postcopy?.hasBegun === true && { postcopy: this.#postcopy.report() }),
        warnings: [...this.#warnings, ...(this.#hints?.warnings ?? [])],
      },
    };
  }
}
