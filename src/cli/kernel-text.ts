// What people read of a guest's Linux kernel.

import { hex } from '../format/invalid.js';
import type { KernelAnswer } from '../format/linux/kernel-answer.js';
import { type KernelLog, type OpenedKernel, placeOf } from '../format/linux/linux-kernel.js';
import type { LogRecord } from '../format/linux/log-record.js';
import { formatCount, formatTable } from './format.js';
import { oneLine } from './safe-text.js';
import type { Colors } from './terminal.js';

/** `[    4.220695] `, as dmesg has it. */
const timePrefix = ({ timeNs }: LogRecord): string => {
  if (timeNs === undefined) {
    return '';
  }
  const microseconds = String((timeNs / 1000n) % 1_000_000n).padStart(6, '0');
  return `[${String(timeNs / 1_000_000_000n).padStart(5)}.${microseconds}] `;
};

const TAB_COLUMNS = 8;

/** Tabs would be shown as escapes; as spaces they look the same. */
const expandTabs = (line: string, startColumn: number): string => {
  const [first = '', ...rest] = line.split('\t');
  return rest.reduce(
    (text, part) => text + ' '.repeat(TAB_COLUMNS - ((startColumn + text.length) % TAB_COLUMNS)) + part,
    first,
  );
};

/** The log as dmesg prints it: each line of a record has its time. */
export const logLines = ({ records }: KernelLog): string => {
  const lines = records.flatMap((record) => {
    const prefix = timePrefix(record);
    return record.text.split('\n').map((line) => `${prefix}${oneLine(expandTabs(line, prefix.length))}\n`);
  });
  return lines.join('');
};

const logSummary = ({ records, damage }: KernelLog): string => {
  const [first, last] = [records[0], records.at(-1)].map((record) =>
    record === undefined ? '' : timePrefix(record).replace(/[[\] ]/g, ''),
  );
  const time = first === '' ? '' : `, from ${first} to ${last} s after boot`;
  return `${formatCount(records.length)} records${time}${damage === undefined ? '' : ', then damaged'}`;
};

/** Where the kernel is, each with its name. */
const placeRows = (opened: OpenedKernel): [name: string, value: string][] => {
  const { kaslrOffset, physicalBase, textVirtual, textAddress, pageTables, pagingLevels } = placeOf(opened);
  const known = (value: number | bigint | undefined): string => (value === undefined ? 'unknown' : hex(value));
  return [
    ['KASLR offset', known(kaslrOffset)],
    ['text', `${known(textVirtual)}, in memory at ${known(textAddress)}`],
    ['physical base', physicalBase < 0 ? `-${hex(-physicalBase)}` : hex(physicalBase)],
    ['page tables', `${known(pageTables)}, ${pagingLevels} levels`],
    ['VMCOREINFO', opened.foundBy === 'device' ? 'as the vmcoreinfo device knows it' : 'found in memory'],
  ];
};

/** The summary. Values are from the guest: `formatTable` keeps each in its line. */
export const kernelText = (answer: KernelAnswer, colors: Colors): string => {
  const { release, banner, commandLine, bootId, kernel, log, otherBanners, problems } = answer;
  const rows: [name: string, value: string | undefined][] = [
    ['release', colors.bold(release)],
    ['version', kernel?.uname.version],
    ['machine', kernel?.uname.machine],
    ['host name', kernel?.uname.nodename],
    ['banner', banner],
    ['boot line', commandLine],
    ['boot id', bootId],
    ...(kernel === undefined ? [] : placeRows(kernel)),
    ['log', log && logSummary(log)],
    ...otherBanners.map((text): [string, string] => ['also in memory', text]),
  ];
  const table = formatTable(
    rows.flatMap(([name, value]) => (value === undefined ? [] : [[name, value]])),
    ['left', 'left'],
  );
  return table + problems.map((problem) => `${colors.yellow('note:')} ${oneLine(problem)}\n`).join('');
};
