// Which parts of a saved guest's RAM blocks were not plugged in: read from the early sections of its memory devices. These say
// how large a region is, not which RAM block it is, so the two are matched by size and content.

import { deviceStates } from '../stream/device-tail.js';
import type { RamSetup, StreamSummary } from '../stream/stream-handler.js';
import { decodeVirtioMemEarly, VIRTIO_MEM_EARLY_SECTION, type VirtioMemEarlyState } from './virtio-mem.js';

export interface MemoryDevice extends VirtioMemEarlyState {
  /** Of its section, without what all have in common: `0000:00:02.0`. */
  readonly name: string;
}

/** The memory devices of a saved guest. Throws VIRTIO_MEM_STATE. */
export const memoryDevices = ({ tail, devices }: Pick<StreamSummary, 'tail' | 'devices'>): MemoryDevice[] => {
  const suffix = `/${VIRTIO_MEM_EARLY_SECTION}`;
  if (!devices.some(({ name }) => name.endsWith(suffix))) {
    return [];
  }
  return deviceStates(tail, devices)
    .filter(({ name }) => name.endsWith(suffix))
    .map(({ name, body }) => ({ name: name.slice(0, -suffix.length), ...decodeVirtioMemEarly(body) }));
};

/** Which device blocks of a region are plugged. */
export type PluggedBlocks = Pick<VirtioMemEarlyState, 'regionSize' | 'blockSize' | 'plugged'>;

/** Visits the runs of device blocks that are not plugged, ascending, as bytes of the region. */
export const forEachUnplugged = (
  { plugged, blockSize, regionSize }: PluggedBlocks,
  visit: (offset: number, length: number) => void,
): void => {
  const count = regionSize / blockSize;
  const isPlugged = (block: number): boolean => (plugged[Math.floor(block / 8)]! & (1 << (block % 8))) !== 0;
  for (let first = 0; first < count; first += 1) {
    const start = first;
    while (first < count && !isPlugged(first)) {
      first += 1;
    }
    if (first > start) {
      visit(start * blockSize, (first - start) * blockSize);
    }
  }
};

/**
 * For each RAM block what is plugged of it, if it is the region of a memory device; undefined for ordinary blocks, and where it
 * cannot be told. `isEmpty` says whether nothing is stored of a range of a block: of a region, nothing is where nothing is plugged.
 */
export const pluggedOfBlocks = (
  { blocks }: RamSetup,
  devices: readonly VirtioMemEarlyState[],
  isEmpty: (block: number, offset: number, length: number) => boolean,
): (PluggedBlocks | undefined)[] => {
  const found = blocks.map((): PluggedBlocks | undefined => undefined);
  for (const size of new Set(devices.map(({ regionSize }) => regionSize))) {
    const group = devices.filter(({ regionSize }) => regionSize === size);
    const fitting = blocks.flatMap(({ index, usedLength }) => {
      const those = usedLength === size ? group.filter((device) => isRegion(device, index, isEmpty)) : [];
      return those.length > 0 ? [{ index, those }] : [];
    });
    // Every device has its block among these. If there are more, an ordinary one looks like a region.
    if (fitting.length <= group.length) {
      for (const { index, those } of fitting) {
        found[index] = pluggedInAny(those);
      }
    }
  }
  return found;
};

const isRegion = (
  device: VirtioMemEarlyState,
  block: number,
  isEmpty: (block: number, offset: number, length: number) => boolean,
): boolean => {
  let empty = true;
  forEachUnplugged(device, (offset, length) => {
    empty &&= isEmpty(block, offset, length);
  });
  return empty;
};

/** Of a block that may be the region of several devices: what is not plugged in any of them is not plugged. */
const pluggedInAny = (devices: readonly VirtioMemEarlyState[]): PluggedBlocks | undefined => {
  const { regionSize, blockSize } = devices[0]!;
  if (devices.some((device) => device.blockSize !== blockSize)) {
    return undefined;
  }
  const plugged = devices[0]!.plugged.map((byte, index) =>
    devices.reduce((bits, device) => bits | device.plugged[index]!, byte),
  );
  return { regionSize, blockSize, plugged };
};
