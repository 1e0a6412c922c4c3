// What a conversion is given, and what it tells.

import type { PhysicalRange } from '../../format/elf-core.js';
import type { Snapshot } from '../../format/index.js';
import type { RamDigest } from '../../format/ram-digest.js';
import type { StreamConfiguration } from '../../format/stream/configuration.js';
import type { DeviceTail } from '../../format/stream/device-tail.js';
import type { RamSetup, ReadRamBlock } from '../../format/stream/stream-handler.js';
import { hasSidecar, writeSidecar } from '../digest-sidecar.js';
import type { Surroundings } from '../read-memory-file.js';

/** What was read, and what was written. */
export interface Converted {
  readonly configuration: StreamConfiguration;
  readonly setup: RamSetup;
  readonly written: Written;
}

export interface Conversion {
  readonly snapshot: Snapshot;
  /** The input's path. */
  readonly file: string;
  readonly out: string;
  readonly block: string | undefined;
  /** Whether formats that QEMU loads get a sidecar. */
  readonly digests: boolean;
  readonly surroundings: Surroundings;
}

/** What was written. */
export interface Written {
  readonly blocks: readonly { readonly name: string; readonly usedLength: number; readonly file?: string }[];
  /** Of an ELF core: which bytes of the block are at which guest-physical address. */
  readonly ranges?: readonly PhysicalRange[];
  readonly fileBytes: number;
  /** The sidecar. */
  readonly digest?: string;
}

export const nameAndLength = ({ name, usedLength }: ReadRamBlock): { name: string; usedLength: number } => ({
  name,
  usedLength,
});

/** The sidecar of a file that is there, if a digest was made. */
export const sidecarOf = async (
  out: string,
  { configuration, tail }: { readonly configuration: StreamConfiguration; readonly tail: DeviceTail },
  { digest, fingerprint }: { readonly digest: RamDigest | undefined; readonly fingerprint?: string | undefined },
): Promise<Pick<Written, 'digest'>> =>
  digest !== undefined && hasSidecar(out)
    ? { digest: await writeSidecar(out, { configuration, tail, fingerprint }, digest) }
    : {};
