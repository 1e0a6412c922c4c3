// The monitor protocol against a scripted peer: what real QEMU does in every order, and what a broken one might do.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type Command, monitor, send } from '../../test/scripted-monitor.js';
import { RamferryError } from '../memory/errors.js';
import { QmpClient, QmpCommandError } from './qmp-client.js';

const withCode =
  (code: string) =>
  (error: unknown): boolean =>
    error instanceof RamferryError && error.code === code;

test('replies are matched by id, whatever their order', async () => {
  const held: Command[] = [];
  await monitor(
    (command, socket) => {
      held.push(command);
      if (held.length === 3) {
        for (const { execute, id } of held.reverse()) {
          send(socket, { return: { name: execute }, id });
        }
      }
    },
    async (uri) => {
      const client = await QmpClient.connect(uri);
      assert.deepEqual(client.version, { major: 7, minor: 2, micro: 22 });
      const names = ['query-a', 'query-b', 'query-c'];
      const replies = await Promise.all(names.map((name) => client.execute(name)));
      assert.deepEqual(
        replies,
        names.map((name) => ({ name })),
      );
      await client.close();
    },
  );
});

test('an event that arrives before the reply of the command that caused it is not lost', async () => {
  await monitor(
    ({ id }, socket) => {
      const timestamp = { seconds: 1700000000, microseconds: 250000 };
      send(socket, { timestamp, event: 'MIGRATION', data: { status: 'setup' } });
      send(socket, { timestamp, event: 'MIGRATION', data: { status: 'completed' } });
      send(socket, { return: {}, id });
    },
    async (uri) => {
      const client = await QmpClient.connect(uri);
      const completed = client.waitEvent('MIGRATION', { where: ({ data }) => data['status'] === 'completed' });
      assert.deepEqual(await client.execute('migrate', { uri: 'unix:x' }), {});
      const event = await completed;
      assert.deepEqual(event.data, { status: 'completed' });
      assert.equal(event.timestampMs, 1700000000250);
      await client.close();
    },
  );
});

test('messages split at every byte are read the same', async () => {
  await monitor(
    ({ id }, socket) => {
      const bytes = Buffer.from(`{"event":"STOP","timestamp":{}}\r\n{"return":{"text":"ü→𝄞"},"id":${id}}\r\n`);
      socket.setNoDelay(true);
      let at = 0;
      const next = (): void => {
        if (at < bytes.length) {
          socket.write(bytes.subarray(at, ++at), () => setImmediate(next));
        }
      };
      next();
    },
    async (uri) => {
      const client = await QmpClient.connect(uri);
      const stopped = client.waitEvent('STOP');
      assert.deepEqual(await client.execute('query-text'), { text: 'ü→𝄞' });
      await stopped;
      await client.close();
    },
  );
});

test('an error reply carries class and description, and leaves the connection usable', async () => {
  await monitor(
    ({ execute, id }, socket) =>
      send(
        socket,
        execute === 'query-status'
          ? { return: { status: 'running', running: true }, id }
          : { error: { class: 'CommandNotFound', desc: 'The command x has not been found' }, id },
      ),
    async (uri) => {
      const client = await QmpClient.connect(uri);
      await assert.rejects(client.execute('x'), (error: unknown) => {
        assert.ok(error instanceof QmpCommandError);
        assert.equal(error.code, 'QMP_COMMAND_FAILED');
        assert.equal(error.command, 'x');
        assert.equal(error.errorClass, 'CommandNotFound');
        assert.equal(error.description, 'The command x has not been found');
        return true;
      });
      assert.equal((await client.execute('query-status')).running, true);
      await client.close();
    },
  );
});

test('silence times out, and the late answer is dropped', async () => {
  let late: (() => void) | undefined;
  await monitor(
    ({ execute, id }, socket) => {
      if (execute === 'slow') {
        late = () => send(socket, { return: 'late', id });
      } else {
        late?.();
        send(socket, { return: 'prompt', id });
      }
    },
    async (uri) => {
      const client = await QmpClient.connect(uri);
      await assert.rejects(client.execute('slow', undefined, { timeoutMs: 20 }), withCode('QMP_TIMEOUT'));
      await assert.rejects(client.waitEvent('NEVER', { timeoutMs: 20 }), withCode('QMP_TIMEOUT'));
      assert.equal(await client.execute('quick'), 'prompt');
      await client.close();
    },
  );
});

test('a connection that goes away rejects everything that waits on it', async () => {
  await monitor(
    (_command, socket) => socket.destroy(),
    async (uri) => {
      const client = await QmpClient.connect(uri);
      const event = client.waitEvent('STOP');
      await assert.rejects(client.execute('quit'), withCode('QMP_CLOSED'));
      await assert.rejects(event, withCode('QMP_CLOSED'));
      await assert.rejects(client.execute('query-status'), withCode('QMP_CLOSED'));
      await client.closed;
    },
  );
});

test('a peer that does not speak QMP is refused', async () => {
  const refuse = () => assert.fail('nothing may be sent to it');
  await monitor(refuse, (uri) => assert.rejects(QmpClient.connect(uri), withCode('QMP_PROTOCOL')), 'SSH-2.0-x\r\n');
  await monitor(
    refuse,
    (uri) => assert.rejects(QmpClient.connect(uri, { timeoutMs: 20 }), withCode('QMP_TIMEOUT')),
    '',
  );
});

test('a reply that nothing can be matched with ends the connection', async () => {
  await monitor(
    (_command, socket) => send(socket, { error: { class: 'GenericError', desc: 'JSON parse error' } }),
    async (uri) => {
      const client = await QmpClient.connect(uri);
      await assert.rejects(client.execute('x'), withCode('QMP_PROTOCOL'));
    },
  );
});

test('only unix: and tcp: are monitor addresses', async () => {
  for (const uri of ['file:/x', 'unix:', 'tcp:localhost', 'tcp:localhost:65536', 'localhost:4444']) {
    await assert.rejects(
      QmpClient.connect(uri),
      (error: unknown) => error instanceof RamferryError && error.kind === 'usage',
    );
  }
  await assert.rejects(QmpClient.connect('unix:/nonexistent/socket'), withCode('QMP_CONNECTION'));
});

// Fields of every kind that JSON has, in every place where there is one.
const WRONG = ['null', '[]', '7', '"x"', 'true', '{}', '[null]', '{"status":null}'];
const PLACES: readonly (readonly [line: string, right: readonly string[]])[] = [
  ['@', []],
  ['{"event":@}', ['"x"']],
  ['{"event":"MIGRATION","data":@}', ['{}', '{"status":null}']],
  ['{"event":"MIGRATION","timestamp":@}', ['{}', '{"status":null}']],
  ['{"event":"MIGRATION","timestamp":{"seconds":@,"microseconds":0}}', ['7']],
  ['{"QMP":@}', ['{}', '{"status":null}']],
  ['{"QMP":{"version":@}}', ['{}', '{"status":null}']],
  ['{"QMP":{"version":{"qemu":@}}}', ['{}', '{"status":null}']],
  ['{"QMP":{"version":{"qemu":{"major":@}}}}', ['7']],
  ['{"id":@,"return":{}}', ['7']],
  ['{"id":77,"error":@}', ['{}', '{"status":null}']],
  ['{"id":77,"error":{"class":@}}', ['"x"']],
  ['{"id":77,"error":{"desc":@}}', ['"x"']],
];

test('whatever a field of a message holds, the client goes on or says which one it is', {
  timeout: 60_000,
}, async () => {
  for (const [place, right] of PLACES) {
    for (const value of WRONG) {
      const line = place.replace('@', value);
      await monitor(
        (command, socket) => {
          socket.write(`${line}\n`);
          send(socket, { return: {}, id: command.id });
        },
        async (uri) => {
          const client = await QmpClient.connect(uri);
          client.onEvent(({ data }) => void String(data['status']));
          const answered = client.execute('query-x');
          if (right.includes(value)) {
            assert.deepEqual(await answered, {}, line);
            await client.close();
          } else {
            await assert.rejects(answered, withCode('QMP_PROTOCOL'), line);
            await client.closed;
          }
        },
      );
    }
  }
});

test('a greeting is looked at in the same way', async () => {
  for (const hello of ['{"QMP":null}', '{"QMP":{"version":null}}', '{"QMP":{"version":{"qemu":[]}}}', 'null']) {
    await monitor(
      () => {},
      (uri) => assert.rejects(QmpClient.connect(uri, { timeoutMs: 5000 }), withCode('QMP_PROTOCOL')),
      `${hello}\n`,
    );
  }
});

test('a result that no QEMU gives is refused by the name of its field', async () => {
  const results: [name: 'query-status' | 'query-migrate' | 'query-migrate-capabilities' | 'cont', unknown, string][] = [
    ['query-status', null, 'return'],
    ['query-status', { status: 'running' }, 'return.running'],
    ['query-migrate', { status: null }, 'return.status'],
    ['query-migrate', { ram: { total: '7' } }, 'return.ram.total'],
    ['query-migrate', { ram: null }, 'return.ram'],
    ['query-migrate', { 'socket-address': [null] }, 'return.socket-address[0]'],
    ['query-migrate-capabilities', {}, 'return'],
    ['query-migrate-capabilities', [{ capability: 'x', state: 1 }], 'return.[0].state'],
    ['cont', [], 'return'],
  ];
  for (const [name, result, field] of results) {
    await monitor(
      (command, socket) => send(socket, { return: result, id: command.id }),
      async (uri) => {
        const client = await QmpClient.connect(uri);
        await assert.rejects(client.execute(name), (error: RamferryError) => {
          assert.equal(error.code, 'QMP_PROTOCOL');
          assert.ok(error.message.includes(`"${field}"`), error.message);
          return true;
        });
        // Of the connection nothing is wrong.
        await client.close();
      },
    );
  }
});

test('a line of 4 MiB that comes byte by byte takes no quadratic time', { timeout: 60_000 }, async () => {
  await monitor(
    (command, socket) => {
      const line = JSON.stringify({ return: 'x'.repeat(2 ** 22), id: command.id });
      for (let at = 0; at < line.length; at += 64) {
        socket.write(line.slice(at, at + 64));
      }
      socket.write('\n');
    },
    async (uri) => {
      const client = await QmpClient.connect(uri);
      assert.equal(String(await client.execute('query-x')).length, 2 ** 22);
      await client.close();
    },
  );
});
