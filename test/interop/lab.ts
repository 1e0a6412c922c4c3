// The lab: real QEMU with a Linux guest that checks its own memory (test/guest-kit), started, watched, migrated and
// always cleaned up. Everything runs under TCG, so it needs no KVM (spec/qemu-lab.md A).

import { closeSync, mkdtempSync, openSync, readSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import type { FoundQemu } from '../../src/qemu/find-qemu.js';
import { QemuProcess } from '../../src/qemu/qemu-process.js';
import type { QmpClient } from '../../src/qemu/qmp-client.js';
import type { MigrationInfo, MigrationStatus } from '../../src/qemu/qmp-commands.js';
import { openToolbox, type Toolbox } from '../toolbox/toolbox.js';
import { CURRENT_RELEASES, MissingReleaseError, type QemuRelease, qemuOf } from './releases.js';
import { isContinuousIntegration, runWithQemus } from './run-with-qemus.js';

export type { QemuRelease };

export interface GuestOptions {
  /** The lab's own unless said otherwise. */
  readonly release?: QemuRelease;
  /** Path of another QEMU of that release, for a machine of another architecture. */
  readonly program?: string;
  /** Machine type; `pc` is the release's newest i440fx. */
  readonly machine?: string;
  /** Guest memory in MiB, 0 for a machine that has what it has. */
  readonly memory?: number;
  /** `wl=` of test/guest-kit: `idle`, `churn:MB:MBPS`, … Without one there is no Linux: the machine stays as `-S` leaves it. */
  readonly workload?: string;
  readonly heartbeatMs?: number;
  /** More for the kernel command line, e.g. `online=1` of test/guest-kit. */
  readonly kernelArguments?: string;
  /** `defer`, or a URI to load from at once. */
  readonly incoming?: string;
  /** Guest RAM (pc.ram) becomes this file, shared: its bytes are the RAM block's, at every moment. */
  readonly ramFile?: string;
  /** Do not let it run before `resume`; a machine without a workload never runs. */
  readonly stopped?: boolean;
  readonly extraArguments?: readonly string[];
}

export interface MigrateOptions {
  readonly capabilities?: Readonly<Record<string, boolean>>;
  readonly parameters?: Readonly<Record<string, unknown>>;
}

const POLL_MS = 10;
/** For one step of a guest; a boot takes 2-3 s on an idle machine, and a test machine is seldom idle. */
const STEP_TIMEOUT_MS = 60_000;

/** What `RAMFERRY_SLOW` asks for, 200 cuts of a link say, takes its time. */
const TEST_TIMEOUT_MS = process.env['RAMFERRY_SLOW'] === '1' ? 1_800_000 : 300_000;

/** QEMU's default of 128 MiB/s holds for files too (spec/qemu-lab.md B); far above what any local target takes. */
const UNLIMITED_BANDWIDTH = 100 * 2 ** 30;

const ENDED: readonly MigrationStatus[] = ['completed', 'failed', 'cancelled'];

/** Polls until `probe` gives something; `describe` says what was missing when it never did. */
export const poll = async <Value>(
  probe: () => Value | undefined | Promise<Value | undefined>,
  describe: () => string,
  timeoutMs: number = STEP_TIMEOUT_MS,
): Promise<Value> => {
  const deadline = performance.now() + timeoutMs;
  for (;;) {
    const value = await probe();
    if (value !== undefined) {
      return value;
    }
    if (performance.now() > deadline) {
      throw new Error(`after ${timeoutMs} ms: ${describe()}`);
    }
    await delay(POLL_MS);
  }
};

/** What the guest printed on its serial console, read as it grows. */
class SerialLog {
  readonly #file: string;
  #text = '';
  #offset = 0;

  constructor(file: string) {
    this.#file = file;
  }

  text(): string {
    const buffer = Buffer.alloc(64 * 1024);
    const descriptor = openSync(this.#file, 'r');
    try {
      for (let count: number; (count = readSync(descriptor, buffer, 0, buffer.length, this.#offset)) > 0; ) {
        this.#offset += count;
        this.#text += buffer.toString('latin1', 0, count);
      }
    } finally {
      closeSync(descriptor);
    }
    return this.#text;
  }
}

/** What a guest-kit guest says of itself, in whatever QEMU it runs. */
export class GuestConsole {
  readonly #log: SerialLog;
  readonly #workload: string;
  /** Pages that the workload's verifier walks. */
  readonly #churnPages: number;

  constructor(file: string, workload: string) {
    this.#log = new SerialLog(file);
    this.#workload = workload;
    this.#churnPages = Number(/(?:churn|delta):(\d+)/.exec(workload)?.[1] ?? 0) * 256;
  }

  get hasWorkload(): boolean {
    return this.#workload !== '';
  }

  /** Whether a verifier walks over memory of this guest. */
  get hasVerifier(): boolean {
    return this.#churnPages > 0;
  }

  serial(): string {
    return this.#log.text();
  }

  /** How often the guest's verifier found a page lost, stale, torn or misplaced, here and before it came here. */
  bad(): number {
    const text = this.serial();
    const counted = [...text.matchAll(/bad=(\d+)/g)].map((match) => Number(match[1]));
    return Math.max(0, [...text.matchAll(/BAD (?:page|gensum)/g)].length, ...counted);
  }

  /** Different pages that the verifier found so, here. */
  badPages(): number {
    return new Set([...this.serial().matchAll(/BAD page (\d+) /g)].map((match) => match[1])).size;
  }

  /** Pages that the guest's verifier has checked since its start, wherever that was. */
  checked(): number {
    return Number([...this.serial().matchAll(/checked=(\d+)/g)].at(-1)?.[1] ?? 0);
  }

  /** Number of the last heartbeat, -1 before the first. */
  heartbeat(): number {
    return Number([...this.serial().matchAll(/^HB (\d+) \d+\r?$/gm)].at(-1)?.[1] ?? -1);
  }

  /** Resolves with `bad()` once the verifier has walked over all of its memory, from now on. */
  async verifyAll(): Promise<number> {
    if (!this.hasVerifier) {
      throw new Error(`the workload '${this.#workload}' verifies nothing`);
    }
    const start =
      (await poll(
        () => this.checked() || undefined,
        () => 'the verifier says nothing',
      )) + this.#churnPages;
    // Slow is not wrong: on a busy machine it may take minutes, as long as it goes on.
    for (let at = this.checked(); at < start; ) {
      at = await poll(
        () => (this.checked() > at ? this.checked() : undefined),
        () => `the verifier stands at ${at} of ${start} pages; ${JSON.stringify(this.serial().slice(-300))}`,
      );
    }
    return this.bad();
  }
}

/** A running QEMU with a guest-kit guest (or an empty machine). */
export class LabGuest extends GuestConsole {
  readonly qemu: QemuProcess;
  readonly release: QemuRelease;

  constructor(qemu: QemuProcess, release: QemuRelease, serialFile: string, workload: string) {
    super(serialFile, workload);
    this.qemu = qemu;
    this.release = release;
  }

  get qmp(): QmpClient {
    return this.qemu.qmp;
  }

  /** Resolves with the match once the console shows it. */
  async waitSerial(pattern: RegExp, timeoutMs?: number): Promise<RegExpExecArray> {
    return poll(
      () => {
        const match = pattern.exec(this.serial());
        if (match === null && !this.qemu.isRunning) {
          throw this.qemu.exitError();
        }
        return match ?? undefined;
      },
      () => `the console never showed ${pattern}; it ends with ${JSON.stringify(this.serial().slice(-400))}`,
      timeoutMs,
    );
  }

  /** Resolves when the workload has filled its memory and verifies it. */
  async waitReady(): Promise<void> {
    await this.waitSerial(this.hasVerifier ? /^CK t=/m : /WL started/);
  }

  async stop(): Promise<void> {
    await this.qmp.execute('stop');
  }

  async resume(): Promise<void> {
    await this.qmp.execute('cont');
  }

  /** What `query-status` says; a QEMU that has just said that its migration is over gets out of `finish-migrate` first. */
  async status(): Promise<string> {
    for (let tries = 0; ; tries += 1) {
      const { status } = await this.qmp.execute('query-status');
      if (status !== 'finish-migrate' || tries === 100) {
        return status;
      }
      await delay(20);
    }
  }

  /** Starts a migration out of this QEMU; events are on, bandwidth is unlimited unless said otherwise. */
  async migrate(uri: string, options: MigrateOptions = {}): Promise<void> {
    await this.#configure({ ...options, parameters: { 'max-bandwidth': UNLIMITED_BANDWIDTH, ...options.parameters } });
    await this.qmp.execute('migrate', { uri });
  }

  /** Starts listening or loading, for a guest started with `incoming: 'defer'`. */
  async migrateIncoming(uri: string, options: MigrateOptions = {}): Promise<void> {
    await this.#configure(options);
    await this.qmp.execute('migrate-incoming', { uri });
  }

  /** Resolves with `query-migrate` once its status is one of `wanted`; throws if it ended otherwise or QEMU is gone. */
  async waitMigration(wanted: readonly MigrationStatus[] = ['completed'], timeoutMs?: number): Promise<MigrationInfo> {
    return poll(
      async () => {
        const info = await this.qmp.execute('query-migrate').catch((error) => {
          throw this.qemu.isRunning ? error : this.qemu.exitError();
        });
        if (info.status !== undefined && wanted.includes(info.status)) {
          return info;
        }
        if (info.status !== undefined && ENDED.includes(info.status)) {
          throw new Error(
            `the migration ended as '${info.status}': ${info['error-desc'] ?? ''} ${this.qemu.errorOutput}`,
          );
        }
        return undefined;
      },
      () => `the migration is not ${wanted.join(' or ')}`,
      timeoutMs,
    );
  }

  /** Writes the guest's stream into a file and resolves when the file is complete. */
  async saveStream(file: string, options: MigrateOptions = {}): Promise<MigrationInfo> {
    if (this.release !== '7.2') {
      await this.migrate(`file:${file}`, options);
      return this.waitMigration();
    }
    // 7.2 has no file: target. `completed` may come before cat has written its last byte; the rename comes after it.
    const done = `${file}.done`;
    await this.migrate(`exec:cat > '${file}' && touch '${done}'`, options);
    const info = await this.waitMigration();
    await this.#waitFile(done);
    rmSync(done);
    return info;
  }

  /** Loads a stream file, for a guest started with `incoming: 'defer'`; whether it runs then is in the file. */
  async loadStream(file: string, options: MigrateOptions = {}): Promise<void> {
    await this.migrateIncoming(this.release === '7.2' ? `exec:cat '${file}'` : `file:${file}`, options);
    await this.waitMigration();
  }

  /** Listens on a free TCP port, for a guest started with `incoming: 'defer'`; resolves with the URI to connect to. */
  async listenTcp(options: MigrateOptions = {}): Promise<string> {
    await this.migrateIncoming('tcp:127.0.0.1:0', options);
    const info = await this.qmp.execute('query-migrate');
    return `tcp:127.0.0.1:${info['socket-address']![0]!.port}`;
  }

  /** Guest-physical memory from address 0 as the guest sees it: not the RAM block where ROM or nothing is mapped over it. */
  async pmemsave(file: string, bytes: number): Promise<void> {
    await this.qmp.execute('pmemsave', { val: 0, size: bytes, filename: file });
  }

  async #waitFile(file: string): Promise<void> {
    await poll(
      () => {
        try {
          closeSync(openSync(file, 'r'));
          return true;
        } catch {
          return undefined;
        }
      },
      () => `${file} did not appear`,
    );
  }

  async #configure({ capabilities, parameters }: MigrateOptions): Promise<void> {
    const states = Object.entries({ events: true, ...capabilities }).map(([capability, state]) => ({
      capability,
      state,
    }));
    await this.qmp.execute('migrate-set-capabilities', { capabilities: states });
    if (parameters !== undefined) {
      await this.qmp.execute('migrate-set-parameters', parameters);
    }
  }
}

const labs = new Set<Lab>();

/** Guests and files of one test: `close` ends and removes all of them, also under a test that still uses them. */
export class Lab {
  readonly folder = mkdtempSync(join(tmpdir(), 'ramferry-lab-'));
  readonly toolbox: Toolbox;
  /** Release of the guests that do not ask for another one. */
  readonly release: QemuRelease;
  readonly #guests: LabGuest[] = [];
  #serials = 0;
  readonly #closers: (() => void | Promise<void>)[] = [];
  #closed: Promise<void> | undefined;

  constructor(toolbox: Toolbox, release: QemuRelease = '10') {
    this.toolbox = toolbox;
    this.release = release;
    labs.add(this);
  }

  /** A path in the lab's temporary folder. */
  path(name: string): string {
    return join(this.folder, name);
  }

  /** The QEMU of a release, the lab's own unless said otherwise. */
  qemu(release: QemuRelease = this.release): Promise<FoundQemu> {
    return qemuOf(release, release === '11' ? this.toolbox.missingParts.get('qemu-backports') : undefined);
  }

  /** Path of the lab's QEMU. */
  async program(): Promise<string> {
    return (await this.qemu()).program;
  }

  /** The command line of a guest, without a monitor. */
  async command(options: GuestOptions, serialFile: string): Promise<string[]> {
    const { machine = 'pc', memory = 256, workload = '', heartbeatMs = 0, incoming, ramFile } = options;
    const backend = `memory-backend-file,id=pc.ram,size=${memory}M,mem-path=${ramFile},share=on`;
    const kernelArguments = `console=ttyS0 quiet panic=-1 tsc=unstable wl=${workload} hb=${heartbeatMs} ${options.kernelArguments ?? ''}`;
    return [
      options.program ?? (await this.qemu(options.release)).program,
      ...['-accel', 'tcg', '-nodefaults', '-no-user-config', '-display', 'none'],
      ...(memory === 0 ? [] : ['-m', `${memory}M`]),
      ...['-machine', ramFile === undefined ? machine : `${machine},memory-backend=pc.ram`],
      ...(ramFile === undefined ? [] : ['-object', backend]),
      ...(workload === ''
        ? ['-S']
        : ['-kernel', this.toolbox.kernel, '-initrd', this.toolbox.initramfs, '-append', kernelArguments]),
      ...(options.stopped === true && workload !== '' ? ['-S'] : []),
      ...['-chardev', `file,id=serial0,path=${serialFile}`, '-serial', 'chardev:serial0'],
      ...(incoming === undefined ? [] : ['-incoming', incoming]),
      ...(options.extraArguments ?? []),
    ];
  }

  async startGuest(options: GuestOptions = {}): Promise<LabGuest> {
    const serialFile = this.path(`serial-${this.#serials++}`);
    const qemu = await QemuProcess.start(await this.command(options, serialFile));
    if (this.#closed !== undefined) {
      qemu.kill();
    }
    const { release = this.release, workload = '' } = options;
    const guest = new LabGuest(qemu, release, serialFile, workload);
    this.#guests.push(guest);
    return guest;
  }

  /** Runs `closer` when the lab closes, before its files go. */
  onClose(closer: () => void | Promise<void>): void {
    if (this.#closed !== undefined) {
      void closer();
    }
    this.#closers.push(closer);
  }

  /** The last words of every guest, for a failed test. */
  report(): string {
    return this.#guests
      .map((guest, index) => `guest ${index}: ${guest.serial().slice(-600)}\n${guest.qemu.errorOutput}`)
      .join('\n');
  }

  close(): Promise<void> {
    this.#closed ??= this.#end();
    return this.#closed;
  }

  /** All of it, whatever fails. */
  async #end(): Promise<void> {
    for (const { qemu } of this.#guests) {
      qemu.kill();
    }
    const results = await Promise.allSettled(this.#closers.map(async (closer) => closer()));
    await Promise.all(this.#guests.map(({ qemu }) => qemu.exited));
    this.removeFolder();
    const failed = results.find((result) => result.status === 'rejected');
    if (failed !== undefined) {
      throw failed.reason;
    }
  }

  removeFolder(): void {
    labs.delete(this);
    rmSync(this.folder, { recursive: true, force: true });
  }
}

// A test run that is interrupted ends through `exit`, where QemuProcess kills its guests.
process.once('SIGTERM', () => process.exit(143));
process.once('SIGINT', () => process.exit(130));
process.on('exit', () => {
  for (const lab of labs) {
    lab.removeFolder();
  }
});

const toolbox = openToolbox();

type InteropBody = (lab: Lab, context: TestContext) => Promise<void>;

const runInLab = async (release: QemuRelease, body: InteropBody, context: TestContext): Promise<void> => {
  if ('missing' in toolbox) {
    throw new Error(toolbox.missing);
  }
  context.signal.throwIfAborted();
  const lab = new Lab(toolbox, release);
  // A test whose time is up may wait for what never comes; nothing of it may stay for that.
  const timeIsUp = (): void => {
    context.diagnostic(lab.report());
    lab.close().catch(() => {});
  };
  context.signal.addEventListener('abort', timeIsUp);
  try {
    await body(lab, context);
  } catch (error) {
    if (!context.signal.aborted) {
      context.diagnostic(lab.report());
    }
    throw error;
  } finally {
    context.signal.removeEventListener('abort', timeIsUp);
    await lab.close();
  }
};

type RunInLab = (release: QemuRelease, body: InteropBody, context: TestContext) => Promise<void>;

const defineTests = (name: string, body: InteropBody, releases: readonly QemuRelease[], run: RunInLab): void => {
  const missing = 'missing' in toolbox ? toolbox.missing : undefined;
  const skip = missing !== undefined && !isContinuousIntegration ? missing : false;
  for (const release of releases) {
    test(`${name} (QEMU ${release})`, { skip, timeout: TEST_TIMEOUT_MS }, (context) =>
      runWithQemus(() => run(release, body, context), context),
    );
  }
};

/**
 * A test against real QEMU, once with each release: the guests of its lab are of that one. Where none can be had it is
 * skipped and says so; in continuous integration it fails.
 */
export const interopTest = (
  name: string,
  body: InteropBody,
  releases: readonly QemuRelease[] = CURRENT_RELEASES,
): void => {
  defineTests(name, body, releases, runInLab);
};

/**
 * A test in which a QEMU migrates a guest that runs. Under TCG a store can land between QEMU's clearing of a page's dirty bit
 * and its reading of the page, and is lost: on a busy machine of two processors pages were missing in 1 of 25 saves that QEMU 10
 * made by itself, `file:` with mapped-ram, against the memory of its own stopped source. Whether a guest stumbles over them is
 * chance. So such a test that fails is run once more, and what fails twice is ours.
 */
export const liveInteropTest = (
  name: string,
  body: InteropBody,
  releases: readonly QemuRelease[] = CURRENT_RELEASES,
): void => {
  defineTests(name, body, releases, async (release, run, context) => {
    try {
      await runInLab(release, run, context);
    } catch (error) {
      if (error instanceof MissingReleaseError) {
        throw error;
      }
      context.diagnostic(`once more, as TCG may have lost a store: ${error}`);
      await runInLab(release, run, context);
    }
  });
};

/** A guest that was migrated must run before it can be migrated again (spec/qemu-lab.md B). */
export const wake = async (guest: LabGuest): Promise<void> => {
  // A migration that says `completed` is finalized a moment later, and until then QEMU refuses to go on.
  await poll(
    () =>
      guest.resume().then(
        () => true,
        () => undefined,
      ),
    () => 'QEMU does not let the guest go on after its migration',
  );
  await guest.stop();
};
