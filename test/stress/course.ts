// One schedule: a guest that is migrated or saved in some way, to some peer, while its owner and everybody else do what they
// like; and what has to be true when it is over.

import assert from 'node:assert/strict';
import { existsSync, readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { ByteChannel, ChannelListener } from '../../src/channel/channel.js';
import { listen } from '../../src/channel/index.js';
import { isUnfinishedOutput } from '../../src/channel/output-file-node.js';
import { RamferryError } from '../../src/memory/index.js';
import { Migration, type MigrationOptions } from '../../src/migration/migration.js';
import { MigrationSource } from '../../src/source/migration-source.js';
import { changeParameters, defaultParameters, type MigrationParameters } from '../../src/source/parameters.js';
import { PostcopySink } from '../../src/source/postcopy-sink.js';
import { StreamSink } from '../../src/source/stream-sink.js';
import { link } from '../linked-channels.js';
import { randomChoices } from '../random.js';
import { ArrivingGuest } from './arriving-guest.js';
import { killEngines } from './engine-threads.js';
import { type BreakableChannel, type ChannelFault, faulty } from './faulty-channel.js';
import type { StressGuest } from './stress-guest.js';

const MIB = 2 ** 20;
const KIB = 2 ** 10;

/** Longer than whatever is under way may take once nothing holds it back, on a machine with much else to do. */
const END_MS = 40_000;

const ways = ['precopy', 'precopy', 'precopy', 'postcopy', 'postcopy', 'save', 'stream', 'snapshot'] as const;
type Way = (typeof ways)[number];

/** Who is at the other end: a destination, its link cut in the end, or somebody who only looks like one. */
const peers = ['good', 'good', 'good', 'good', 'cut', 'cut', 'silent', 'deaf', 'early', 'garbage'] as const;
type Peer = (typeof peers)[number];

/** The migration under way, whichever thread its engine is in. */
interface Engine {
  readonly ended: Promise<{ readonly status: string; readonly error: Error | undefined }>;
  status(): string;
  cancel(): void;
  setParameters(changes: Partial<MigrationParameters>): void;
  startPostcopy(): void;
  finishPostcopy(): void;
  pausePostcopy(): void;
  recoverPostcopy(): void;
  abandonPostcopy(): void;
}

/** What a schedule was, and how it ended. */
export interface Played {
  readonly what: string;
  readonly status: string;
  /** The guest cannot go on: it was given to somebody who was no destination, or as ordered. */
  readonly isGone: boolean;
  readonly wasCompared: boolean;
}

const shutMessage = (status: number): Uint8Array => Uint8Array.of(0, 1, 0, 4, 0, 0, 0, status);

export class Course {
  readonly #stress: StressGuest;
  readonly #choose: (limit: number) => number;
  readonly #folder: string;
  readonly #way: Way;
  readonly #peer: Peer;
  readonly #isInline: boolean;
  readonly #file: string;
  readonly #done: string[] = [];
  /** Something failed that is beyond either end: both may be right in what they believe. */
  #isBroken = false;
  #isKilled = false;
  #isAbandoned = false;
  #arriving: ArrivingGuest | undefined;
  #channels: BreakableChannel[] = [];
  #others: Promise<unknown>[] = [];
  #statuses: string[] = [];

  constructor(stress: StressGuest, seed: number, folder: string) {
    const choose = randomChoices(seed);
    this.#stress = stress;
    this.#choose = choose;
    this.#folder = folder;
    this.#file = join(folder, 'saved');
    const way = this.#oneOf(ways);
    // A postcopy would wait for what a memory device has not plugged; its destination is tested elsewhere.
    this.#way = way === 'postcopy' && stress.options.virtioMem !== undefined ? 'precopy' : way;
    this.#peer = this.#oneOf(peers);
    this.#isInline = (this.#way === 'precopy' || this.#way === 'postcopy') && choose(2) === 0;
  }

  #oneOf<Value>(values: readonly Value[]): Value {
    return values[this.#choose(values.length)]!;
  }

  get #isSaved(): boolean {
    return this.#way === 'save' || this.#way === 'stream' || this.#way === 'snapshot';
  }

  /** What happened so far. */
  get story(): string {
    const where = this.#isSaved
      ? ''
      : ` to a peer that is ${this.#peer}, engine ${this.#isInline ? 'here' : 'in a thread'}`;
    return `${this.#way}${where}: ${this.#done.join(', ')}; states ${this.#statuses.join(' ')}`;
  }

  async play(): Promise<Played> {
    const { guest } = this.#stress;
    const blocks = guest.blocks.blocks.map(({ name }) => name);
    const engine = await this.#start();
    let hasEnded = false;
    const ended = engine.ended.finally(() => {
      hasEnded = true;
    });
    ended.catch(() => {});
    const watch = setInterval(() => this.#watch(), 1);
    try {
      await this.#disturb(engine, () => hasEnded);
      const { status, error } = await this.#end(engine, ended, () => hasEnded);
      this.#done.push(
        `ended ${status}${error === undefined ? '' : ` (${(error as RamferryError).code ?? ''} ${error.message})`}`,
      );
      await Promise.allSettled(this.#others);
      return await this.#judge(status, error, blocks);
    } finally {
      clearInterval(watch);
      for (const channel of this.#channels) {
        channel.destroy();
      }
      rmSync(this.#file, { force: true });
    }
  }

  /** Both at once is wrong at any moment, also for an engine that is killed, unless a link broke in the very last message. */
  #watch(): void {
    if (!this.#isBroken && this.#arriving?.isRunning === true) {
      if (this.#stress.guest.source.isRunning()) {
        this.#twice = true;
      }
    }
  }

  #twice = false;

  // The engine and its peer.

  async #start(): Promise<Engine> {
    const parameters: MigrationParameters = changeParameters(defaultParameters, {
      maxBandwidth: this.#oneOf([0, 10, 40, 200]) * MIB,
      maxPostcopyBandwidth: this.#oneOf([0, 10]) * MIB,
      downtimeLimit: this.#oneOf([0, 5, 300]),
      clearBitmapShift: this.#oneOf([6, 18]),
      autoConverge: this.#choose(3) === 0 && this.#way !== 'snapshot',
      hintWaitMs: this.#oneOf(['auto', 'off', 5] as const),
    });
    return this.#isInline ? this.#startHere(parameters) : await this.#startThread(parameters);
  }

  #fault(): ChannelFault {
    const bytes = (): number => this.#choose(this.#choose(2) === 0 ? 3000 : 4 * MIB);
    switch (this.#peer) {
      case 'cut':
        return this.#choose(4) === 0 ? { cutAfterWritten: 1 + this.#choose(24) } : { cutAfterRead: 1 + bytes() };
      case 'deaf':
        return { deafAfter: 1 + bytes() };
      case 'early':
        return { hookAfter: { bytes: 1 + bytes(), run: (channel) => channel.write(shutMessage(0), () => {}) } };
      case 'garbage':
        return {
          hookAfter: {
            bytes: 1 + bytes(),
            run: (channel) =>
              channel.write(
                Uint8Array.from({ length: 1 + this.#choose(40) }, () => this.#choose(256)),
                () => {},
              ),
          },
        };
      default:
        return {};
    }
  }

  /** Somebody who says nothing, or nonsense, where the source is expected to come back. */
  #stranger(): string | undefined {
    if (!this.#statuses.some((status) => status.startsWith('postcopy'))) {
      return 'it is too early for him';
    }
    const { source, destination } = link();
    if (this.#choose(2) === 0) {
      source.write(
        Uint8Array.from({ length: 30 }, () => this.#choose(256)),
        () => {},
      );
    }
    this.#visit(this.#through(destination));
    return undefined;
  }

  #visit = (_channel: ByteChannel): void => {};

  /** Gives the connection to whoever is at the other end. */
  #meet(channel: ByteChannel, reconnect: () => Promise<ByteChannel>): void {
    const through = faulty(channel, this.#fault(), () => {
      this.#isBroken = true;
    });
    this.#channels.push(through);
    if (this.#peer === 'good' || this.#peer === 'cut') {
      this.#arriving = new ArrivingGuest(this.#stress, through, this.#way === 'postcopy' ? reconnect : undefined);
      this.#others.push(this.#arriving.ended);
      const arriving = this.#arriving;
      void arriving.ended.then(
        async ({ status }) => {
          if (status === 'completed' && !arriving.hasRun) {
            await arriving.run();
          }
        },
        () => {},
      );
      return;
    }
    if (this.#peer !== 'silent') {
      const sink = new Uint8Array(64 * KIB);
      through.read({
        buffer: () => sink,
        received: () => {},
        ended: () => {},
        failed: () => {},
      });
    }
  }

  /** A later connection, which has no fault by itself. */
  #through(channel: ByteChannel): ByteChannel {
    const through = faulty(channel);
    this.#channels.push(through);
    return through;
  }

  #startHere(parameters: MigrationParameters): Engine {
    const { source: guest } = this.#stress.guest;
    let waiting: ((channel: ByteChannel) => void) | undefined;
    const reconnect = (): Promise<ByteChannel> =>
      new Promise((resolve) => {
        waiting = resolve;
      });
    this.#visit = (channel) => {
      waiting?.(channel);
      waiting = undefined;
    };
    const first = link();
    const isPostcopy = this.#way === 'postcopy';
    const source = new MigrationSource({
      guest,
      sink: isPostcopy ? new PostcopySink(first.source) : new StreamSink(first.source, { returnPath: true }),
      parameters,
      ...(isPostcopy && { postcopy: { prefetchPages: 4 } }),
      onStatus: (status) => this.#statuses.push(status),
    });
    this.#meet(first.destination, reconnect);
    return {
      ended: source.run().then(({ status }) => ({ status, error: source.error })),
      status: () => source.state.value,
      cancel: () => source.cancel(),
      setParameters: (changes) => source.setParameters(changes),
      startPostcopy: () => source.startPostcopy(),
      finishPostcopy: () => source.finishPostcopy(),
      pausePostcopy: () => source.pausePostcopy(),
      recoverPostcopy: () =>
        source.recoverPostcopy(async () => {
          const next = link();
          if (waiting === undefined) {
            throw new Error('nobody listens yet');
          }
          waiting(this.#through(next.destination));
          waiting = undefined;
          return next.source;
        }),
      abandonPostcopy: () => source.fail(new RamferryError('failed', 'POSTCOPY_ABANDONED', 'Abandoned.')),
    };
  }

  async #startThread(parameters: MigrationParameters): Promise<Engine> {
    const { guest } = this.#stress;
    const isPostcopy = this.#way === 'postcopy';
    const socket = join(this.#folder, `socket`);
    let listener: ChannelListener | undefined;
    if (!this.#isSaved) {
      rmSync(socket, { force: true });
      listener = await listen(`unix:${socket}`);
    }
    let status = 'none';
    const options: MigrationOptions = {
      guest: { kind: 'workload', shared: guest.share() },
      blocks: guest.blocks,
      uri: listener?.uri ?? `file:${this.#file}`,
      parameters,
      ...(isPostcopy && { postcopy: { prefetchPages: 4 } }),
      ...(this.#way === 'stream' && { returnPath: false }),
      ...(this.#isSaved &&
        this.#way !== 'stream' && { mappedRam: this.#way === 'save' ? { channels: this.#choose(2) } : {} }),
      ...(this.#way === 'snapshot' && { backgroundSnapshot: { protector: 'store-barrier' as const } }),
      onStatus: (value) => {
        status = value;
        this.#statuses.push(value);
      },
    };
    const migration = new Migration(options);
    const ended = migration.ended.then(({ report, error }) => ({ status: report.status, error }));
    if (listener !== undefined) {
      let visit = (_channel: ByteChannel): void => {};
      this.#visit = (channel) => visit(channel);
      const { accept } = listener;
      let isFirst = true;
      let accepting: Promise<ByteChannel> | undefined;
      const next = async (): Promise<ByteChannel> => {
        const visited = new Promise<ByteChannel>((resolve) => {
          visit = resolve;
        });
        // One that comes after a visitor waits for the next turn.
        accepting ??= accept.call(listener);
        const channel = await Promise.race([visited, accepting]);
        if (channel === (await Promise.race([accepting, undefined]))) {
          accepting = undefined;
        }
        return isFirst ? channel : this.#through(channel);
      };
      void next().then(
        (channel) => {
          isFirst = false;
          this.#meet(channel, next);
        },
        () => {},
      );
      void ended.then(
        () => listener?.close(),
        () => listener?.close(),
      );
    }
    return {
      ended,
      status: () => status,
      cancel: () => migration.cancel(),
      setParameters: (changes) => migration.setParameters(changes),
      startPostcopy: () => migration.startPostcopy(),
      finishPostcopy: () => migration.finishPostcopy(),
      pausePostcopy: () => migration.pausePostcopy(),
      recoverPostcopy: () => migration.recoverPostcopy(listener!.uri),
      abandonPostcopy: () => migration.abandonPostcopy(),
    };
  }

  // What everybody does meanwhile.

  async #disturb(engine: Engine, hasEnded: () => boolean): Promise<void> {
    const acts = this.#choose(this.#choose(3) === 0 ? 9 : 4);
    for (let act = 0; act < acts; act += 1) {
      await sleep(this.#choose(this.#oneOf([3, 12, 50])));
      const [name, run] = this.#oneOf(this.#acts(engine, hasEnded));
      try {
        const said = await run();
        this.#done.push(said === undefined ? name : `${name}: ${said}`);
      } catch (error) {
        // Whatever is refused is refused by name; nothing else may come of it.
        if (!(error instanceof RamferryError)) {
          throw error;
        }
        this.#done.push(`${name}: ${error.code}`);
      }
    }
  }

  #acts(engine: Engine, hasEnded: () => boolean): readonly (readonly [string, () => unknown])[] {
    const stress = this.#stress;
    const { guest } = stress;
    const isPostcopy = this.#way === 'postcopy';
    const parameters = (): Partial<MigrationParameters> =>
      this.#oneOf<Partial<MigrationParameters>>([
        { maxBandwidth: this.#oneOf([0, 5, 40]) * MIB },
        { downtimeLimit: this.#choose(400) },
        { maxCpuThrottle: 30 },
        { cpuThrottleInitial: 99, maxCpuThrottle: 98 },
        { cpuThrottleInitial: 98 },
        { downtimeLimit: -1 },
        { maxBandwidth: Number.NaN },
        { clearBitmapShift: 1.5 },
        { maxPostcopyBandwidth: this.#oneOf([0, 3]) * MIB },
        { autoConverge: true, cpuThrottleInitial: 50 },
        { nobodyKnows: 1 } as Partial<MigrationParameters>,
      ]);
    return [
      ['pauses', () => stress.pause()],
      ['pauses', () => stress.pause()],
      ['resumes', () => stress.resume()],
      ['resumes', () => stress.resume()],
      ['cancels', () => engine.cancel()],
      ['sets parameters', () => engine.setParameters(parameters())],
      ['sets parameters', () => engine.setParameters(parameters())],
      ['starts another save', () => this.#startAnother(false)],
      ['starts another snapshot', () => this.#startAnother(true)],
      ['starts another migration', () => this.#startAnotherHere()],
      ['plugs a module', () => this.#plug()],
      ['unplugs', () => this.#unplug()],
      ['resizes', () => this.#resize()],
      ['resizes its memory device', () => this.#requestMemory()],
      ['breaks the link', () => this.#breakLinks()],
      ...(this.#isInline
        ? []
        : ([
            [
              'kills the engine',
              () => {
                this.#isKilled = killEngines() > 0 || this.#isKilled;
              },
            ],
          ] as const)),
      ...(isPostcopy
        ? ([
            ['switches', () => engine.startPostcopy()],
            ['switches', () => engine.startPostcopy()],
            ['switches', () => engine.startPostcopy()],
            ['pauses the postcopy', () => engine.pausePostcopy()],
            ['recovers', () => engine.recoverPostcopy()],
            ['a stranger connects', () => this.#stranger()],
            ['finishes', () => engine.finishPostcopy()],
          ] as const)
        : ([['orders postcopy', () => engine.startPostcopy()]] as const)),
      ['verifies', () => assert.equal(hasEnded() || guest.counters().bad, hasEnded() || 0)],
    ];
  }

  /** A second one, which is refused while the first is under way. One that begins an instant after it goes its way. */
  #startAnother(isSnapshot: boolean): string {
    const { guest } = this.#stress;
    const other = new Migration({
      guest: { kind: 'workload', shared: guest.share() },
      blocks: guest.blocks,
      uri: `file:${this.#file}-other`,
      mappedRam: {},
      ...(isSnapshot && { backgroundSnapshot: { protector: 'store-barrier' as const } }),
    });
    this.#others.push(this.#endOther(other, isSnapshot));
    return 'it begins';
  }

  async #endOther(other: Migration, isSnapshot: boolean): Promise<void> {
    try {
      const { report } = await other.ended;
      if (report.status === 'completed' && !isSnapshot) {
        // A save leaves the guest stopped, to its owner.
        this.#stress.isPausedByOwner = true;
      }
      this.#done.push(`the other one ${report.status}`);
    } catch (error) {
      this.#done.push(`the other one: ${(error as RamferryError).code}`);
      if (!this.#isKilled) {
        assert.ok(error instanceof RamferryError && error.code !== 'ENGINE_DIED', `the other engine: ${error}`);
      }
    } finally {
      rmSync(`${this.#file}-other`, { force: true });
    }
  }

  /** The same by the door of the engine itself. */
  #startAnotherHere(): void {
    const { source } = this.#stress.guest;
    const { source: nowhere, destination } = link();
    this.#through(destination);
    const other = new MigrationSource({
      guest: source,
      sink: new StreamSink(nowhere, { returnPath: true }),
      parameters: defaultParameters,
    });
    const running = other.run();
    setTimeout(() => other.cancel(), 5);
    this.#others.push(
      running.then(({ status }) => {
        this.#done.push(`the other one here ${status}`);
        assert.notEqual(status, 'completed', 'a migration to nobody is confirmed');
      }),
    );
  }

  async #plug(): Promise<string> {
    const stress = this.#stress;
    if (stress.modules >= 2) {
      return 'has enough';
    }
    const { name } = await stress.guest.plug(256 * KIB);
    stress.modules += 1;
    return name;
  }

  /** Of what the workload does not use, since its threads are not asked. */
  #unplug(): string {
    const { blocks } = this.#stress.guest;
    if (blocks.find('tables') === undefined) {
      return 'has nothing to unplug';
    }
    const spare = blocks.find('spare');
    if (spare === undefined) {
      blocks.add({ name: 'spare', usedLength: 64 * KIB });
      return 'plugs the spare';
    }
    blocks.remove(spare);
    return 'unplugs the spare';
  }

  #resize(): void {
    const { blocks } = this.#stress.guest;
    const tables = blocks.find('tables');
    if (tables !== undefined) {
      blocks.resize(tables, (1 + this.#choose(64)) * 4 * KIB);
    }
  }

  #requestMemory(): void {
    const { guest, options } = this.#stress;
    if (options.virtioMem !== undefined) {
      guest.requestVirtioMem(this.#choose(7) * MIB);
    }
  }

  #breakLinks(): void {
    for (const channel of this.#channels) {
      this.#isBroken = true;
      channel.break();
    }
  }

  // The end.

  /** Nothing holds it back any more; whoever is no destination is given up. */
  async #end(
    engine: Engine,
    ended: Engine['ended'],
    hasEnded: () => boolean,
  ): Promise<{ status: string; error: Error | undefined }> {
    const attempt = (run: () => void): void => {
      try {
        run();
      } catch (error) {
        assert.ok(error instanceof RamferryError, `${error}`);
      }
    };
    attempt(() => engine.setParameters({ maxBandwidth: 0, maxPostcopyBandwidth: 0, downtimeLimit: 300 }));
    if (this.#way === 'postcopy' && this.#choose(3) > 0) {
      attempt(() => engine.startPostcopy());
    }
    const isDestination = this.#isSaved || this.#peer === 'good' || this.#peer === 'cut';
    const started = performance.now();
    let recoveries = 0;
    for (let turn = 0; !hasEnded(); turn += 1) {
      assert.ok(performance.now() - started < END_MS, `it never ends, it is ${engine.status()}`);
      await Promise.race([ended.catch(() => {}), sleep(5)]);
      if (hasEnded()) {
        break;
      }
      const isPaused = engine.status() === 'postcopy-paused';
      if (isPaused && isDestination && recoveries < 3 && this.#arriving !== undefined) {
        recoveries += 1;
        this.#done.push('is recovered');
        attempt(() => engine.recoverPostcopy());
      } else if (isPaused) {
        this.#isAbandoned = true;
        this.#done.push('is abandoned');
        attempt(() => engine.abandonPostcopy());
      } else if (!isDestination && turn === 4) {
        this.#done.push('is given up');
        engine.cancel();
        attempt(() => engine.pausePostcopy());
      } else if (turn > 0 && turn % 1000 === 0) {
        // A destination that broke before it was one.
        this.#done.push('is given up late');
        engine.cancel();
        attempt(() => engine.pausePostcopy());
      }
    }
    try {
      return await ended;
    } catch (error) {
      assert.ok(error instanceof RamferryError, `${error}`);
      assert.ok(this.#isKilled || error.code !== 'ENGINE_DIED', `the engine died by itself: ${error.message}`);
      assert.notEqual(error.code, 'INTERNAL', error.message);
      return { status: 'refused', error };
    }
  }

  async #judge(status: string, error: Error | undefined, blocks: readonly string[]): Promise<Played> {
    const stress = this.#stress;
    const arriving = this.#arriving;
    const played = (isGone: boolean): Played => ({
      what: `${this.#way} ${this.#isSaved ? '' : this.#peer}`.trim(),
      status,
      isGone,
      wasCompared: arriving?.wasCompared === true,
    });
    assert.equal(this.#twice, false, 'two guests ran at once');
    assert.deepEqual(
      readdirSync(this.#folder).filter((name) => isUnfinishedOutput(name)),
      [],
      'a file was left unfinished',
    );
    const incoming = await arriving?.ended.catch((cause: Error) => ({ status: 'rejected', error: cause }));
    if (incoming?.error instanceof assert.AssertionError) {
      throw incoming.error;
    }
    /** Whose the guest was when its engine was killed. */
    const left = error instanceof RamferryError && error.code === 'ENGINE_DIED' ? error.value : undefined;
    const isHere = !stress.hasMoved;
    if (left !== undefined) {
      assert.equal(isHere, left === 'here' || left === 'saved', `the engine died, the guest is said to be ${left}`);
    }
    if (status === 'completed' && !this.#isSaved) {
      assert.equal(this.#peer === 'good' || this.#peer === 'cut', true, `completed at a peer that is ${this.#peer}`);
      assert.equal(incoming?.status, 'completed', `completed, and the destination is ${incoming?.status}`);
      assert.equal(isHere, false, 'completed, and the guest is here');
      assert.deepEqual(
        arriving!.guest!.blocks.blocks.map(({ name }) => name).toSorted(),
        blocks.toSorted(),
        'a block was left out',
      );
    }
    if (isHere) {
      // It belongs here; a destination that believes otherwise can do so only because nobody could tell it.
      if (arriving !== undefined) {
        assert.ok(
          !arriving.hasRun || this.#isBroken,
          `the guest is here (${status}), and runs at the destination, too`,
        );
        await arriving.discard();
      }
      if ((status === 'completed' || left === 'saved') && this.#way !== 'snapshot') {
        assert.ok(!this.#isSaved || existsSync(this.#file), 'the guest is said to be saved, and there is no file');
        stress.isPausedByOwner = true;
        await stress.resume();
      }
      await stress.assertWell(this.#choose(4) === 0);
      if (stress.isPausedByOwner) {
        await stress.resume();
      }
      return played(false);
    }
    assert.equal(stress.guest.source.isRunning(), false, 'the guest has moved, and runs here');
    await assert.rejects(stress.resume(), { code: 'GUEST_MOVED' });
    assert.deepEqual(stress.leftovers(), []);
    if (arriving?.guest === undefined || incoming?.status !== 'completed') {
      if (left === 'undecided') {
        // Its engine died when its peer had everything, or so it seemed: its owner has looked, and takes it back.
        await arriving?.discard();
        stress.guest.takeBack();
        stress.isPausedByOwner = true;
        await stress.resume();
        await stress.assertWell(true);
        return played(false);
      }
      // Switched to postcopy and then given up, by order or because its peer was none, or its engine died behind the switch.
      assert.ok(
        this.#way === 'postcopy' && (this.#isAbandoned || this.#isBroken || this.#peer !== 'good' || left === 'moved'),
        `the guest was lost (${status}, ${incoming?.status}: ${incoming?.error?.message})`,
      );
      await arriving?.discard();
      return played(true);
    }
    await stress.replaceBy(arriving.guest);
    await stress.assertWell(this.#choose(2) === 0);
    if (stress.isPausedByOwner) {
      await stress.resume();
    }
    return played(false);
  }
}
