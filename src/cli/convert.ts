// `ramferry convert IN OUT --to FORMAT`: a memory file in another form.
//
//   any memory file ──▶ Snapshot ──┬─▶ guest ─▶ MigrationSource ─┬─▶ StreamSink      stream
//                                  │                             └─▶ MappedRamSink   mapped-ram
//                                  └─▶ copySparsely ─┬─▶ a file for each RAM block   raw
//                                                    └─▶ one ELF core                elf
//   stream ──▶ MappedRamTarget   mapped-ram: a page that comes again replaces itself, so one pass is enough

import { type Command, Option } from 'commander';
import { channelError } from '../channel/channel-error.js';
import { openFile } from '../channel/descriptor-channel-node.js';
import { OutputFile } from '../channel/output-file-node.js';
import { openPositionedFile } from '../channel/positioned-file-node.js';
import { writeFully } from '../channel/write-fully-node.js';
import { MappedRamTarget } from '../destination/mapped-ram-target.js';
import { elfCore, type PhysicalRange, pcMemoryLayout } from '../format/elf-core.js';
import { type Snapshot, SnapshotIndexer } from '../format/index.js';
import { RamDigest } from '../format/ram-digest.js';
import type { StreamConfiguration } from '../format/stream/configuration.js';
import { Capability } from '../format/stream/constants.js';
import type { DeviceTail } from '../format/stream/device-tail.js';
import { StreamFileReader } from '../format/stream/stream-file-reader.js';
import type { RamSetup, ReadRamBlock, StreamHandler, StreamSummary } from '../format/stream/stream-handler.js';
import type { OpenedContainer } from '../guest/open-snapshot-file-node.js';
import { SnapshotGuest, type SnapshotGuestOptions } from '../guest/snapshot-guest.js';
import { copySparsely } from '../guest/sparse-copy-node.js';
import { RamferryError } from '../memory/errors.js';
import { MappedRamSink } from '../source/mapped-ram-sink.js';
import { MigrationSource } from '../source/migration-source.js';
import type { PageSink } from '../source/page-sink.js';
import { defaultParameters } from '../source/parameters.js';
import { StreamSink } from '../source/stream-sink.js';
import { hasSidecar, NO_DIGEST_HELP, writeSidecar } from './digest-sidecar.js';
import { formatBytes, formatDuration, formatRate, formatTable } from './format.js';
import { plural } from './inspect-text.js';
import { progressOf } from './migration-report.js';
import { OutputFolder } from './output-folder.js';
import {
  damageAtOnce,
  INDEX_HELP,
  indexWholeMemoryFile,
  inSlices,
  openMemoryFile,
  type Surroundings,
} from './read-memory-file.js';
import { terminalColors } from './terminal.js';
import type { Verb } from './verb.js';

const FORMATS = ['stream', 'mapped-ram', 'raw', 'elf'] as const;
type Format = (typeof FORMATS)[number];

interface ConvertOptions {
  readonly to: Format;
  readonly block?: string;
  readonly digest: boolean;
}

const FORMAT_HELP = `
Formats:
  stream, mapped-ram  what QEMU loads: machine, RAM and device state, the latter byte for byte
  raw                 guest memory as it is: a folder with a file for each RAM block, or with --block one file
  elf                 an ELF core for gdb and the like, by guest-physical address. Which address a page has is not in
                      the file: it is taken from the machine type, pc or q35, and the size of RAM as QEMU lays it out
                      without max-ram-below-4g. Only the block pc.ram, or what --block names, is in it; no registers.
Files in the formats raw and elf are sparse: zero pages take no space.
Next to a stream or mapped-ram file, OUT.digest says what is in it; verify and send check against that.`;

export const convert: Verb<ConvertOptions> = {
  configure: (command: Command) => {
    command
      .addOption(new Option('--to <format>', 'format of the output').choices(FORMATS).makeOptionMandatory())
      .option('--block <name>', 'the RAM block to write; for raw and elf')
      .option('--no-digest', NO_DIGEST_HELP)
      .addHelpText('after', `${FORMAT_HELP}${INDEX_HELP}\nFrom a stream to mapped-ram: two bits for each page.`);
  },
  examples: [
    ['guest.save guest.mig --to stream', 'a libvirt save image as what qemu -incoming loads'],
    ['guest.mig guest.mapped --to mapped-ram', 'each page once, and at its place'],
    ['guest.mig pc.ram --to raw --block pc.ram', "the guest's memory, and nothing else"],
    ['guest.mig guest.core --to elf', 'then: gdb vmlinux guest.core'],
  ],

  async run({ operands, options: { to, block, digest }, signal, progress }) {
    const [input, out] = operands as [string, string];
    if (block !== undefined && (to === 'stream' || to === 'mapped-ram')) {
      throw new RamferryError('usage', 'BLOCK_OPTION', `A file in format ${to} has all RAM blocks.`, {
        value: block,
        hint: '--block is for raw and elf',
      });
    }
    const start = performance.now();
    const surroundings = { signal, progress };
    const container = await openMemoryFile(input, surroundings);
    const { file } = container;
    let converted: Converted;
    if (to === 'mapped-ram' && holdsStream(container)) {
      try {
        converted = await placePages(container, out, digest, surroundings);
      } finally {
        container.close();
      }
    } else {
      const { snapshot, close } = await indexWholeMemoryFile(container, surroundings);
      try {
        const written = await writers[to]({ snapshot, file, out, block, digests: digest, surroundings });
        converted = { configuration: snapshot.configuration, setup: snapshot.setup, written };
      } finally {
        close();
      }
    }
    const { configuration, setup, written } = converted;
    const { machine } = configuration;
    const { totalBytes } = setup;
    const milliseconds = performance.now() - start;
    const document = { file, out, format: to, machine, ram: { totalBytes }, ...written, 'total-time': milliseconds };
    return { document, text: summary(out, to, written, totalBytes, milliseconds) };
  },
};

/** What was read, and what was written. */
interface Converted {
  readonly configuration: StreamConfiguration;
  readonly setup: RamSetup;
  readonly written: Written;
}

interface Conversion {
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
interface Written {
  readonly blocks: readonly { readonly name: string; readonly usedLength: number; readonly file?: string }[];
  /** Of an ELF core: which bytes of the block are at which guest-physical address. */
  readonly ranges?: readonly PhysicalRange[];
  readonly fileBytes: number;
  /** The sidecar. */
  readonly digest?: string;
}

const nameAndLength = ({ name, usedLength }: ReadRamBlock): { name: string; usedLength: number } => ({
  name,
  usedLength,
});

/** Through the engine, as any other guest. */
const migrate = async (
  { snapshot, file, surroundings }: Conversion,
  sink: PageSink,
  options: SnapshotGuestOptions = {},
): Promise<Written> => {
  const { signal, progress } = surroundings;
  const source = new MigrationSource({
    guest: new SnapshotGuest(snapshot, file, options),
    sink,
    parameters: { ...defaultParameters, maxBandwidth: 0 },
    onProgress: (report) => progress.update({ ...progressOf(report), phase: 'converting', iteration: undefined }),
  });
  const cancel = (): void => source.cancel();
  signal.addEventListener('abort', cancel);
  const { status } = await source.run();
  signal.removeEventListener('abort', cancel);
  if (status !== 'completed') {
    throw source.error ?? signal.reason;
  }
  return { blocks: snapshot.setup.blocks.map(nameAndLength), fileBytes: sink.transferred };
};

const writeStream = async (conversion: Conversion): Promise<Written> => {
  const output = OutputFile.open(conversion.out);
  try {
    const channel = await openFile(conversion.out, output.currentPath, 'write', 0);
    const digest = conversion.digests ? new RamDigest(conversion.snapshot.setup.blocks) : undefined;
    const written = await migrate(conversion, new StreamSink(channel, { returnPath: false }), { digest });
    conversion.surroundings.progress.update({ phase: 'syncing the file' });
    await output.commit();
    return { ...written, ...(await sidecarOf(conversion.out, savedState(conversion), { digest })) };
  } finally {
    output.abort();
  }
};

/** The sidecar of a file that is there, if a digest was made. */
const sidecarOf = async (
  out: string,
  { configuration, tail }: { readonly configuration: StreamConfiguration; readonly tail: DeviceTail },
  { digest, fingerprint }: { readonly digest: RamDigest | undefined; readonly fingerprint?: string | undefined },
): Promise<Pick<Written, 'digest'>> =>
  digest !== undefined && hasSidecar(out)
    ? { digest: await writeSidecar(out, { configuration, tail, fingerprint }, digest) }
    : {};

/** What the engine has carried over, byte for byte. */
const savedState = ({
  snapshot,
}: Conversion): { readonly configuration: StreamConfiguration; readonly tail: DeviceTail } => ({
  configuration: snapshot.configuration,
  tail: snapshot.summary.tail,
});

/** The sink itself commits the file. */
const writeMappedRam = async (conversion: Conversion): Promise<Written> => {
  // A thread that writes, and so much room that reading goes on meanwhile: a third less time than one after the other.
  const file = await openPositionedFile(conversion.out, { channels: 1 });
  try {
    const sink = new MappedRamSink(file, { digests: conversion.digests });
    const written = await migrate(conversion, sink, { windows: 8 });
    return { ...written, ...(await sidecarOf(conversion.out, savedState(conversion), sink)) };
  } finally {
    file.abort();
  }
};

/** Whether pages follow each other in it as records. */
const holdsStream = ({ readAt, sizeBytes, file, startOffset }: OpenedContainer): boolean => {
  const indexer = new SnapshotIndexer(readAt, sizeBytes, { file, startOffset });
  try {
    indexer.advance();
  } catch {
    // Whoever reads it next says so.
  }
  return indexer.soFar.configuration?.capabilities.includes(Capability.MAPPED_RAM) === false;
};

/** Keeps what a stream holds besides pages. */
class StreamTarget extends MappedRamTarget implements StreamHandler {
  read: StreamConfiguration | undefined;
  setup: RamSetup | undefined;
  summary: StreamSummary | undefined;

  override configuration(configuration: StreamConfiguration): void {
    super.configuration(configuration);
    this.read = configuration;
  }

  override ramSetup(setup: RamSetup): void {
    super.ramSetup(setup);
    this.setup = setup;
  }

  end(summary: StreamSummary): void {
    this.summary = summary;
  }
}

/** The pages of a stream go to their places while it is read. */
const placePages = async (
  container: OpenedContainer,
  out: string,
  digests: boolean,
  surroundings: Surroundings,
): Promise<Converted> => {
  const { readAt, sizeBytes, file, startOffset } = container;
  const damage = damageAtOnce(container);
  if (damage !== undefined) {
    throw damage;
  }
  const output = await openPositionedFile(out, { channels: 1 });
  try {
    const target = new StreamTarget(output, { digests });
    const reader = new StreamFileReader(target, readAt, sizeBytes, { file, startOffset });
    await inSlices(surroundings, 'converting', sizeBytes - startOffset, () => reader.advance());
    reader.finish();
    await target.finish();
    const configuration = target.read!;
    const setup = target.setup!;
    const { tail } = target.summary!;
    target.writeDevices(tail);
    surroundings.progress.update({ phase: 'syncing the file' });
    await output.commit();
    const sidecar = await sidecarOf(out, { configuration, tail }, target);
    const blocks = setup.blocks.map(nameAndLength);
    return { configuration, setup, written: { blocks, fileBytes: target.fileBytes, ...sidecar } };
  } finally {
    output.abort();
  }
};

/** @throws RamferryError `usage`, naming the blocks that there are */
const blockNamed = ({ setup }: Snapshot, name: string, file: string): ReadRamBlock => {
  const block = setup.blocks.find((candidate) => candidate.name === name);
  if (block === undefined) {
    const names = setup.blocks.map((candidate) => candidate.name).join(', ');
    throw new RamferryError('usage', 'NO_SUCH_BLOCK', `${file} has no RAM block "${name}".`, {
      file,
      value: name,
      hint: `its RAM blocks are: ${names}`,
    });
  }
  return block;
};

/** What the file of a block is called: characters that are no good in file names stand as %XX, so names stay apart. */
export const rawFileName = (block: string): string =>
  `${block.replace(/[^\w@.:-]/g, (character) => `%${character.charCodeAt(0).toString(16).toUpperCase().padStart(2, '0')}`)}.raw`;

const writeRawFolder = async ({ snapshot, out, surroundings }: Conversion): Promise<Written> => {
  const folder = OutputFolder.open(out);
  try {
    const blocks = snapshot.setup.blocks.map((block) => ({ ...nameAndLength(block), file: rawFileName(block.name) }));
    const copies = blocks.map(({ file }, block) => ({ block, descriptor: folder.create(file), file, position: 0 }));
    const fileBytes = await copySparsely(snapshot, copies, (...slice) => inSlices(surroundings, ...slice));
    surroundings.progress.update({ phase: 'syncing the files' });
    folder.commit();
    return { blocks, fileBytes };
  } finally {
    folder.abort();
  }
};

/** One block as one file, with `head` before it. */
const writeBlock = async (
  { snapshot, out, surroundings }: Conversion,
  block: ReadRamBlock,
  head: Uint8Array,
  position: number,
): Promise<Written> => {
  const output = OutputFile.open(out);
  const { descriptor } = output;
  try {
    try {
      writeFully(descriptor, head, 0, head.length, 0);
    } catch (error) {
      throw channelError(error, 'write', out);
    }
    const copies = [{ block: block.index, descriptor, file: out, position }];
    const ramBytes = await copySparsely(snapshot, copies, (...slice) => inSlices(surroundings, ...slice));
    surroundings.progress.update({ phase: 'syncing the file' });
    await output.commit();
    return { blocks: [nameAndLength(block)], fileBytes: head.length + ramBytes };
  } finally {
    output.abort();
  }
};

const writeRaw = (conversion: Conversion): Promise<Written> =>
  conversion.block === undefined
    ? writeRawFolder(conversion)
    : writeBlock(conversion, blockNamed(conversion.snapshot, conversion.block, conversion.file), new Uint8Array(), 0);

const writeElf = async (conversion: Conversion): Promise<Written> => {
  const { snapshot, file, block: name = 'pc.ram' } = conversion;
  const { machine } = snapshot.configuration;
  const block = blockNamed(snapshot, name, file);
  const ranges = pcMemoryLayout(machine, block.usedLength);
  const { head, ramOffset } = elfCore(machine, ranges);
  return { ...(await writeBlock(conversion, block, head, ramOffset)), ranges };
};

const writers: Readonly<Record<Format, (conversion: Conversion) => Promise<Written>>> = {
  stream: writeStream,
  'mapped-ram': writeMappedRam,
  raw: writeRaw,
  elf: writeElf,
};

const summary = (
  out: string,
  format: Format,
  { blocks, ranges, fileBytes }: Written,
  ramBytes: number,
  milliseconds: number,
): string => {
  const colors = terminalColors(process.stdout);
  const hexadecimal = (value: number): string => `0x${value.toString(16)}`;
  const rows = [
    ['  memory', `${formatBytes(ramBytes)} in the input, ${plural(blocks.length, 'RAM block')} in the output`],
    ...(ranges ?? []).map(({ address, bytes }) => [
      '  addresses',
      `${hexadecimal(address)} to ${hexadecimal(address + bytes - 1)}`,
    ]),
    ['  total time', `${formatDuration(milliseconds)}, ${formatRate((ramBytes * 1000) / Math.max(1, milliseconds))}`],
  ];
  return `${colors.bold(out)}: ${format}, ${colors.green('complete')}, ${formatBytes(fileBytes)} written\n\n${formatTable(rows, ['left', 'left'])}`;
};
