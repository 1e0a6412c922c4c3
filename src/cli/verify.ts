// `ramferry verify FILE`: whether a memory file is whole. The stream reader checks every element, record and device
// section while it reads; here its verdict is put together with what only shows at the end: pages that nobody wrote,
// bytes that nobody reads.

import { MappedRamSnapshot } from '../format/mapped-ram/snapshot.js';
import type { StreamSummary } from '../format/stream/stream-handler.js';
import { RamferryError } from '../memory/errors.js';
import { pageIndex } from '../memory/units.js';
import type { DigestCheck } from '../memory-file/check-digest-sidecar-node.js';
import { checkDigest } from './digest-sidecar.js';
import { formatCount, formatTable } from './format.js';
import { pagesText, plural } from './inspect-text.js';
import { type MemoryDocument, memoryDocument } from './memory-document.js';
import {
  type FileOptions,
  INDEX_HELP,
  inSlices,
  type MemoryFile,
  pageSizeOption,
  readMemoryFile,
  type Surroundings,
} from './read-memory-file.js';
import { oneLine } from './safe-text.js';
import { terminalColors } from './terminal.js';
import type { Verb } from './verb.js';

/** Bytes of one read; with pages of up to 64 KiB, whole pages. */
const READ_BYTES = 1024 * 1024;

export interface Finding {
  /** An `error` makes the file invalid; a `warning` is odd, but QEMU loads it; a `note` is explained. */
  readonly severity: 'error' | 'warning' | 'note';
  readonly code: string;
  readonly message: string;
  readonly offset?: number | undefined;
}

export const verify: Verb<FileOptions> = {
  configure: (command) => command.addOption(pageSizeOption()).addHelpText('after', INDEX_HELP),
  examples: [
    ['guest.mig', 'is it whole? status 0 if so, 3 if not, 1 if its content is not what guest.mig.digest says'],
    ['guest.mig --json', 'findings with code, offset and severity'],
  ],

  async run({ operands, options, signal, progress }) {
    const opened = await readMemoryFile(operands[0]!, { signal, progress }, options);
    let digest: DigestCheck | undefined;
    try {
      const { snapshot, damage } = opened;
      digest =
        snapshot !== undefined && damage === undefined
          ? await checkDigest(opened, snapshot, { signal, progress })
          : undefined;
      if (digest === undefined || digest.notChecked !== undefined) {
        await readMappedPages(opened, { signal, progress });
      }
    } finally {
      opened.close();
    }
    const document = memoryDocument(opened);
    const damage = opened.damage ?? descriptionDamage(opened) ?? cutDescription(opened);
    const failure = damage ?? digest?.mismatches[0];
    const findings = [
      ...(damage === undefined ? [] : [errorFinding(damage)]),
      ...(digest === undefined ? [] : digestFindings(digest)),
      ...(opened.snapshot === undefined
        ? []
        : [...warnings(opened), ...unwrittenPages(document, opened.snapshot.summary)]),
    ];
    const { file, container, format, streamVersion, machine, ram } = document;
    const checked = {
      bytes: opened.readBytes,
      ofBytes: opened.streamBytes,
      ramSections: opened.soFar.ramSections,
      pageRecords: opened.soFar.pageRecords,
      deviceSections: document.devices.length,
    };
    return {
      document: {
        file,
        container,
        format,
        streamVersion,
        machine,
        valid: failure === undefined,
        digest: digest && {
          file: digest.file,
          checked: digest.notChecked === undefined,
          mismatches: digest.mismatchCount,
        },
        checked,
        ram,
        findings,
      },
      text: verdict(document, checked, digest, findings),
      failure,
    };
  },
};

/**
 * A stream was read to its last byte by now, of a mapped-ram file hardly any page. Their content is not checked by
 * anything, but a disk that cannot read them should not be found out by a guest.
 */
const readMappedPages = async ({ snapshot }: MemoryFile, surroundings: Surroundings): Promise<void> => {
  if (!(snapshot instanceof MappedRamSnapshot)) {
    return;
  }
  const { blocks, targetPageSize } = snapshot.setup;
  const presentBytes = blocks.reduce((sum, { index }) => sum + snapshot.counts(index).presentPages, 0) * targetPageSize;
  const buffer = new Uint8Array(READ_BYTES);
  let block = 0;
  let page = 0;
  await inSlices(surroundings, 'reading', presentBytes, () => {
    let run = snapshot.presentRun(block, pageIndex(page));
    while (run === undefined) {
      block += 1;
      page = 0;
      run = snapshot.presentRun(block, pageIndex(0));
    }
    const pages = Math.min(run.pageCount, READ_BYTES / targetPageSize);
    snapshot.readPages(block, run.firstPage, pages, buffer.subarray(0, pages * targetPageSize));
    page = run.firstPage + pages;
    return pages * targetPageSize;
  });
};

/** Content that contradicts the digest; all of it is counted, the first hundred places are named. */
const digestFindings = ({ notChecked, mismatches, mismatchCount }: DigestCheck): Finding[] => [
  ...(notChecked === undefined
    ? []
    : [{ severity: 'warning' as const, code: 'DIGEST_NOT_CHECKED', message: notChecked }]),
  ...mismatches.map(errorFinding),
  ...(mismatchCount > mismatches.length
    ? [
        {
          severity: 'note' as const,
          code: 'MORE_MISMATCHES',
          message: `${formatCount(mismatchCount - mismatches.length)} more places are not what the digest says.`,
        },
      ]
    : []),
];

/** QEMU looks at no description, so the reader takes a stream with a damaged one; but it is not what was written. */
const descriptionDamage = ({ file, snapshot }: MemoryFile): RamferryError | undefined =>
  snapshot?.summary.descriptionDamage?.with({
    file,
    hint: 'RAM and device state are whole, and QEMU loads them; what the devices hold cannot be shown by name.',
  });

/** The reader takes a stream that ends inside its description, as QEMU does; but it was longer once. */
const cutDescription = ({ file, startOffset, streamBytes, snapshot }: MemoryFile): RamferryError | undefined => {
  if (snapshot === undefined || snapshot.summary.complete) {
    return undefined;
  }
  const end = startOffset + streamBytes;
  return new RamferryError(
    'invalid',
    'STREAM_INCOMPLETE',
    `The stream ends inside its VM description, at byte ${end}.`,
    {
      file,
      offset: end,
      hint: 'RAM and device state are whole, and QEMU loads them; the file is cut all the same.',
    },
  );
};

const errorFinding = ({ code, message, offset }: RamferryError): Finding => ({
  severity: 'error',
  code,
  message,
  offset,
});

const warnings = ({ snapshot }: MemoryFile): Finding[] =>
  snapshot!.summary.warnings.map((message) => ({ severity: 'warning', code: 'UNUSUAL_STREAM', message }));

/**
 * In a mapped-ram file absent pages are as good as zero marks. Into a stream a source writes every page at least once, as content
 * or as a zero mark, except where it may leave pages out: RAM that virtio-mem has not plugged in, and what the guest hints as free
 * through virtio-balloon. Blocks that x-ignore-shared leaves out are warnings of the file's own. Anywhere else a page without a record was lost, or is left to the destination.
 */
const unwrittenPages = ({ format, blocks }: MemoryDocument, { devices }: StreamSummary): Finding[] => {
  if (format === 'mapped-ram') {
    return [];
  }
  const hasDevice = (part: string): boolean => devices.some(({ name }) => name.includes(part));
  const reasonFor = (block: string): string | undefined => {
    // The block is called after the device that it belongs to, and the backend: 0000:00:07.0/vmem0.
    if (block.includes('/') && hasDevice(`${block.slice(0, block.lastIndexOf('/'))}/virtio-mem`)) {
      return 'as virtio-mem allows for what is not plugged in';
    }
    return hasDevice('/virtio-balloon') ? 'as virtio-balloon allows for pages that the guest hints as free' : undefined;
  };
  return blocks
    .filter(({ absentPages, elsewhere }) => absentPages > 0 && elsewhere === undefined)
    .map(({ name, usedLength, pageSize, absentPages }) => {
      const reason = reasonFor(name);
      const what = `${formatCount(absentPages)} of ${formatCount(usedLength / pageSize)} pages of RAM block "${name}"`;
      return {
        severity: reason === undefined ? 'warning' : 'note',
        code: 'ABSENT_PAGES',
        message: `${what} are not in the file${reason === undefined ? ': the destination keeps what it has there' : `, ${reason}`}.`,
      };
    });
};

const digestText = (digest: DigestCheck | undefined): string => {
  if (digest === undefined) {
    return 'none: whether the content is what was saved is not known';
  }
  if (digest.notChecked !== undefined) {
    return 'not checked';
  }
  return digest.mismatchCount === 0
    ? 'the content is what was saved'
    : `${formatCount(digest.mismatchCount)} ${digest.mismatchCount === 1 ? 'part is' : 'parts are'} not what was saved`;
};

const verdict = (
  { file, ram, devices }: MemoryDocument,
  checked: {
    readonly bytes: number;
    readonly ofBytes: number;
    readonly ramSections: number;
    readonly pageRecords: number;
  },
  digest: DigestCheck | undefined,
  findings: readonly Finding[],
): string => {
  const colors = terminalColors(process.stdout);
  const isValid = !findings.some(({ severity }) => severity === 'error');
  const warningCount = findings.filter(({ severity }) => severity === 'warning').length;
  const state = !isValid
    ? colors.red('not valid')
    : warningCount === 0
      ? colors.green('valid')
      : `${colors.green('valid')}, ${colors.yellow(`${plural(warningCount, 'warning')}`)}`;
  const rows = [
    ['  read', `${formatCount(checked.bytes)} of ${formatCount(checked.ofBytes)} bytes`],
    ['  RAM', `${plural(checked.ramSections, 'section')}, ${plural(checked.pageRecords, 'page record')}`],
    ...(ram === undefined ? [] : [['  pages', pagesText(ram, ram.pageSize)]]),
    ['  device state', plural(devices.length, 'section')],
    ['  digest', digestText(digest)],
  ];
  const colored = { error: colors.red, warning: colors.yellow, note: colors.dim };
  // The first error follows on stderr.
  const firstError = findings.find(({ severity }) => severity === 'error');
  const lines = findings
    .filter((finding) => finding !== firstError)
    .map(({ severity, message }) => `${colored[severity](`${severity}:`)} ${oneLine(message)}\n`);
  return `${colors.bold(file)}: ${state}\n\n${formatTable(rows, ['left', 'left'])}${lines.length > 0 ? '\n' : ''}${lines.join('')}`;
};
