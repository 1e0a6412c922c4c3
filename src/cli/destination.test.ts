// What `--qmp` of send and serve makes of a destination's monitor, which a test plays.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { monitor } from '../../test/scripted-monitor.js';
import { until } from '../../test/until.js';
import { RamferryError } from '../memory/errors.js';
import { Destination } from './destination.js';

const URI = 'tcp:host2:4444';
const RUNNING = { runs: true, savedAs: 'running', notes: [] };
const PAUSED = { runs: false, savedAs: 'paused', notes: [] };

type Answers = Readonly<Record<string, unknown>>;

/** What the monitor of a destination that is set up as it should be answers. */
const good: Answers = {
  'query-migrate-capabilities': [
    { capability: 'postcopy-ram', state: true },
    { capability: 'multifd', state: false },
  ],
  'query-migrate-parameters': { 'tls-creds': '' },
};

/** Ends the connection instead of an answer. */
const GONE = Symbol('gone');

/** A destination with this monitor. An array is answered one by one, its last element from then on. Also what it was asked. */
const withMonitor = async (
  answers: Answers,
  use: (open: (needed?: string) => Promise<Destination>, asked: readonly string[]) => Promise<void>,
): Promise<void> => {
  const asked: string[] = [];
  const left = new Map(Object.entries({ ...good, ...answers }));
  await monitor(
    ({ execute, id }, socket) => {
      asked.push(execute);
      const answer = left.get(execute);
      const one = Array.isArray(answer) && !execute.endsWith('capabilities') ? answer[0] : answer;
      if (Array.isArray(answer) && answer.length > 1 && one !== answer) {
        left.set(execute, answer.slice(1));
      }
      if (one === GONE) {
        socket.destroy();
      } else if (one !== undefined) {
        socket.write(`${JSON.stringify({ return: one, id })}\r\n`);
      }
    },
    async (qmp) => {
      const opened: Destination[] = [];
      try {
        await use(async (needed) => {
          const destination = await Destination.open(URI, qmp, needed);
          opened.push(destination);
          return destination;
        }, asked);
      } finally {
        await Promise.all(opened.map((destination) => destination.close()));
      }
    },
  );
};

const failed = new RamferryError('failed', 'PEER_CLOSED', 'The connection broke.');

for (const [what, answers, sentence] of [
  [
    'multifd',
    { 'query-migrate-capabilities': [{ capability: 'multifd', state: true }] },
    /^The destination tcp:host2:4444 has multifd on/,
  ],
  [
    'no postcopy-ram',
    { 'query-migrate-capabilities': [{ capability: 'postcopy-ram', state: false }] },
    /has postcopy-ram off\.$/,
  ],
  ['TLS', { 'query-migrate-parameters': { 'tls-creds': 'tls0' } }, /expects TLS\.$/],
] as const) {
  test(`--qmp: a destination with ${what} is refused before anything is sent`, async () => {
    await withMonitor(answers, async (open) => {
      await assert.rejects(open('postcopy-ram'), (error: RamferryError) => {
        assert.equal(error.code, 'DESTINATION_SETUP');
        assert.match(error.message, sentence);
        assert.ok(error.hint);
        return true;
      });
    });
  });
}

test('--qmp: tls-creds may be missing or null, and who needs no capability is not asked for it', async () => {
  for (const parameters of [{}, { 'tls-creds': null }]) {
    const answers = { 'query-migrate-parameters': parameters, 'query-migrate-capabilities': [] };
    await withMonitor(answers, async (open) => {
      await open();
      await assert.rejects(open('postcopy-ram'), { code: 'DESTINATION_SETUP' });
    });
  }
});

test('--qmp: a guest is said to run when query-status says so, whatever comes in between', async () => {
  for (const last of ['running', 'suspended']) {
    const states = ['inmigrate', 'finish-migrate', last].map((status) => ({ status, running: status === 'running' }));
    await withMonitor({ 'query-status': states }, async (open, asked) => {
      const destination = await open('postcopy-ram');
      destination.expect(RUNNING);
      const { document, text, failure } = await destination.stateAfter(undefined, true);
      assert.deepEqual([document, failure], [{ confirmed: true, state: last }, undefined]);
      assert.match(text, new RegExp(`${last} \\(query-status .*\\)\n$`));
      assert.equal(asked.filter((command) => command === 'query-status').length, 3);
    });
  }
});

test('--qmp: a guest that does not run, and should, is an error with its state and what to do', async () => {
  for (const [status, hint] of [
    ['inmigrate', /disk that somebody else has locked/],
    ['io-error', /disk that somebody else has locked/],
    ['paused', /^cont in its monitor/],
  ] as const) {
    await withMonitor({ 'query-status': { status, running: false } }, async (open) => {
      const destination = await open('postcopy-ram');
      destination.expect(RUNNING);
      const { document, failure } = await destination.stateAfter(undefined, true);
      assert.equal(document.state, status);
      assert.deepEqual([failure?.code, failure?.value], ['GUEST_NOT_RUNNING', status]);
      assert.match(failure!.hint!, hint);
    });
  }
});

test('--qmp: a guest that was saved while paused is right when it is paused', async () => {
  await withMonitor({ 'query-status': { status: 'paused', running: false } }, async (open) => {
    const destination = await open();
    destination.expect(PAUSED);
    const { document, failure } = await destination.stateAfter(undefined, true);
    assert.deepEqual([document.state, failure], ['paused', undefined]);
  });
});

test('--qmp: a QEMU that is gone when it is asked does not run the guest', async () => {
  await withMonitor({ 'query-status': GONE }, async (open) => {
    const destination = await open();
    destination.expect(RUNNING);
    const { document, failure } = await destination.stateAfter(undefined, true);
    assert.deepEqual([document.state, failure?.code], ['gone', 'GUEST_NOT_RUNNING']);
  });
});

test("--qmp: of a failure QEMU's own reason is told, once it has one", async () => {
  const reason = 'Unknown savevm section.';
  for (const [answer, words] of [
    [[{ status: 'postcopy-device' }, { status: 'failing' }, { status: 'failed', 'error-desc': reason }], reason],
    [[{ status: 'postcopy-paused' }], 'its migration is postcopy-paused.'],
    [[{}], 'its migration is none.'],
    [[{ status: 'active' }, GONE], 'nothing more: its monitor is gone, and a QEMU that ends prints why.'],
  ] as const) {
    await withMonitor({ 'query-migrate': answer }, async (open) => {
      const destination = await open();
      const { document, failure } = await destination.stateAfter(failed, true);
      assert.deepEqual(document, { confirmed: false });
      assert.deepEqual([failure?.code, failure?.message], ['PEER_CLOSED', `The connection broke. QEMU says: ${words}`]);
    });
  }
});

test('--qmp: devices are known not to load where the monitor answers that it has them, twice, or that it has failed', async () => {
  const device = { status: 'postcopy-device' };
  const desc = 'loadvm failed during postcopy';
  for (const [answer, sentence] of [
    [[device, device], /cannot load the devices\. Its migration is postcopy-device/],
    [[{ status: 'failed', 'error-desc': desc }], /cannot load the devices: loadvm failed during postcopy\./],
    [[device, { status: 'failing', 'error-desc': desc }], /loadvm failed/],
    [[device, { status: 'postcopy-active' }], undefined],
    [[{ status: 'postcopy-active' }], undefined],
    [[{ status: 'active' }], undefined],
    [[{}], undefined],
    [[device, GONE], undefined],
  ] as const) {
    const answers = { 'query-migrate': answer, 'query-status': { status: 'inmigrate', running: false } };
    await withMonitor(answers, async (open) => {
      const destination = await open();
      const error = await destination.whyNotLoaded();
      assert.equal(error?.code, sentence && 'DEVICES_NOT_LOADED', JSON.stringify(answer));
      assert.match(error?.message ?? '', sentence ?? /^$/);
    });
  }
});

test('--qmp: a monitor that does not answer is asked once, and says nothing against its QEMU', async () => {
  await withMonitor({}, async (open, asked) => {
    const destination = await open();
    const first = destination.whyNotLoaded();
    assert.equal(await destination.whyNotLoaded(), undefined);
    await until(() => asked.includes('query-migrate'));
    // What is not answered ends with the connection.
    await destination.close();
    assert.equal(await first, undefined);
    assert.equal(asked.filter((command) => command === 'query-migrate').length, 1);
  });
});

test('without --qmp nothing is said that nobody knows', async () => {
  const destination = await Destination.open(URI, undefined);
  destination.expect(RUNNING);
  const { document, text, failure } = await destination.stateAfter(undefined, true);
  assert.deepEqual([document, failure], [{ confirmed: true }, undefined]);
  assert.match(text, /whether it runs there, query-status in its monitor says .*\n$/);
  assert.equal((await destination.stateAfter(failed, true)).failure, failed);
  assert.equal(await destination.whyNotLoaded(), undefined);
});
