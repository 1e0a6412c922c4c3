// `ramferry convert IN OUT --to FORMAT`: a memory file in another form.
//
//   any memory file ──▶ Snapshot ──┬─▶ guest ─▶ MigrationSource ─┬─▶ StreamSink      stream        migrate-to-file.ts
//                                  │                             │   behind a head   libvirt       libvirt-head.ts
//                                  │                             └─▶ MappedRamSink   mapped-ram
//                                  └─▶ pages ────────┬─▶ a file for each RAM block   raw           raw.ts
//                                                    └─▶ one file ─┬─ by address     raw
//                                                                  ├─ ELF core       elf           elf.ts
//                                                                  ├─ LiME dump      lime          lime.ts
//                                                                  └─ compressed     kdump         kdump.ts
//   stream ──▶ MappedRamTarget                                                       mapped-ram    place-pages.ts
//
// Each way is loaded when it is gone: a gigabyte takes half a second, and loading them all a tenth of that.

import { type Command, Option } from 'commander';
import { SnapshotIndexer } from '../../format/index.js';
import type { LibvirtImage } from '../../format/libvirt/save-image.js';
import type { BlockPlaces } from '../../format/physical-map.js';
import { Capability } from '../../format/stream/constants.js';
import { RamferryError } from '../../memory/errors.js';
import { memoryFile, type OpenedContainer } from '../../memory-file/open-snapshot-file-node.js';
import { decideRun } from '../../memory-file/run-decision.js';
import { placesOption } from '../block-places.js';
import { NO_DIGEST_HELP, outputsWithSidecar, refuseForeignOutput } from '../digest-sidecar.js';
import { formatBytes, formatDuration, formatRate, formatTable } from '../format.js';
import { plural } from '../inspect-text.js';
import {
  type FileOptions,
  INDEX_HELP,
  indexWholeMemoryFile,
  openMemoryFile,
  pageSizeOption,
} from '../read-memory-file.js';
import { oneLine } from '../safe-text.js';
import { refuseUnorderedStdout } from '../stdout-output.js';
import { terminalColors } from '../terminal.js';
import type { Verb } from '../verb.js';
import type { Conversion, Converted, Written, WrittenCore } from './conversion.js';

const FORMATS = ['stream', 'mapped-ram', 'libvirt', 'raw', 'elf', 'kdump', 'lime'] as const;
type Format = (typeof FORMATS)[number];

/** Formats of guest memory alone, of all RAM blocks or one. */
const MEMORY_FORMATS: readonly Format[] = ['raw', 'elf', 'kdump', 'lime'];

interface ConvertOptions extends FileOptions {
  readonly to: Format;
  readonly block?: string;
  readonly at: BlockPlaces;
  readonly virtual: boolean;
  readonly byAddress: boolean;
  readonly like?: string;
  readonly digest: boolean;
}

const FORMAT_HELP = `
Formats:
  stream, mapped-ram  what QEMU loads: machine, RAM and device state, the latter byte for byte
  libvirt             what virsh restore loads: a save image, not packed. The domain is not in any other file: its XML
                      is taken from the image that --like names, or from the input where that is one.
  raw                 guest memory as it is: a folder with a file for each RAM block, or with --block one file
  raw --by-address    one file, in which the offset of a byte is its guest-physical address; holes are zero
  elf                 an ELF core for crash, drgn, gdb: with the registers of each x86 vCPU, if the file has a VM
                      description, and the VMCOREINFO of a Linux. gdb needs --virtual, and a guest that ran with
                      paging.
  kdump               a kdump-compressed dump for crash and drgn: each page packed with zlib, by as many threads as
                      there are cores, with the same besides memory; flattened, where the output is no file
  lime                a LiME dump, for Volatility and the like
By address, which is raw --by-address, elf, kdump and lime, for pc, q35, isapc and microvm: every RAM block at its guest-physical
address, or the one that --block names. RAM lies where the saved clock and the ACPI tables say; the address of a DIMM is not
in the file, and has to be given with --at. Memory of PCI devices is left out.
Files in the formats raw, elf and lime are sparse: zero pages take no space.
Next to a stream or mapped-ram file, OUT.digest says what is in it; verify and send check against that.`;

export const convert: Verb<ConvertOptions> = {
  configure: (command: Command) => {
    command
      .addOption(new Option('--to <format>', 'format of the output').choices(FORMATS).makeOptionMandatory())
      .option('--block <name>', `the RAM block to write; for ${listed(MEMORY_FORMATS)}`)
      .addOption(
        placesOption('where a RAM block lies that the file does not say; for formats with addresses, repeatable'),
      )
      .option('--virtual', 'with the virtual addresses that the vCPUs have mapped; for elf', false)
      .option('--by-address', 'one file, with every byte at its guest-physical address; for raw', false)
      .option('--like <image>', 'the libvirt save image whose domain the output is of; for libvirt')
      .option('--no-digest', NO_DIGEST_HELP)
      .addOption(pageSizeOption())
      .addHelpText('after', `${FORMAT_HELP}${INDEX_HELP}\nFrom a stream to mapped-ram: two bits for each page.`);
  },
  examples: [
    ['guest.save guest.mig --to stream', 'a libvirt save image as what qemu -incoming loads'],
    ['guest.mig guest.mapped --to mapped-ram', 'each page once, and at its place'],
    ['guest.mig guest.save --to libvirt --like old.save', 'then: virsh restore guest.save'],
    ['guest.mig pc.ram --to raw --block pc.ram', "the guest's memory, and nothing else"],
    ['guest.mig guest.phys --to raw --by-address', 'a byte for each guest-physical address'],
    ['guest.mig guest.core --to elf', 'then: crash vmlinux guest.core'],
    ['guest.mig guest.core --to elf --virtual', 'then: gdb vmlinux guest.core'],
    ['guest.mig guest.core --to elf --at dimm0=0x100000000', 'of a guest with a DIMM at 4 GiB'],
  ],

  files: ([input, out], { to, like, digest }) => ({
    reads: [memoryFile(input!).path, ...(like === undefined ? [] : [like])],
    writes: outputsWithSidecar(out!, digest && isQemus(to)),
  }),

  async run({ operands, options, signal, progress }) {
    const { to, block, like, at: places, byAddress, virtual } = options;
    const [input, out] = operands as [string, string];
    const digest = options.digest && isQemus(to);
    if (like !== undefined && to !== 'libvirt') {
      throw new RamferryError('usage', 'LIKE_OPTION', `A file in format ${to} has no domain of libvirt.`, {
        value: like,
        hint: '--like is for libvirt',
      });
    }
    if (block !== undefined && !MEMORY_FORMATS.includes(to)) {
      throw new RamferryError('usage', 'BLOCK_OPTION', `A file in format ${to} has all RAM blocks.`, {
        value: block,
        hint: `--block is for ${listed(MEMORY_FORMATS)}`,
      });
    }
    if (virtual && to !== 'elf') {
      throw new RamferryError('usage', 'VIRTUAL_OPTION', `A file in format ${to} has no virtual addresses.`, {
        hint: '--virtual is for elf',
      });
    }
    if (byAddress && to !== 'raw') {
      throw new RamferryError(
        'usage',
        'BY_ADDRESS_OPTION',
        `A file in format ${to} is laid out as the format wants it.`,
        {
          hint: '--by-address is for raw',
        },
      );
    }
    if (places.size > 0 && !hasAddresses(to, byAddress)) {
      const which = to === 'raw' ? 'A folder or file of RAM blocks' : `A file in format ${to}`;
      throw new RamferryError('usage', 'AT_OPTION', `${which} has no guest-physical addresses.`, {
        hint: `--at is for ${listed(['raw --by-address', ...MEMORY_FORMATS.filter((format) => format !== 'raw')])}`,
      });
    }
    if (to === 'mapped-ram') {
      refuseUnorderedStdout(out, to, 'name a file');
    }
    if (digest) {
      refuseForeignOutput(out);
    }
    const start = performance.now();
    const surroundings = { signal, progress };
    const container = await openMemoryFile(input, surroundings);
    const { file } = container;
    if (to === 'libvirt' && like === undefined && container.wrappings[0] !== 'libvirt') {
      container.close();
      throw new RamferryError('usage', 'LIKE_OPTION', `The domain of ${file} is not in it, and libvirt needs it.`, {
        file,
        hint: 'name an image of the same domain with --like; virsh save or managedsave makes one',
      });
    }
    let converted: Converted;
    if (to === 'mapped-ram' && holdsStream(container)) {
      const { placePages } = await import('./place-pages.js');
      try {
        converted = await placePages(container, out, options, surroundings);
      } finally {
        container.close();
      }
    } else {
      const { snapshot, libvirt, close } = await indexWholeMemoryFile(container, surroundings, {
        ...options,
        memoryOnly: to === 'raw' && !byAddress,
      });
      try {
        const conversion = {
          ...{ snapshot, libvirt, file, out, block, places, byAddress, virtual, digests: digest, surroundings },
        };
        const written = await (to === 'libvirt' ? writeImage(conversion, like ?? file) : write(to, conversion));
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

/** Whether it is a format of QEMU's own. */
const isQemus = (format: Format): boolean => format === 'stream' || format === 'mapped-ram';

/** Whether the bytes of guest memory have guest-physical addresses in it. */
const hasAddresses = (format: Format, byAddress: boolean): boolean =>
  format === 'raw' ? byAddress : MEMORY_FORMATS.includes(format);

const listed = (names: readonly string[]): string => `${names.slice(0, -1).join(', ')} and ${names.at(-1)}`;

/** A libvirt save image of the guest, with the domain of the image `like`. */
const writeImage = async (
  conversion: Conversion & { readonly libvirt: LibvirtImage | undefined },
  like: string,
): Promise<Written> => {
  const { snapshot, libvirt, file } = conversion;
  const { headLike } = await import('./libvirt-head.js');
  const { writeStream } = await import('./migrate-to-file.js');
  const wasRunning = libvirt?.wasRunning ?? decideRun(snapshot.summary, undefined, false).runs;
  return writeStream(conversion, headLike({ like, wasRunning }, file, snapshot.configuration.machine));
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

const write = async (format: Exclude<Format, 'libvirt'>, conversion: Conversion): Promise<Written> => {
  switch (format) {
    case 'raw': {
      const { writeRaw, writeRawByAddress } = await import('./raw.js');
      return conversion.byAddress ? writeRawByAddress(conversion) : writeRaw(conversion);
    }
    case 'elf':
      return (await import('./elf.js')).writeElf(conversion);
    case 'kdump':
      return (await import('./kdump.js')).writeKdump(conversion);
    case 'lime':
      return (await import('./lime.js')).writeLime(conversion);
    case 'stream':
      return (await import('./migrate-to-file.js')).writeStream(conversion);
    case 'mapped-ram':
      return (await import('./migrate-to-file.js')).writeMappedRam(conversion);
  }
};

const summary = (
  out: string,
  format: Format,
  { blocks, ranges, leftOut, core, fileBytes }: Written,
  ramBytes: number,
  milliseconds: number,
): string => {
  const colors = terminalColors(process.stdout);
  const hexadecimal = (value: number): string => `0x${value.toString(16)}`;
  const rows = [
    ['  memory', `${formatBytes(ramBytes)} in the input, ${plural(blocks.length, 'RAM block')} in the output`],
    ...(ranges ?? []).map(({ block, address, bytes }) => [
      '  addresses',
      `${hexadecimal(address)} to ${hexadecimal(address + bytes - 1)}  ${oneLine(block)}`,
    ]),
    ...(leftOut ?? []).map(({ block }) => ['  left out', oneLine(block)]),
    ...coreRows(core),
    ['  total time', `${formatDuration(milliseconds)}, ${formatRate((ramBytes * 1000) / Math.max(1, milliseconds))}`],
  ];
  return `${colors.bold(out)}: ${format}, ${colors.green('complete')}, ${formatBytes(fileBytes)} written\n\n${formatTable(rows, ['left', 'left'])}`;
};

const coreRows = (core: WrittenCore | undefined): string[][] =>
  core === undefined
    ? []
    : [
        ['  registers', core.cpus.length === 0 ? 'none' : plural(core.cpus.length, 'vCPU')],
        ['  VMCOREINFO', core.vmcoreinfoBytes === 0 ? 'none' : formatBytes(core.vmcoreinfoBytes)],
        ...(core.virtual === undefined
          ? []
          : [
              [
                '  virtual',
                `${plural(core.virtual.mappings, 'mapping')} of ${formatBytes(core.virtual.mappedBytes)}, ${formatBytes(core.virtual.unmappedBytes)} not mapped`,
              ],
            ]),
        ...core.notes.map((note) => ['  note', oneLine(note)]),
      ];
