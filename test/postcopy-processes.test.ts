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
import type { FromDemoDestination, ToDemoDestination } from '../src/cli/demo-destination.js';
import { judge } from '../src/cli/demo-judgement.js';
import { WorkloadGuest, type WorkloadOptions } from '../src/guest/workload/workload-guest-node.js';
import { Migration, type MigrationOptions } from '../src/monitor/migration.js';

const MIB = 2 ** 20;
const STEPS_AFTER = 5000;

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
    this.#child = fork(new URL('../src/cli/demo-destination.js', import.meta.url));
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
  options: Partial<WorkloadOptions>,
  course: (migration: Migration, destination: Destination, uri: string) => Promise<void>,
  migrationOptions: Partial<MigrationOptions> = {},
) => {
  const guest = WorkloadGuest.create({ memoryBytes: 64 * MIB, workingSetBytes: 48 * MIB, ...options });
  const uri = socketUri();
  const destination = new Destination({ uri, writers: 2, barrier: 'unconditional', postcopy: true });
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

// PC-5, PC-19: each page once, and what is read is what was written last
test('a guest at full write rate switches in the middle of its precopy, and is the same there', async () => {
  const { outgoing, incoming } = await migrate(
    {},
    async (migration, destination) => {
      await delay(200);
      migration.startPostcopy();
      await destination.next('running');
    },
    // Slow enough for the guest to need what has not come.
    { parameters: { maxBandwidth: 200 * MIB, maxPostcopyBandwidth: 50 * MIB } },
  );
  assert.equal(incoming.status, 'completed');
  const { requests, duplicates, runningMs } = incoming.ramferry.postcopy!;
  assert.equal(duplicates, 0);
  assert.ok(requests > 0);
  assert.ok(runningMs! < incoming['total-time']);
  assert.equal(outgoing.ram['postcopy-requests'], requests);
});

// RC-6
test('a link that is taken down three times: the guest goes on with what it has, and then with everything', async () => {
  const status: { value: string; changed: () => void } = { value: '', changed: () => {} };
  const reached = async (wanted: string): Promise<void> => {
    while (status.value !== wanted) {
      await new Promise<void>((resolve) => {
        status.changed = resolve;
      });
    }
  };
  const { outgoing, incoming } = await migrate(
    { rate: 100 * MIB },
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
      parameters: { maxPostcopyBandwidth: 50 * MIB },
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
