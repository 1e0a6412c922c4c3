// `ramferry strings FILE`: the texts in a guest's memory, printed as they are found.

import { setImmediate as nextTurn } from 'node:timers/promises';
import { Option } from 'commander';
import type { Snapshot } from '../format/index.js';
import { type Match, MemorySearch } from '../format/search/memory-search.js';
import { SearchMemory } from '../format/search/search-memory.js';
import { LONGEST_TEXT, TextMatcher, type TextWidth } from '../format/search/text-matcher.js';
import { RamferryError } from '../memory/errors.js';
import { parseInteger } from './arguments.js';
import { placesOption } from './block-places.js';
import { type FileOptions, INDEX_HELP, pageSizeOption, readWholeMemoryFile } from './read-memory-file.js';
import { jsonLine, oneLine } from './safe-text.js';
import { addressText, offsetText, type SearchedOptions, searchedMemory } from './searched-memory.js';
import type { Invocation, Verb } from './verb.js';

interface StringsOptions extends FileOptions, SearchedOptions {
  readonly min: number;
  readonly encoding: TextWidth;
  readonly json?: true;
}

const ENCODINGS: readonly TextWidth[] = ['utf-8', 'utf-16le', 'utf-16be'];

/** Characters of output that are kept before they are printed. */
const PART = 256 * 1024;

export const strings: Verb<StringsOptions> = {
  configure: (command) =>
    command
      .option('--min <n>', 'fewest characters of a text', parseInteger(2, LONGEST_TEXT), 4)
      .addOption(new Option('--encoding <name>', 'how the ASCII is stored').choices(ENCODINGS).default('utf-8'))
      .option('--block <name>', 'only this RAM block')
      .addOption(placesOption())
      .addOption(pageSizeOption())
      .addHelpText(
        'after',
        '\nA text is printable ASCII and tabs, across pages and RAM blocks. In front of it stands its guest-physical address,\n' +
          `or, where that is not known, its RAM block and the offset in it.${INDEX_HELP}`,
      ),
  examples: [
    ['guest.mig | grep -i password', 'every text of at least four characters, with its address'],
    ['guest.mig --min 12 --encoding utf-16le', 'long ones, as Windows has them'],
    ['guest.mig --block pc.ram --json', 'for a program'],
  ],

  async run(invocation) {
    const { operands, options, signal, progress } = invocation;
    const [file] = operands as [string];
    const opened = await readWholeMemoryFile(file, { signal, progress }, { ...options, memoryOnly: true });
    try {
      const searched = searchedMemory(opened.snapshot, file, options);
      progress.finish();
      const memory = new SearchMemory();
      const matcher = new TextMatcher(memory, { encoding: options.encoding, least: options.min });
      const output = new Output(invocation, file, opened.snapshot);
      const task = new MemorySearch(opened.snapshot, searched.stretches, memory, matcher, {
        limit: Number.POSITIVE_INFINITY,
        isAlone: true,
        visit: (match) => output.add(match),
      });
      while (task.step() > 0 && (await output.flush())) {
        await nextTurn();
        signal.throwIfAborted();
      }
      await output.end({ count: task.count, notSearched: searched.notSearched });
      return { document: {}, text: '', failure: searched.failure };
    } catch (error) {
      throw error instanceof RamferryError && error.kind !== 'usage' ? error.with({ file }) : error;
    } finally {
      opened.close();
    }
  },
};

/** A line for each text, or the JSON document piece by piece: neither fits into memory for every guest. */
class Output {
  readonly #invocation: Invocation<StringsOptions>;
  readonly #snapshot: Snapshot;
  readonly #json: boolean;
  #text: string;
  #isFirst = true;

  constructor(invocation: Invocation<StringsOptions>, file: string, snapshot: Snapshot) {
    this.#invocation = invocation;
    this.#snapshot = snapshot;
    this.#json = invocation.options.json === true;
    this.#text = this.#json ? `{\n  "file": ${jsonLine(file)},\n  "strings": [` : '';
  }

  add(match: Match): void {
    const bytes = match.encoding === 'utf-8' ? match.bytes : match.bytes.filter((byte) => byte !== 0);
    const text = Buffer.from(bytes).toString('latin1');
    if (!this.#json) {
      const place = match.address === undefined ? oneLine(offsetText(match, this.#snapshot)) : addressText(match);
      this.#text += `${place}  ${text.replaceAll('\t', '\\t')}\n`;
      return;
    }
    const { address, block, offset } = match;
    const { name } = this.#snapshot.setup.blocks[block]!;
    this.#text += `${this.#isFirst ? '' : ','}\n    ${jsonLine({ address, block: name, offset, text })}`;
    this.#isFirst = false;
  }

  /** Prints what there is, once it is much. Resolves with false if nobody reads it any more. */
  async flush(most = PART): Promise<boolean> {
    if (this.#text.length < most) {
      return true;
    }
    const text = this.#text;
    this.#text = '';
    return this.#invocation.printPart(text);
  }

  async end(rest: object): Promise<void> {
    if (this.#json) {
      this.#text += `\n  ],\n  ${jsonLine(rest).slice(1, -1)}\n}\n`;
    }
    await this.flush(0);
  }
}
