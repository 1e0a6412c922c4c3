// What postcopy would harm, and QEMU as its destination does not refuse (spec/qemu-wire-format.md 7.3): memory that something
// has pinned when QEMU starts. The announcement of postcopy discards all guest memory; a device that holds on to the
// old pages goes on writing there, and its guest never sees it. In a guest whose file says so, or whose command line.

import type { StreamSummary } from '../format/stream/stream-handler.js';
import { WORKLOAD_MACHINE } from '../guest/workload/machine.js';
import { RamferryError } from '../memory/errors.js';
import { canReleaseMemory } from '../memory/release-memory-node.js';
import { optionArguments } from '../qemu/command-line.js';
import type { SourceGuest } from '../source/guest.js';

/** @throws RamferryError `POSTCOPY_OBSTACLE` if the saved guest has a device whose memory is pinned */
export const refusePinnedDevices = (
  { devices, iterable = [] }: Pick<StreamSummary, 'devices' | 'iterable'>,
  file: string,
): void => {
  // The state of such a device iterates where it is more than a few registers.
  const device = [...devices, ...iterable].find(({ name }) => name === 'vfio' || name.endsWith('/vfio'));
  if (device !== undefined) {
    throw new RamferryError(
      'invalid',
      'POSTCOPY_OBSTACLE',
      `The guest in ${file} has a device of its host (section ${device.section}, "${device.name}"), which pins its memory: it ` +
        'would not see what postcopy brings.',
      { file, offset: device.offset, value: device.name, hint: 'Have it loaded before it runs, as send does.' },
    );
  }
};

/** @throws RamferryError `POSTCOPY_OBSTACLE` if the guest can only go to a destination that has no preempt channel: ours */
export const refusePreempt = (machine: string): void => {
  if (machine === WORKLOAD_MACHINE) {
    throw new RamferryError(
      'usage',
      'POSTCOPY_OBSTACLE',
      `A guest of machine ${machine} has no destination with a preempt channel; that takes a QEMU.`,
      { value: machine, hint: 'leave preempt out: requested pages overtake the others in the one connection, too' },
    );
  }
};

/** @throws RamferryError `RELEASE_RAM` if the guest's memory cannot be given back to the system */
export const refuseRelease = (guest: SourceGuest): void => {
  const why =
    guest.extentAt !== undefined
      ? 'the memory of a saved guest is in its file, and takes nothing here'
      : canReleaseMemory()
        ? undefined
        : 'the system cannot be called here, which takes Linux and the optional dependency koffi';
  if (why !== undefined) {
    throw new RamferryError('usage', 'RELEASE_RAM', `release-ram cannot give memory back: ${why}.`);
  }
};

/** What of a command line pins memory: an option, and what its argument says then. */
const PINNING: readonly (readonly [string, string, RegExp, string])[] = [
  ['device', 'driver', /^vfio-/, 'a device of the host that reaches guest memory by itself'],
  ['netdev', 'type', /^vhost-vdpa$/, 'a device of the host that reaches guest memory by itself'],
  ['blockdev', 'driver', /^nvme$/, 'a controller of the host that reaches guest memory by itself'],
  ['drive', 'file', /^nvme:/, 'a controller of the host that reaches guest memory by itself'],
  ['overcommit', 'mem-lock', /^on$/, 'memory that is locked, so that each guest would load all of it before it runs'],
];

/** @throws RamferryError `POSTCOPY_OBSTACLE` if a QEMU of this command line would pin guest memory */
export const refusePinningCommand = (command: readonly string[]): void => {
  for (const [option, key, pattern, what] of PINNING) {
    for (const { index, values } of optionArguments(command, [option], key)) {
      if (pattern.test(String(values.get(key)))) {
        throw new RamferryError(
          'usage',
          'POSTCOPY_OBSTACLE',
          `-${option} ${command[index]} is ${what}: a guest with it cannot be served.`,
          { value: command[index], hint: 'leave it out' },
        );
      }
    }
  }
};
