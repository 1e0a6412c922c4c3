// FILE.digest as it is written: what the memory in FILE is, MiB by MiB, and the device state. QEMU loads a file with flipped bytes
// without a word; whoever has the digest (check-digest-sidecar-node.ts, digest-sidecar-node.ts) does not.

import fs from 'node:fs';
import { channelError } from '../channel/channel-error.js';
import { OutputFile } from '../channel/output-file-node.js';
import { writeFully } from '../channel/write-fully-node.js';
import type { RamDigest } from '../format/ram-digest.js';
import type { StreamConfiguration } from '../format/stream/configuration.js';
import type { DeviceTail } from '../format/stream/device-tail.js';
import { RamferryError } from '../memory/errors.js';
import { devicesOf, FORMAT, headOf, type Sidecar, sidecarPath } from './digest-sidecar-node.js';

/** How every digest begins, whatever its version. */
const HEAD = '{"format":"ramferry digest ';

/**
 * Refuses an output whose sidecar would replace a file that is no digest, before anything is written.
 * @throws RamferryError `FILE_EXISTS`
 */
export const refuseForeignSidecar = (out: string): void => {
  const path = sidecarPath(out);
  const stat = fs.statSync(path, { throwIfNoEntry: false });
  if (stat === undefined || (stat.isFile() && (stat.size === 0 || headOfFile(path) === HEAD))) {
    return;
  }
  throw new RamferryError('usage', 'FILE_EXISTS', `${path} is there already, and is no digest that may be replaced.`, {
    file: path,
    hint: 'name another output, or write it with --no-digest',
  });
};

const headOfFile = (path: string): string => {
  try {
    const descriptor = fs.openSync(path, 'r');
    try {
      const head = Buffer.alloc(HEAD.length);
      return head.toString('latin1', 0, fs.readSync(descriptor, head));
    } finally {
      fs.closeSync(descriptor);
    }
  } catch (error) {
    throw channelError(error, 'read', path);
  }
};

/** What a file is: all that goes into its sidecar but the memory. */
export interface DigestedFile {
  readonly configuration: Pick<StreamConfiguration, 'machine' | 'uuid'>;
  readonly tail: DeviceTail;
  /** Of a mapped-ram file that carries one. */
  readonly fingerprint?: string | undefined;
}

/** Writes the sidecar of a complete file; resolves with its path. */
export const writeSidecar = async (
  file: string,
  { configuration, tail, fingerprint }: DigestedFile,
  digest: RamDigest,
): Promise<string> => {
  const blocks = digest.blocks();
  const sidecar: Sidecar = {
    format: FORMAT,
    of: {
      bytes: fs.statSync(file).size,
      head: headOf(configuration, blocks),
      ...(fingerprint !== undefined && { fingerprint }),
    },
    blocks,
    devices: devicesOf(tail),
  };
  const path = sidecarPath(file);
  let output: OutputFile | undefined;
  try {
    output = OutputFile.open(path);
    const text = Buffer.from(`${JSON.stringify(sidecar)}\n`);
    writeFully(output.descriptor, text, 0, text.length, 0);
    await output.commit();
    return path;
  } catch (error) {
    const { message } = channelError(error, 'write', path);
    throw new RamferryError('failed', 'DIGEST_NOT_WRITTEN', `${file} is complete, but its digest is not: ${message}`, {
      file: path,
      hint: 'use the file without it, or --no-digest',
      cause: error,
    });
  } finally {
    output?.abort();
  }
};
