// Postcopy between two processes of ours, over a real socket, with guests that write as fast as they can: the guest runs in
// the second process before its memory is there. The oracle is the demo's: original and migrated guest take the same number of
// further steps, and then both memories are equal to the byte.

import assert from 'node:assert/strict';
import { type ChildProcess, fork } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { listen } from '../src/channel/listen-node.js';
import type { FromDemoDestination, ToDemoDestination } from '../src/cli/demo/destination.js';
import { judge } from '../src/cli/demo/judgement.js';
import { userfaultfdProblem } from '../src/dirty-log/userfaultfd-node.js';
import {
  type MissingPagesKind,
  WorkloadGuest,
  type WorkloadOptions,
} from '../src/guest/workload/workload-guest-node.js';
import { canReleaseMemory } from '../src/memory/release-memory-node.js';
import { receiveWorkload } from '../src/migration/incoming-workload.js';
import { Migration, type MigrationOptions } from '../src/migration/migration.js';
import { residentPages } from './residency.js';

const MIB = 2 ** 20;
const STEPS_AFTER = 2000;

const folder = mkdtempSync(join(tmpdir(), 'ramferry-test-'));
after(() => rmSync(folder, { recursive: true, force: true }));
let sockets = 0;
const socketUri = (): string => `unix:${join(folder, `${(sockets += 1)}.sock`)}`;

type Message<Type> = Extract<FromDemoDestination, { type: Type }>;

/** The second process. */
class Destination {
  readonly #child: ChildProcess;
  readonly #seen: FromDemoDestination[] = [];
  #wake = (): void => {};

  constructor(request: Omit<Extract<ToDemoDestination, { type: 'prepare' }>, 'type' | 'memoryLimit' | 'steps'>) {
    this.#child = fork(new URL('../src/cli/demo/destination.js', import.meta.url));
    this.#child.on('message', (message: FromDemoDestination) => {
      this.#seen.push(message);
      this.#wake();
    });
    this.post({ type: 'prepare', memoryLimit: 2 ** 30, steps: STEPS_AFTER, ...request });
  }

  post(message: ToDemoDestination): void {
    this.#child.send(message);
  }

  async next<Type extends FromDemoDestination['type']>(type: Type): Promise<Message<Type>> {
    for (;;) {
      const found = this.#seen.find((message) => message.type === type);
      const failed = this.#seen.find((message) => message.type === 'failed');
      if (found !== undefined) {
        return found as Message<Type>;
      }
      assert.equal(failed, undefined);
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
  }

  end(): void {
    this.#child.kill();
  }
}

const migrate = async (
  missingPages: MissingPagesKind,
  options: Partial<WorkloadOptions>,
  course: (migration: Migration, destination: Destination, uri: string) => Promise<void>,
  migrationOptions: Partial<MigrationOptions> = {},
) => {
  const guest = WorkloadGuest.create({ memoryBytes: 24 * MIB, workingSetBytes: 16 * MIB, ...options });
  const uri = socketUri();
  const destination = new Destination({ uri, writers: 2, barrier: 'unconditional', postcopy: missingPages });
  try {
    await guest.start();
    await destination.next('listening');
    const migration = new Migration({
      guest: { kind: 'workload', shared: guest.share() },
      blocks: guest.blocks,
      uri,
      postcopy: { prefetchPages: 8 },
      ...migrationOptions,
    });
    await course(migration, destination, uri);
    const { report, error } = await migration.ended;
    assert.equal(error, undefined);
    assert.equal(report.status, 'completed');
    guest.limitSteps(STEPS_AFTER);
    guest.takeBack();
    await guest.resume();
    destination.post({ type: 'judge' });
    const [here, there] = await Promise.all([judge(guest), destination.next('judged')]);
    assert.deepEqual({ ...there.judgement, pagesChecked: 0 }, { ...here, pagesChecked: 0 });
    assert.equal(there.judgement.bad, 0);
    return { outgoing: report, incoming: (await destination.next('complete')).report };
  } finally {
    destination.end();
    await guest.shutdown();
  }
};

const kinds: readonly { readonly kind: MissingPagesKind; readonly skip: string | false }[] = [
  { kind: 'load-barrier', skip: false },
  { kind: 'userfaultfd', skip: userfaultfdProblem('missing') ?? false },
];

for (const { kind, skip } of kinds) {
  // PC-5, PC-19: each page once, and what is read is what was written last
  test(`${kind}: a guest at full write rate switches in the middle of its precopy, and is the same there`, {
    skip,
  }, async () => {
    let isAmid!: () => void;
    const amid = new Promise<void>((resolve) => {
      isAmid = resolve;
    });
    const { outgoing, incoming } = await migrate(
      kind,
      {},
      async (migration, destination) => {
        await amid;
        migration.startPostcopy();
        await destination.next('running');
      },
      // Slow enough for the guest to need what has not come.
      {
        parameters: { maxBandwidth: 20 * MIB, maxPostcopyBandwidth: 10 * MIB },
        onProgress: ({ ram }) => ram.transferred > MIB && isAmid(),
      },
    );
    assert.equal(incoming.status, 'completed');
    const { requests, duplicates, runningMs } = incoming.ramferry.postcopy!;
    assert.equal(duplicates, 0);
    assert.ok(requests > 0);
    assert.ok(runningMs! < incoming['total-time']);
    assert.equal(outgoing.ram['postcopy-requests'], requests);
  });

  // RC-6
  test(`${kind}: a link that is taken down three times: the guest goes on with what it has, and then with everything`, {
    skip,
  }, async () => {
    const status: { value: string; changed: () => void } = { value: '', changed: () => {} };
    const reached = async (wanted: string): Promise<void> => {
      while (status.value !== wanted) {
        await new Promise<void>((resolve) => {
          status.changed = resolve;
        });
      }
    };
    const { outgoing, incoming } = await migrate(
      kind,
      // With a page allocator in guest memory, and a balloon, whose device and driver touch memory too.
      { workload: 'build', rate: 50 * MIB, freePageHints: true, garbage: true },
      async (migration, _destination, uri) => {
        migration.startPostcopy();
        for (let pauses = 0; pauses < 3; pauses += 1) {
          await reached('postcopy-active');
          await delay(100);
          migration.pausePostcopy();
          await reached('postcopy-paused');
          migration.recoverPostcopy(uri);
        }
      },
      {
        parameters: { maxPostcopyBandwidth: 20 * MIB },
        onStatus: (value) => {
          status.value = value;
          status.changed();
        },
      },
    );
    assert.equal(outgoing.ramferry.postcopy!.recoveries, 3);
    assert.equal(incoming.ramferry.postcopy!.recoveries, 3);
    assert.equal(incoming.ramferry.postcopy!.duplicates, 0);
  });

  test(`${kind}: given up, threads that wait for pages end, and the guest with them`, { skip }, async () => {
    const guest = WorkloadGuest.create({ memoryBytes: 8 * MIB });
    await guest.start();
    const listener = await listen(socketUri());
    const migration = new Migration({
      guest: { kind: 'workload', shared: guest.share() },
      uri: listener.uri,
      postcopy: { prefetchPages: 0, isLazy: true, atOnce: true },
    });
    const givingUp = new AbortController();
    const { guest: arrived, ended } = await receiveWorkload({
      listener,
      writers: 2,
      barrier: kind === 'userfaultfd' ? 'none' : 'unconditional',
      memoryLimit: 2 ** 30,
      postcopy: kind,
      signal: givingUp.signal,
    });
    migration.pausePostcopy();
    givingUp.abort();
    await assert.rejects(ended, { code: 'CANCELLED' });
    await arrived.shutdown();
    migration.abandonPostcopy();
    assert.equal((await migration.ended).report.status, 'failed');
    await guest.shutdown();
  });
}

// PC-16, RC-8
test("release-ram: the memory of the source is the system's again, and the guest has all of it", {
  skip: !canReleaseMemory(),
}, async () => {
  const guest = WorkloadGuest.create({ memoryBytes: 48 * MIB, workingSetBytes: 32 * MIB });
  const uri = socketUri();
  const destination = new Destination({ uri, writers: 2, barrier: 'unconditional', postcopy: 'load-barrier' });
  const [ram] = guest.blocks.blocks.filter(({ name }) => name === 'pc.ram');
  try {
    await guest.start();
    await destination.next('listening');
    const before = residentPages(ram!)!;
    const migration = new Migration({
      guest: { kind: 'workload', shared: guest.share() },
      blocks: guest.blocks,
      uri,
      postcopy: { prefetchPages: 8, releaseRam: true },
      parameters: { maxBandwidth: 40 * MIB },
      onProgress: ({ ram: { transferred } }) => transferred > 4 * MIB && migration.startPostcopy(),
    });
    assert.throws(() => migration.recoverPostcopy(uri), { code: 'RELEASE_RAM' });
    const { report, error } = await migration.ended;
    assert.equal(error, undefined);
    assert.ok(report.ram['postcopy-bytes'] > 0);
    destination.post({ type: 'judge' });
    assert.equal((await destination.next('judged')).judgement.bad, 0);
    const after = residentPages(ram!)!;
    assert.ok(before > (24 * MIB) / 4096 && after < before / 20, `${before} pages before, ${after} after`);
  } finally {
    destination.end();
    await guest.shutdown();
  }
});
