// Which QEMUs the suite runs against. A release here is a place that any QEMU of its kind may fill: '11' is 11.1 or whatever
// came after it, since Debian's backports move on by themselves.

import { toolboxPrograms } from '../../src/cli/demo/toolbox.js';
import { type FoundQemu, findQemu } from '../../src/qemu/find-qemu.js';
import type { QemuVersion } from '../../src/qemu/qmp-client.js';

/** The oldest that ramferry promises to understand, the one of Debian stable, and the newest there is. */
export type QemuRelease = '7.2' | '10' | '11';

/** Those that behaviour is tested with unless a test says otherwise. */
export const CURRENT_RELEASES: readonly QemuRelease[] = ['10', '11'];

export const ALL_RELEASES: readonly QemuRelease[] = ['7.2', '10', '11'];

/** Versions that the whole suite has passed with. Another one is news: what fails with it is reported, and is not an error of the build. */
const KNOWN_VERSIONS: readonly string[] = ['7.2', '10.0', '11.1'];

const fills: Readonly<Record<QemuRelease, (version: QemuVersion) => boolean>> = {
  '7.2': ({ major, minor }) => major === 7 && minor === 2,
  '10': ({ major }) => major === 10,
  '11': ({ major }) => major >= 11,
};

export const isKnownVersion = ({ major, minor }: QemuVersion): boolean => KNOWN_VERSIONS.includes(`${major}.${minor}`);

export const versionText = ({ major, minor, micro }: QemuVersion): string => `${major}.${minor}.${micro}`;

/** There is no QEMU that fills the place of a release: a reason to skip, but for continuous integration. */
export class MissingReleaseError extends Error {
  constructor(release: QemuRelease, reason: string | undefined) {
    super(`there is no QEMU ${release}${reason === undefined ? '' : `: ${reason}`}`);
  }
}

/** Versions outside KNOWN_VERSIONS that the current test has asked for; the tests of a file run one after another. */
const unknownVersions = new Set<string>();

export const forgetUnknownVersions = (): void => unknownVersions.clear();

/** What is to be said of a test that has failed, where an unknown version took part in it. */
export const unknownVersionsReason = (): string | undefined =>
  unknownVersions.size === 0
    ? undefined
    : `not known to this suite yet: QEMU ${[...unknownVersions].join(', ')}; known are ${KNOWN_VERSIONS.join(', ')}`;

/** The QEMU that fills a release's place. Throws a `MissingReleaseError` if none does; `reason` says why that may be. */
export const qemuOf = async (release: QemuRelease, reason?: string): Promise<FoundQemu> => {
  const found = await findQemu(fills[release], toolboxPrograms());
  if (found === undefined) {
    throw new MissingReleaseError(release, reason);
  }
  if (!isKnownVersion(found.version)) {
    unknownVersions.add(versionText(found.version));
  }
  return found;
};
