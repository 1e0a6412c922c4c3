// The run state of a saved guest: as QEMU 7.2 and 10.0 wrote it (both layouts), what is no such state, and the state rewritten.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { DeviceSection } from './device-sections.js';
import { buildDeviceTail, type DeviceState, type DeviceTail, deviceStates } from './device-tail.js';
import { savedRunState, withRunState } from './global-state.js';

/** As QEMU 10.0.13 wrote it: 32 bytes of name, then whether the guest was suspended. */
const body10 = (name: string, suspended = 0): Uint8Array => {
  const body = new Uint8Array(104);
  body[3] = name.length + 1;
  body.set(new TextEncoder().encode(name), 4);
  body.set([1, suspended], 36);
  return body;
};

/** As QEMU 7.2.22 wrote it: 100 bytes of name. */
const body72 = (name: string): Uint8Array => body10(name).map((byte, at) => (at === 36 ? 0 : byte));

const filler = (name: string, bytes: number): DeviceState => ({
  ...{ name, instance: 0, version: 3 },
  body: new Uint8Array(bytes).fill(0x7e),
});

const guest = (
  body: Uint8Array,
  version = 1,
  early: readonly DeviceState[] = [filler('0000:00:03.0/virtio-mem-device-early', 31)],
): { tail: DeviceTail; devices: DeviceSection[] } => {
  const states = [filler('timer', 20), { name: 'globalstate', instance: 0, version, body }, filler('last', 5)];
  const devices = [...early, ...states].map(({ name, instance, version, body }, index) => ({
    ...{ section: 2 + index, name, instance, version, bytes: body.length },
    // Offsets of the stream tell nothing here: RAM lies between early and late sections.
    offset: 1e6 * (index + 1),
  }));
  return { tail: buildDeviceTail(states, early), devices };
};

test('the state as QEMU 10.0 and 7.2 write it', () => {
  for (const body of [body10, body72]) {
    assert.deepEqual(savedRunState(guest(body('running'))), { name: 'running', wasSuspended: false, isLive: true });
    assert.deepEqual(savedRunState(guest(body('paused'))), { name: 'paused', wasSuspended: false, isLive: false });
    assert.deepEqual(savedRunState(guest(body('io-error'))), { name: 'io-error', wasSuspended: false, isLive: false });
  }
  // A suspended guest waits for a wake-up; one that was paused while suspended is not live.
  assert.equal(savedRunState(guest(body10('suspended', 1)))?.isLive, true);
  assert.deepEqual(savedRunState(guest(body10('paused', 1))), { name: 'paused', wasSuspended: true, isLive: false });
});

test("a guest that is not QEMU's has no such state", () => {
  const { tail, devices } = guest(body10('running'));
  const renamed = devices.map((device) =>
    device.name === 'globalstate' ? { ...device, name: 'ramferry/wl' } : device,
  );
  assert.equal(savedRunState({ tail, devices: renamed }), undefined);
  assert.equal(withRunState({ tail, devices: renamed }, 'paused'), tail);
});

test('what QEMU would not load either is refused, with the place', () => {
  for (const state of [
    guest(body10('running'), 2),
    guest(body10('')),
    guest(body10('\u001b[31m')),
    guest(new Uint8Array(104).fill(0x61)),
    guest(body10('running').slice(0, 103)),
    guest(new Uint8Array(0)),
  ]) {
    assert.throws(() => savedRunState(state), { kind: 'invalid', code: 'GLOBAL_STATE', offset: 3e6 });
  }
});

test('a rewritten state is the only thing that differs', () => {
  for (const early of [[], undefined]) {
    for (const [body, from, to] of [
      [body10, 'running', 'paused'],
      [body72, 'paused', 'running'],
      [body10, 'paused', 'suspended'],
    ] as const) {
      const given = guest(body(from), 1, early);
      const before = given.tail.sections.slice();
      const tail = withRunState(given, to);
      assert.deepEqual(given.tail.sections, before, 'the given tail stays as it is');
      const expected = deviceStates(given.tail, given.devices).map((state) =>
        state.name === 'globalstate' ? { ...state, body: body(to) } : state,
      );
      assert.deepEqual(deviceStates(tail, given.devices), expected);
      assert.equal(tail.description, given.tail.description);
      assert.equal(withRunState(given, from), given.tail);
    }
  }
});
