// Memory files of real QEMUs that are small enough for the repository, packed, with what was known about each when it was
// saved. `npm run record` makes them anew; those in libvirt/ come from libvirt/record.sh.

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { LibvirtFormat } from '../../src/format/libvirt/save-image.js';

/** This file runs in dist/test/recorded; the files stay in the source tree. */
export const recordedFolder = fileURLToPath(new URL('../../../test/recorded/', import.meta.url));

export interface RecordedFile {
  /** In the folder. */
  readonly file: string;
  readonly format: 'stream' | 'mapped-ram';
  /** How its libvirt packed it, if one saved it. */
  readonly libvirt?: LibvirtFormat;
  /** Of the QEMU that saved it. */
  readonly qemu: string;
  /** Machine type as the file has it; empty where it has none. */
  readonly machine: string;
  readonly pageSize: number;
  /** The RAM block whose content was known by another way than the file. */
  readonly block: string;
  /** How much of the block was known, from its beginning; zeros follow. */
  readonly bytes: number;
  readonly sha256: string;
}

const LISTS = ['recorded-files.json', 'libvirt/recorded-files.json'];

export const recordedFiles = (): readonly RecordedFile[] =>
  LISTS.flatMap((list) => JSON.parse(readFileSync(join(recordedFolder, list), 'utf8')) as RecordedFile[]);
