// No verb writes into what it reads: the one check of that, for all verbs, before any of them has opened anything.

import fs from 'node:fs';
import path from 'node:path';
import { parseUri } from '../channel/uri.js';
import { RamferryError } from '../memory/errors.js';

/** Paths that a run of a verb reads and writes, as far as they are known before it begins. */
export interface FilesOfRun {
  readonly reads: readonly string[];
  /** Sidecars included. They need not exist. */
  readonly writes: readonly string[];
}

/** The path behind a channel address, for `FilesOfRun`; none of sockets and commands. */
export const pathsOfUri = (uri: string, direction: 'read' | 'write'): string[] => {
  const endpoint = parseUri(uri);
  switch (endpoint.kind) {
    case 'file':
      return [endpoint.path];
    case 'fd':
      return [`/dev/fd/${endpoint.descriptor}`];
    case 'stdio':
      return [direction === 'read' ? '/dev/stdin' : '/dev/stdout'];
    default:
      return [];
  }
};

/**
 * Refuses a run that would write into its own input, whatever the two are called: links are followed, an open descriptor is
 * the file behind it, a loop device the file that it shows.
 * @throws RamferryError `OUTPUT_IS_INPUT`
 */
export const refuseToWriteInputs = ({ reads, writes }: FilesOfRun): void => {
  const inputs = reads.flatMap((read) => identities(read).map((identity) => ({ read, identity })));
  for (const write of writes) {
    const found = identities(write);
    const input = inputs.find(({ identity }) => found.includes(identity));
    if (input !== undefined) {
      const isNamedSo = path.resolve(input.read) === path.resolve(write);
      throw new RamferryError(
        'usage',
        'OUTPUT_IS_INPUT',
        isNamedSo
          ? `${write} would be read and written at once.`
          : `${write} would be written, and is the same file as ${input.read}, which is read.`,
        {
          file: write,
          hint: 'nothing was changed; name another output, and rename that over the input afterwards if it shall replace it',
        },
      );
    }
  }
};

/** What a path leads to: nothing where there is nothing yet, or something that keeps no bytes, such as /dev/null. */
const identities = (name: string): string[] => {
  try {
    const stat = fs.statSync(name, { bigint: true });
    if (stat.isFile() || stat.isFIFO()) {
      return [`file ${stat.dev} ${stat.ino}`];
    }
    return stat.isBlockDevice() ? [`device ${stat.rdev}`, ...backingFile(stat.rdev).flatMap(identities)] : [];
  } catch {
    // Whoever opens it says what is wrong with it.
    return [];
  }
};

/** The file that a loop device shows. */
const backingFile = (device: bigint): string[] => {
  // As `gnu_dev_major` and `gnu_dev_minor` take a device number apart.
  const major = ((device >> 8n) & 0xfffn) | ((device >> 32n) & ~0xfffn);
  const minor = (device & 0xffn) | ((device >> 12n) & ~0xffn);
  try {
    return [fs.readFileSync(`/sys/dev/block/${major}:${minor}/loop/backing_file`, 'utf8').replace(/\n$/, '')];
  } catch {
    return [];
  }
};
