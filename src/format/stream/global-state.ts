// Section `globalstate` of QEMU's device state: whether the guest ran when it was saved. QEMU starts a guest that comes by
// precopy or from a file by what stands here; after a postcopy it does not look (spec/qemu-wire-format.md 1.6, 7.8).
//
//   | be32 name length + 1 | name, zeros … 32 bytes | u8 1 | u8 was suspended | zeros …  |    104 bytes; QEMU 9.0 and later
//   | be32 name length + 1 | name, zeros …                               100 bytes       |    104 bytes; before

import { latin1 } from '../bytes.js';
import { invalid } from '../invalid.js';
import { bodyPositions, type DeviceTail, deviceStates } from './device-tail.js';
import type { StreamSummary } from './stream-handler.js';

export const GLOBAL_STATE_SECTION = 'globalstate';

const SECTION_VERSION = 1;
const BODY_BYTES = 104;
const NAME_AT = 4;
/** The name and the zero behind it, in the layout with less room. */
const NAME_BYTES = 32;
const HAS_SUSPENDED_AT = NAME_AT + NAME_BYTES;

/** What a stream says of its guest's run state. */
export interface SavedRunState {
  /** QEMU's name of the state, as `query-status` gives it: `running`, `paused`, `suspended`, `shutdown`, `io-error`, … */
  readonly name: string;
  /** The guest slept (ACPI S3) before it was paused: when it goes on, it sleeps on. */
  readonly wasSuspended: boolean;
  /** Whether QEMU starts its processors once it is loaded. */
  readonly isLive: boolean;
}

/** States in which virtual processors run, or wait for nothing but a wake-up. */
const LIVE = ['running', 'suspended'];

/**
 * Reads the run state of a saved guest; undefined for one that has none, which is no QEMU's.
 * @throws RamferryError `invalid` GLOBAL_STATE if the section is not one that QEMU would load
 */
export const savedRunState = ({
  tail,
  devices,
}: Pick<StreamSummary, 'tail' | 'devices'>): SavedRunState | undefined => {
  const index = devices.findIndex(({ name }) => name === GLOBAL_STATE_SECTION);
  if (index < 0) {
    return undefined;
  }
  const { offset, version } = devices[index]!;
  const { body } = deviceStates(tail, devices)[index]!;
  const nameEnd = body.indexOf(0, NAME_AT);
  const name = latin1(body, NAME_AT, Math.max(NAME_AT, nameEnd));
  if (version !== SECTION_VERSION || body.length !== BODY_BYTES || !/^[a-z][a-z-]*$/.test(name)) {
    throw invalid('GLOBAL_STATE', 'The section "globalstate" does not say in which state the guest was', offset, {
      value: name,
    });
  }
  const wasSuspended = name.length < NAME_BYTES && body[HAS_SUSPENDED_AT] === 1 && body[HAS_SUSPENDED_AT + 1] === 1;
  return { name, wasSuspended, isLive: LIVE.includes(name) };
};

/**
 * The same device state, except that it says the guest is in state `name`: what makes a QEMU start it, or leave it paused.
 * A tail without the section stays as it is.
 * @throws RamferryError `invalid` GLOBAL_STATE as `savedRunState`
 */
export const withRunState = (
  { tail, devices }: Pick<StreamSummary, 'tail' | 'devices'>,
  name: 'running' | 'paused' | 'suspended',
): DeviceTail => {
  const saved = savedRunState({ tail, devices });
  if (saved === undefined || saved.name === name) {
    return tail;
  }
  const index = devices.findIndex((device) => device.name === GLOBAL_STATE_SECTION);
  const at = bodyPositions(devices, tail)[index]! - tail.early.length;
  const sections = tail.sections.slice();
  sections.fill(0, at + NAME_AT, at + NAME_AT + NAME_BYTES);
  sections.set(new TextEncoder().encode(name), at + NAME_AT);
  new DataView(sections.buffer, sections.byteOffset).setUint32(at, name.length + 1);
  return { ...tail, sections };
};
