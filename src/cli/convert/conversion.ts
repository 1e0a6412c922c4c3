// What a conversion is given, and what it tells.

import type { Snapshot } from '../../format/index.js';
import type { BlockPlaces } from '../../format/physical-map.js';
import type { RamDigest } from '../../format/ram-digest.js';
import type { StreamConfiguration } from '../../format/stream/configuration.js';
import type { DeviceTail } from '../../format/stream/device-tail.js';
import type { RamSetup, ReadRamBlock } from '../../format/stream/stream-handler.js';
import { writeSidecar } from '../../memory-file/write-digest-sidecar-node.js';
import { hasSidecar } from '../digest-sidecar.js';
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
  /** Addresses of blocks that the file does not say, for formats with addresses. */
  readonly places: BlockPlaces;
  /** Whether a core has the virtual addresses that the vCPUs have mapped. */
  readonly virtual: boolean;
  /** Whether raw memory is one file by guest-physical address. */
  readonly byAddress: boolean;
  /** Whether formats that QEMU loads get a sidecar. */
  readonly digests: boolean;
  readonly surroundings: Surroundings;
}

/** Bytes [offset, offset + bytes) of a block. */
export interface WrittenRange {
  readonly block: string;
  readonly address: number;
  readonly offset: number;
  readonly bytes: number;
}

/** What a core for debuggers has besides memory. */
export interface WrittenCore {
  /** Those whose registers it has. */
  readonly cpus: readonly { readonly cpu: number; readonly mode: string }[];
  /** The kernel's text; 0 if there is none. */
  readonly vmcoreinfoBytes: number;
  /** Virtual memory, where that was asked for. */
  readonly virtual?: {
    readonly mappings: number;
    readonly mappedBytes: number;
    /** Guest memory that no vCPU has mapped. */
    readonly unmappedBytes: number;
  };
  /** What it lacks and why, as sentences. */
  readonly notes: readonly string[];
}

/** What was written. */
export interface Written {
  readonly blocks: readonly { readonly name: string; readonly usedLength: number; readonly file?: string }[];
  /** Of a format with addresses: which bytes of which block are at which guest-physical address. */
  readonly ranges?: readonly WrittenRange[];
  /** Blocks that are not in a file of all memory by address, and why. */
  readonly leftOut?: readonly { readonly block: string; readonly reason: string }[];
  /** Of a core. */
  readonly core?: WrittenCore;
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
