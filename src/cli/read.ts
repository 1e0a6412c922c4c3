// `ramferry read FILE ADDRESS…`: the bytes at places of a guest's memory.

import { InvalidArgumentError } from 'commander';
import { openOutputFile } from '../channel/output-file-channel-node.js';
import type { BlockPlaces } from '../format/index.js';
import { RamferryError } from '../memory/errors.js';
import { parseInteger, parseSize } from './arguments.js';
import { placesOption } from './block-places.js';
import { type GuestPlace, GuestPlaces } from './guest-place.js';
import { hexdump } from './hexdump.js';
import { type FileOptions, INDEX_HELP, pageSizeOption, readWholeMemoryFile } from './read-memory-file.js';
import { oneLine } from './safe-text.js';
import { isStdout, openStdout, STDOUT } from './stdout-output.js';
import { type Colors, terminalColors } from './terminal.js';
import type { Verb } from './verb.js';

interface ReadOptions extends FileOptions {
  /** Without it as much of 256 bytes as there is. */
  readonly length?: number;
  readonly string?: true;
  readonly virtual?: true;
  readonly cpu?: number;
  readonly out?: string;
  readonly at: BlockPlaces;
}

const DEFAULT_LENGTH = 256;

/** Most bytes of one answer: a hexdump is five times as long. */
const MOST_BYTES = 64 * 1024 * 1024;
const MOST_SHOWN = 4 * 1024 * 1024;
const MOST_CPUS = 2 ** 20;

/** Longest text that is looked for the end of. */
const MOST_TEXT = 64 * 1024;

/** Bytes read at a time where nobody knows how much there is. */
const STEP = 64;

export const read: Verb<ReadOptions> = {
  configure: (command) =>
    command
      .option(
        '--length <bytes>',
        'how many bytes from each address on; without it 256, or what there is up to the end of the memory',
        parseLength,
      )
      .option('--string', 'text up to the next zero byte, in place of a hexdump')
      .option('--virtual', 'addresses are virtual ones, by the page tables of vCPU 0')
      .option('--cpu <n>', 'the same, by those of vCPU N', parseInteger(0, MOST_CPUS))
      .option('--out <file>', 'the bytes themselves, one address after the other, to a file; - is stdout')
      .addOption(placesOption())
      .addOption(pageSizeOption())
      .addHelpText(
        'after',
        '\nADDRESS is guest-physical (0x1000, 4096), or an offset in a RAM block (pc.ram+0x1000).\n' +
          `What the guest has no memory at is an error, and so is what the file leaves out.${INDEX_HELP}`,
      ),
  examples: [
    ['guest.mig 0x100000', 'a hexdump of 256 bytes'],
    ['guest.mig 0xffffffff81000000 --virtual --length 64', 'by the page tables of the first vCPU'],
    ['guest.mig vga.vram+0 --length 16M --out screen.raw', 'all memory of a device, as a file'],
    ['guest.mig 0x745910 --string --json', 'a text, for a program'],
  ],
  files: ([file], { out }) => ({
    reads: [file!],
    writes: out === undefined ? [] : [isStdout(out) ? STDOUT : out],
  }),

  async run({ operands, options, signal, progress }) {
    const [file, ...addresses] = operands as [string, ...string[]];
    checkOptions(options, addresses.length);
    const opened = await readWholeMemoryFile(file, { signal, progress }, { ...options, memoryOnly: true });
    try {
      const places = new GuestPlaces(opened.snapshot, {
        at: options.at,
        cpu: options.cpu ?? (options.virtual ? 0 : undefined),
      });
      const answers = addresses.map((address) => answer(places, address, options));
      const failure = answers.find(({ error }) => error !== undefined)?.error?.with({ file });
      const { out } = options;
      if (out !== undefined) {
        if (failure !== undefined) {
          throw failure;
        }
        const bytes = Buffer.concat(answers.map((each) => each.bytes));
        await writeBytes(out, bytes);
        return {
          document: { file, out, bytes: bytes.length },
          text: isStdout(out) ? '' : `${out}: ${bytes.length} bytes\n`,
        };
      }
      const colors = terminalColors(process.stdout);
      return {
        document: { file, reads: answers.map((each) => answerDocument(each, options)) },
        // The failure of the only one says it all.
        text:
          failure !== undefined && answers.length === 1
            ? ''
            : answers.map((each) => answerText(each, options, colors)).join('\n'),
        failure,
      };
    } catch (error) {
      throw error instanceof RamferryError && error.file === undefined ? error.with({ file }) : error;
    } finally {
      opened.close();
    }
  },
};

const parseLength = (text: string): number => {
  const length = parseSize(text);
  if (length === 0) {
    throw new InvalidArgumentError('It must be at least 1.');
  }
  return length;
};

const checkOptions = ({ length = DEFAULT_LENGTH, string, out }: ReadOptions, addresses: number): void => {
  if (string && out !== undefined) {
    throw new RamferryError('usage', 'OPTION_CONFLICT', '--string is for people, and --out for bytes as they are.', {
      hint: 'leave out one of --string and --out',
    });
  }
  const most = out === undefined ? MOST_SHOWN : MOST_BYTES;
  const bytes = string ? 0 : length * addresses;
  if (bytes > most) {
    throw new RamferryError(
      'usage',
      'TOO_MUCH_MEMORY',
      `${bytes} bytes were asked for, and ${most} can be read at once.`,
      {
        value: bytes,
        hint:
          out === undefined
            ? '--out writes more to a file'
            : 'a whole RAM block, or all memory, is what convert --to raw writes',
      },
    );
  }
};

interface Answer {
  readonly asked: string;
  readonly start: bigint;
  readonly where: GuestPlace['where'];
  readonly bytes: Uint8Array;
  readonly error?: RamferryError;
}

/** Of several places, one that cannot be read does not keep the others from being shown. */
const answer = (places: GuestPlaces, asked: string, { length, string }: ReadOptions): Answer => {
  try {
    const place = places.find(asked);
    const { start, where } = place;
    if (string) {
      return { asked, start, where, bytes: textAt(place) };
    }
    if (length === undefined) {
      return { asked, start, where, bytes: bytesAt(place) };
    }
    const bytes = new Uint8Array(length);
    place.read(bytes, 0);
    return { asked, start, where, bytes };
  } catch (error) {
    if (error instanceof RamferryError && error.kind === 'failed') {
      return { asked, start: 0n, where: {}, bytes: new Uint8Array(), error };
    }
    throw error;
  }
};

/** What is in front of the next zero byte. */
const textAt = (place: GuestPlace): Uint8Array => {
  const text = new Uint8Array(MOST_TEXT);
  for (let length = 0; length < MOST_TEXT; ) {
    const piece = nextPiece(place, text, length);
    place.read(piece, length);
    const end = piece.indexOf(0);
    if (end >= 0) {
      return text.subarray(0, length + end);
    }
    length += piece.length;
  }
  return text;
};

/** The default length, or less where the memory ends before: nobody has asked for what is behind it. */
const bytesAt = (place: GuestPlace): Uint8Array => {
  const bytes = new Uint8Array(DEFAULT_LENGTH);
  for (let length = 0; length < DEFAULT_LENGTH; ) {
    const piece = nextPiece(place, bytes, length);
    try {
      place.read(piece, length);
    } catch (error) {
      if (length > 0 && error instanceof RamferryError && error.kind === 'failed') {
        return bytes.subarray(0, length);
      }
      throw error;
    }
    length += piece.length;
  }
  return bytes;
};

/** Pieces end where pages do, so that no page is asked for that is not needed. */
const nextPiece = ({ start }: GuestPlace, bytes: Uint8Array, length: number): Uint8Array => {
  const within = Number((start + BigInt(length)) % BigInt(STEP));
  return bytes.subarray(length, Math.min(bytes.length, length + STEP - within));
};

const textOf = (bytes: Uint8Array): string => new TextDecoder('utf-8', { ignoreBOM: true }).decode(bytes);

const answerDocument = ({ asked, where, bytes, error }: Answer, { string }: ReadOptions): object =>
  error !== undefined
    ? { asked, error: { code: error.code, message: error.message } }
    : { asked, ...where, ...(string ? { text: textOf(bytes) } : { hex: Buffer.from(bytes).toString('hex') }) };

const answerText = (
  { asked, start, where, bytes, error }: Answer,
  { string }: ReadOptions,
  { bold, red }: Colors,
): string => {
  if (error !== undefined) {
    return `${bold(asked)}\n  ${red(oneLine(error.message))}\n`;
  }
  const { address, block, offset } = where;
  const places = [
    ...(address === undefined ? [] : [`address 0x${address.toString(16)}`]),
    ...(block === undefined ? [] : [`${oneLine(block)}+0x${offset!.toString(16)}`]),
  ];
  const body = string ? oneLine(textOf(bytes)) : hexdump(bytes, start, 12).join('\n');
  return `${bold(asked)}  ${places.join(', ')}\n${body}\n`;
};

const writeBytes = async (out: string, bytes: Uint8Array): Promise<void> => {
  const channel = isStdout(out) ? openStdout() : await openOutputFile(out, out, 0);
  await new Promise<void>((resolve, reject) => {
    channel.write(bytes, (error) => (error === undefined ? resolve() : reject(error)));
  });
  await channel.end();
};
