// Device state of two memory files, compared section by section. A section is known by its name and instance: ids are
// numbers of convenience, and where it stands says nothing about the device.

import { type DeviceState, deviceStates } from '../format/stream/device-tail.js';
import type { StreamSummary } from '../format/stream/stream-handler.js';

export interface DeviceDifference {
  readonly name: string;
  readonly instance: number;
  readonly difference: 'content' | 'version' | 'onlyInA' | 'onlyInB';
  /** Of the body: the longer one's length. */
  readonly bytes: number;
  /** First differing byte of the body; only for `content`. */
  readonly offset?: number;
}

/** Sections that are not the same, those of the first file in its order, then those that only the second has. */
export const differingDevices = (a: StreamSummary, b: StreamSummary): DeviceDifference[] => {
  const left = sectionsOf(a);
  const right = sectionsOf(b);
  return [
    ...[...left].flatMap(([key, device]) => {
      const difference = compare(device, right.get(key));
      return difference === undefined ? [] : [difference];
    }),
    ...[...right]
      .filter(([key]) => !left.has(key))
      .map(([, { name, instance, body }]) => ({ name, instance, difference: 'onlyInB' as const, bytes: body.length })),
  ];
};

/** By name, instance, and, as a damaged writer could repeat both, how many there were before. */
const sectionsOf = ({ tail, devices }: StreamSummary): Map<string, DeviceState> => {
  const sections = new Map<string, DeviceState>();
  for (const state of deviceStates(tail, devices)) {
    const key = JSON.stringify([state.name, state.instance]);
    let repeated = 0;
    while (sections.has(`${key}${repeated}`)) {
      repeated += 1;
    }
    sections.set(`${key}${repeated}`, state);
  }
  return sections;
};

const compare = (a: DeviceState, b: DeviceState | undefined): DeviceDifference | undefined => {
  const { name, instance } = a;
  if (b === undefined) {
    return { name, instance, difference: 'onlyInA', bytes: a.body.length };
  }
  const bytes = Math.max(a.body.length, b.body.length);
  if (a.version !== b.version) {
    return { name, instance, difference: 'version', bytes };
  }
  if (Buffer.from(a.body).equals(b.body)) {
    return undefined;
  }
  const differs = a.body.findIndex((byte, index) => byte !== b.body[index]);
  return { name, instance, difference: 'content', bytes, offset: differs < 0 ? a.body.length : differs };
};
