// `ramferry kernel FILE`: which Linux kernel a saved guest runs, where it is, and its log.

import { hex } from '../format/invalid.js';
import { type KernelAnswer, kernelAnswer } from '../format/linux/kernel-answer.js';
import { type KernelLog, type OpenedKernel, placeOf } from '../format/linux/linux-kernel.js';
import { RamferryError } from '../memory/errors.js';
import { kernelText, logLines } from './kernel-text.js';
import { type FileOptions, INDEX_HELP, inSlices, pageSizeOption, readWholeMemoryFile } from './read-memory-file.js';
import { terminalColors } from './terminal.js';
import type { Verb } from './verb.js';

interface KernelOptions extends FileOptions {
  readonly log?: true;
}

export const kernel: Verb<KernelOptions> = {
  configure: (command) =>
    command
      .option('--log', "the kernel's log as dmesg prints it, and nothing else")
      .addOption(pageSizeOption())
      .addHelpText(
        'after',
        '\nOf Linux guests. Release and boot line are found in any; where the kernel is and its log, in x86-64 guests whose\n' +
          `kernel has VMCOREINFO, which is every one that supports kdump.${INDEX_HELP}`,
      ),
  examples: [
    ['guest.mig', 'release, boot line, where the kernel is in memory, how long its log is'],
    ['guest.mig --log', 'what dmesg would have printed'],
    ['guest.mig --log --json', 'the same for a program, with times and levels'],
  ],

  async run({ operands, options, signal, progress }) {
    const [file] = operands as [string];
    const opened = await readWholeMemoryFile(file, { signal, progress }, options);
    try {
      const answer = await kernelAnswer(opened.snapshot, (scan) =>
        inSlices({ signal, progress }, 'searching', scan.totalBytes, () => scan.advance()),
      );
      if (options.log !== true) {
        return { document: kernelDocument(file, answer), text: kernelText(answer, terminalColors(process.stdout)) };
      }
      const { log } = answer;
      if (log === undefined || log.records.length === 0) {
        throw log?.damage ?? new RamferryError('failed', 'NO_KERNEL_LOG', answer.problems.join(' '));
      }
      return {
        document: { ...kernelDocument(file, answer), lines: log.records.map(lineDocument) },
        text: logLines(log),
        failure: log.damage?.with({ file }),
      };
    } catch (error) {
      throw error instanceof RamferryError && error.kind !== 'usage' ? error.with({ file }) : error;
    } finally {
      opened.close();
    }
  },
};

const seconds = (timeNs: bigint | undefined): number | undefined =>
  timeNs === undefined ? undefined : Number(timeNs / 1000n) / 1e6;

const lineDocument = ({ timeNs, level, facility, text }: KernelLog['records'][number]): object => ({
  seconds: seconds(timeNs),
  level,
  facility,
  text,
});

const placeDocument = (opened: OpenedKernel): object => {
  const { kaslrOffset, physicalBase, textVirtual, textAddress, pageTables, pagingLevels } = placeOf(opened);
  const text = (value: number | bigint | undefined): string | undefined =>
    value === undefined ? undefined : hex(value);
  return {
    kaslrOffset: text(kaslrOffset),
    physicalBase: physicalBase < 0 ? `-${hex(-physicalBase)}` : hex(physicalBase),
    text: { virtual: text(textVirtual), address: text(textAddress) },
    pageTables: text(pageTables),
    pagingLevels,
  };
};

/** Numbers of 64 bits are text: JSON's would lose digits. */
const kernelDocument = (file: string, { release, banner, commandLine, bootId, ...answer }: KernelAnswer): object => {
  const { kernel: found, log, otherBanners, problems } = answer;
  return {
    ...{ file, release },
    ...(found && { ...found.uname, buildId: found.memory.info.value('BUILD-ID') }),
    ...{ banner, commandLine, bootId },
    ...(found && { vmcoreinfo: found.foundBy, ...placeDocument(found) }),
    ...(log && {
      log: {
        format: log.format,
        records: log.records.length,
        firstSeconds: seconds(log.records[0]?.timeNs),
        lastSeconds: seconds(log.records.at(-1)?.timeNs),
      },
    }),
    otherBanners,
    problems,
  };
};
