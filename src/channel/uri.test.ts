import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { RamferryError } from '../memory/errors.js';
import { type Endpoint, formatUri, parseUri } from './uri.js';

const accepted: [string, Endpoint][] = [
  ['tcp:127.0.0.1:4444', { kind: 'tcp', host: '127.0.0.1', port: 4444 }],
  ['tcp:[::1]:0', { kind: 'tcp', host: '::1', port: 0 }],
  ['tcp::4444', { kind: 'tcp', host: '', port: 4444 }],
  ['tcp:host:4444,ipv4=on', { kind: 'tcp', host: 'host', port: 4444, family: 4 }],
  ['tcp:host:4444,ipv4=off', { kind: 'tcp', host: 'host', port: 4444, family: 6 }],
  ['tcp::4444,ipv6,to=4460', { kind: 'tcp', host: '', port: 4444, family: 6, lastPort: 4460 }],
  ['tcp:h:1,ipv4=on,ipv6=on,keep-alive=on', { kind: 'tcp', host: 'h', port: 1, keepAlive: true }],
  ['tcp:[fe80::1%eth0]:4444', { kind: 'tcp', host: 'fe80::1%eth0', port: 4444 }],
  ['tcp://host2:4444', { kind: 'tcp', host: 'host2', port: 4444 }],
  ['tcp://[::1]:4444/', { kind: 'tcp', host: '::1', port: 4444 }],
  ['unix:///run/in.sock', { kind: 'unix', path: '/run/in.sock' }],
  ['unix:/tmp/a:b,c', { kind: 'unix', path: '/tmp/a:b,c' }],
  ['file:/tmp/x', { kind: 'file', path: '/tmp/x', offset: 0 }],
  ['file:x,offset=0x10000', { kind: 'file', path: 'x', offset: 65536 }],
  ['file:x,offset=1M', { kind: 'file', path: 'x', offset: 1048576 }],
  ['file:x,offset=4 KiB', { kind: 'file', path: 'x', offset: 4096 }],
  ['file:x,offset=4096', { kind: 'file', path: 'x', offset: 4096 }],
  ['exec:gzip -c > "a:b"', { kind: 'exec', command: 'gzip -c > "a:b"' }],
  ['fd:7', { kind: 'fd', descriptor: 7 }],
  ['-', { kind: 'stdio' }],
];

const rejected: [string, RegExp][] = [
  ['', /no transport/],
  ['/tmp/x', /no transport/],
  ['ftp:x', /no transport "ftp"/],
  ['tcp:4444', /HOST:PORT/],
  ['tcp:::1:4444', /HOST:PORT/],
  ['tcp:host:65536', /"65536" is not a number from 0 to 65535/],
  ['tcp:host:4444,ipv4=maybe', /"ipv4" is on or off, not "maybe"/],
  ['tcp:host:4444,ipv4=off,ipv6=off', /no address left/],
  ['tcp:host:4444,mptcp=on', /option "mptcp"/],
  ['tcp:host:4444,', /option ""/],
  ['tcp:host:4444,to=4443', /to=4443 is not a port from 4444 to 65535/],
  ['tcp:host:4444,to', /to= is not a port/],
  ['tcp://', /HOST:PORT/],
  ['tcp:host:', /port ""/],
  ['unix:', /takes a path/],
  [`unix:/${'é'.repeat(54)}`, /107 bytes, this one has 109/],
  ['file:', /takes a path/],
  ['file:x,offset=1X', /offset "1X"/],
  ['file:x,offset=-1', /offset "-1"/],
  ['file:x,offset=9007199254740993', /below 2\^53/],
  ['exec: ', /takes a command/],
  ['fd:stdin', /"stdin" is not the number/],
  ['vsock:3:1234', /vsock: addresses are not supported/],
  ['rdma:host:4444', /rdma: addresses are not supported/],
];

for (const [uri, endpoint] of accepted) {
  test(`"${uri}" is understood`, () => {
    assert.deepEqual(parseUri(uri), endpoint);
    assert.deepEqual(parseUri(formatUri(endpoint)), endpoint);
  });
}

for (const [uri, complaint] of rejected) {
  test(`"${uri.slice(0, 30)}" is refused as wrong usage, naming it`, () => {
    assert.throws(
      () => parseUri(uri),
      (error) =>
        error instanceof RamferryError &&
        error.kind === 'usage' &&
        error.value === uri &&
        error.message.includes(`"${uri}"`) &&
        complaint.test(error.message) &&
        error.hint !== undefined,
    );
  });
}

test('any text is either an endpoint that survives formatting, or wrong usage', () => {
  const scheme = fc.constantFrom('tcp:', 'unix:', 'file:', 'exec:', 'fd:', '-', '');
  const rest = fc.oneof(
    fc.string(),
    fc.stringMatching(/^\[?[0-9a-f:.]{0,12}\]?:[0-9]{0,6}$/),
    fc.stringMatching(/^h:[0-9]{1,3}(,(ipv4|ipv6|to|keep-alive|x)(=(on|off|[0-9]{1,4}))?){0,3}$/),
    fc.stringMatching(/^x?(,offset=(0x)?[0-9a-f]{0,16})?$/),
  );
  fc.assert(
    fc.property(scheme, rest, (start, end) => {
      let endpoint: Endpoint;
      try {
        endpoint = parseUri(start + end);
      } catch (error) {
        assert.ok(error instanceof RamferryError && error.kind === 'usage');
        return;
      }
      assert.deepEqual(parseUri(formatUri(endpoint)), endpoint);
    }),
  );
});
