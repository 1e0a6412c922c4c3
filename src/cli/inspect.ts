// `ramferry inspect FILE`: what a memory file is.

import { createHash } from 'node:crypto';
import type { StreamSnapshot } from '../format/stream/snapshot.js';
import { pageIndex } from '../memory/units.js';
import { blockText, deviceText, digestText, headText } from './inspect-text.js';
import { type PageMap, pageMap, pageMapText } from './page-map.js';
import { INDEX_HELP, inSlices, readStreamFile } from './read-stream-file.js';
import { streamDocument } from './stream-document.js';
import { hasUnicode, terminalColors, terminalColumns } from './terminal.js';
import type { Invocation, Verb } from './verb.js';

interface InspectOptions {
  readonly digest?: true;
  readonly pages?: true;
}

/** What is hashed at a time. */
const DIGEST_BYTES = 4 * 1024 * 1024;

export const inspect: Verb<InspectOptions> = {
  configure: (command) =>
    command
      .option('--digest', 'SHA-256 of the content of each RAM block, absent and zero pages as zero bytes')
      .option('--pages', 'a map of where pages are present, zero and absent')
      .addHelpText('after', INDEX_HELP),
  examples: [
    ['guest.mig', 'machine, RAM blocks, page counts and device sections'],
    ['guest.mig --pages', 'and where the pages are'],
    ['guest.mig --digest --json', 'with a digest of each block, which is the same in every format'],
  ],

  async run({ operands, options, signal, progress }) {
    const opened = await readStreamFile(operands[0]!, { signal, progress });
    try {
      const { snapshot, damage } = opened;
      const document = streamDocument(opened);
      const digests = options.digest && snapshot && (await digestsOf(snapshot, { signal, progress }));
      const terminal = { columns: terminalColumns(process.stdout), unicode: hasUnicode() };
      const map = options.pages && snapshot && pageMap(snapshot, terminal.columns);
      const colors = terminalColors(process.stdout);
      const text = [
        headText(document, opened.sizeBytes, colors),
        document.blocks.length > 0 && blockText(document.blocks, colors),
        deviceText(document, colors),
        digests && digestText(document.blocks, digests, colors),
        map && pageMapText(map, { ...terminal, colors }),
        document.warnings.map((warning) => `${colors.yellow('warning:')} ${warning}\n`).join(''),
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

/** The page map of a block as numbers. */
const cellsDocument = ({ pagesPerCell, blocks }: PageMap, index: number): object => {
  const { cells } = blocks[index]!;
  return {
    pagesPerCell,
    presentPages: cells.map(({ presentPages }) => presentPages),
    zeroPages: cells.map(({ zeroPages }) => zeroPages),
  };
};

/** One SHA-256 a block, over its whole used length. */
const digestsOf = async (
  snapshot: StreamSnapshot,
  surroundings: Pick<Invocation<unknown>, 'signal' | 'progress'>,
): Promise<string[]> => {
  const { blocks, targetPageSize, totalBytes } = snapshot.setup;
  const buffer = new Uint8Array(DIGEST_BYTES);
  const digests: string[] = [];
  let hash = createHash('sha256');
  let offset = 0;
  await inSlices(surroundings, 'hashing', totalBytes, () => {
    const { index, usedLength } = blocks[digests.length]!;
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
