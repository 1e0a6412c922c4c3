// `ramferry inspect FILE`: what a memory file is.

import { createHash } from 'node:crypto';
import type { Snapshot } from '../format/index.js';
import { pageIndex } from '../memory/units.js';
import { diskSnapshotsOf } from '../memory-file/disk-snapshot-node.js';
import { memoryFile } from '../memory-file/open-snapshot-file-node.js';
import { blockText, deviceText, digestText, diskText, headText } from './inspect-text.js';
import { diskSnapshotDocument, memoryDocument } from './memory-document.js';
import { type PageMap, pageMap, pageMapText, withStalePages } from './page-map.js';
import { type FileOptions, INDEX_HELP, inSlices, pageSizeOption, readMemoryFile } from './read-memory-file.js';
import { oneLine } from './safe-text.js';
import { hasUnicode, terminalColors, terminalColumns } from './terminal.js';
import type { Invocation, Verb } from './verb.js';

interface InspectOptions extends FileOptions {
  readonly digest?: true;
  readonly pages?: true;
}

/** What is hashed at a time. */
const DIGEST_BYTES = 4 * 1024 * 1024;

export const inspect: Verb<InspectOptions> = {
  configure: (command) =>
    command
      .option('--digest', 'SHA-256 of the content of each RAM block, absent and zero pages as zero bytes')
      .option('--pages', 'a map of where pages are present, zero, absent, and stale')
      .addOption(pageSizeOption())
      .addHelpText('after', INDEX_HELP),
  examples: [
    ['guest.mig', 'machine, RAM blocks, page counts and device sections'],
    ['disk.qcow2', 'the snapshots that savevm made in a disk'],
    ['file:disk.qcow2,snapshot=before', 'one of them'],
    ['guest.mig --pages', 'and where the pages are'],
    ['guest.mig --digest --json', 'with a digest of each block, which is the same in every format'],
  ],

  async run({ operands, options, signal, progress }) {
    const disk = inspectDisk(operands[0]!);
    if (disk !== undefined) {
      return disk;
    }
    const opened = await readMemoryFile(operands[0]!, { signal, progress }, options);
    try {
      const { snapshot, damage } = opened;
      const document = memoryDocument(opened);
      const digests = options.digest && snapshot && (await digestsOf(snapshot, { signal, progress }));
      const terminal = { columns: terminalColumns(process.stdout), unicode: hasUnicode() };
      const map = options.pages && snapshot && (await pageMapOf(snapshot, terminal.columns, { signal, progress }));
      const colors = terminalColors(process.stdout);
      const text = [
        headText(document, opened.sizeBytes, colors),
        document.blocks.length > 0 && blockText(document.blocks, colors),
        deviceText(document, colors),
        digests && digestText(document.blocks, digests, colors),
        map && pageMapText(map, { ...terminal, colors }),
        document.warnings.map((warning) => `${colors.yellow('warning:')} ${oneLine(warning)}\n`).join(''),
      ];
      const blocks = document.blocks.map((block, index) => ({
        ...block,
        sha256: digests?.[index],
        map: map && cellsDocument(map, index),
      }));
      return {
        document: { ...document, blocks },
        text: text.filter(Boolean).join('\n'),
        failure: damage,
      };
    } finally {
      opened.close();
    }
  },
};

/** What is in a disk image of which no snapshot is named; undefined for everything else, pipes too. */
const inspectDisk = (operand: string): { readonly document: object; readonly text: string } | undefined => {
  const { path, snapshot } = memoryFile(operand);
  const found = snapshot === undefined ? diskSnapshotsOf(path) : undefined;
  if (found === undefined) {
    return undefined;
  }
  const snapshots = found.disk.snapshots.map(diskSnapshotDocument);
  return {
    document: { file: path, container: 'qcow2', diskBytes: found.disk.sizeBytes, snapshots },
    text: diskText(path, snapshots, terminalColors(process.stdout)),
  };
};

/** The page map of a block as numbers. */
const cellsDocument = ({ pagesPerCell, blocks }: PageMap, index: number): object => {
  const { cells } = blocks[index]!;
  return {
    pagesPerCell,
    presentPages: cells.map(({ presentPages }) => presentPages),
    zeroPages: cells.map(({ zeroPages }) => zeroPages),
    stalePages: cells[0]?.stalePages === undefined ? undefined : cells.map(({ stalePages }) => stalePages),
  };
};

/** The page map; where the format has stale pages, with those, for which the places of absent pages are read. */
const pageMapOf = async (
  snapshot: Snapshot,
  columns: number,
  surroundings: Pick<Invocation<unknown>, 'signal' | 'progress'>,
): Promise<PageMap> => {
  const map = pageMap(snapshot, columns);
  if (snapshot.stalePages === undefined) {
    return map;
  }
  const { targetPageSize, totalBytes, blocks } = snapshot.setup;
  const stale = map.blocks.map(({ cells }) => new Float64Array(cells.length));
  const stepPages = Math.min(map.pagesPerCell, DIGEST_BYTES / targetPageSize);
  let block = 0;
  let page = 0;
  await inSlices(surroundings, 'looking for stale pages', totalBytes, () => {
    const pageCount = blocks[block]!.usedLength / targetPageSize;
    const pages = Math.min(stepPages, pageCount - page);
    stale[block]![Math.floor(page / map.pagesPerCell)]! += snapshot.stalePages!(block, pageIndex(page), pages);
    page += pages;
    if (page === pageCount) {
      block += 1;
      page = 0;
    }
    return pages * targetPageSize;
  });
  return withStalePages(map, stale);
};

/** One SHA-256 a block, over its whole used length; none of a block whose content the file leaves out. */
const digestsOf = async (
  snapshot: Snapshot,
  surroundings: Pick<Invocation<unknown>, 'signal' | 'progress'>,
): Promise<(string | undefined)[]> => {
  const { blocks, targetPageSize, totalBytes } = snapshot.setup;
  const buffer = new Uint8Array(DIGEST_BYTES);
  const digests: (string | undefined)[] = [];
  let hash = createHash('sha256');
  let offset = 0;
  await inSlices(surroundings, 'hashing', totalBytes, () => {
    const { index, usedLength } = blocks[digests.length]!;
    if (snapshot.elsewhere.has(index)) {
      digests.push(undefined);
      return usedLength;
    }
    const bytes = Math.min(DIGEST_BYTES, usedLength - offset);
    const piece = buffer.subarray(0, bytes);
    snapshot.readPages(index, pageIndex(offset / targetPageSize), bytes / targetPageSize, piece);
    hash.update(piece);
    offset += bytes;
    if (offset === usedLength) {
      digests.push(hash.digest('hex'));
      hash = createHash('sha256');
      offset = 0;
    }
    return bytes;
  });
  return digests;
};
