// What a file is that is not a migration stream, as far as its first bytes say. People keep guest memory in many
// wrappings, and "bad magic" helps none of them.

import { RamferryError } from '../memory/errors.js';
import { shellCommand } from '../memory/shell-command.js';
import { latin1 } from './bytes.js';

/** Bytes that `foreignFile` wants to see, fewer only if the file has no more. */
export const FILE_HEAD_BYTES = 4096;

interface Signature {
  /** Bytes as text, one character each. */
  readonly magic: string;
  readonly code: string;
  readonly what: string;
  readonly hint: Hint;
}

/** What to do about a file, which is named in it where it is a command. */
type Hint = string | ((file: string) => string);

const compressed = (magic: string, name: string): Signature => ({
  magic,
  code: 'COMPRESSED_FILE',
  what: `${name}-compressed data`,
  hint: (file) => `Decompress it first: ${shellCommand`${name} -dc ${file} > ${file}.mig`}`,
});

const CORE_HINT =
  'It holds memory, but no device state that a QEMU could resume from; crash and gdb read it. Save with migrate instead.';

const signatures: readonly Signature[] = [
  compressed('\x1f\x8b', 'gzip'),
  compressed('\x28\xb5\x2f\xfd', 'zstd'),
  compressed('\xfd7zXZ\0', 'xz'),
  compressed('BZh', 'bzip2'),
  compressed('\x89LZO\0\r\n\x1a\n', 'lzop'),
  compressed('\x04\x22\x4d\x18', 'lz4'),
  {
    magic: 'QFI\xfb',
    code: 'DISK_IMAGE',
    what: 'a qcow2 disk image',
    hint: 'A snapshot made by savevm lies inside it: load it with loadvm, then save with migrate.',
  },
  { magic: 'KDUMP   ', code: 'KDUMP_FILE', what: 'a kdump-compressed memory dump', hint: CORE_HINT },
  { magic: 'makedumpfile\0', code: 'KDUMP_FILE', what: 'a flattened kdump memory dump', hint: CORE_HINT },
];

const WRONG_FILE_HINT = 'Is it the right file?';

/** Text is text for this long; no memory file that is not recognised is. */
const TEXT_BYTES = 64;

const ELF_MAGIC = '\x7fELF';
const ELF_TYPE_OFFSET = 16;
const ELF_TYPE_CORE = 4;

/** A finding: code, what the file is, and what to do about it. */
type Finding = readonly [code: string, what: string, hint: Hint];

/**
 * Recognises files that are not migration streams by their first bytes.
 * @param head the first FILE_HEAD_BYTES of the file, all of it if it is shorter
 * @returns an error of kind `invalid` that names what it looks like; undefined for streams and for what nobody knows
 */
export const foreignFile = (head: Uint8Array, file: string): RamferryError | undefined => {
  const finding = recognise(head);
  if (finding === undefined) {
    return undefined;
  }
  const [code, what, hint] = finding;
  return new RamferryError('invalid', code, `${file} is ${what}, not a migration stream.`, {
    file,
    offset: 0,
    hint: typeof hint === 'string' ? hint : hint(file),
  });
};

const recognise = (head: Uint8Array): Finding | undefined => {
  if (head.length === 0) {
    return ['EMPTY_FILE', 'empty', 'The save did not get far, or did not begin.'];
  }
  const startsWith = (magic: string): boolean => latin1(head, 0, magic.length) === magic;
  if (startsWith(ELF_MAGIC) && head.length > ELF_TYPE_OFFSET + 1) {
    // The type is 16 bits in the byte order of the file; the types that exist are small.
    return head[ELF_TYPE_OFFSET] + head[ELF_TYPE_OFFSET + 1] === ELF_TYPE_CORE
      ? ['ELF_CORE', 'an ELF core, as dump-guest-memory writes it', CORE_HINT]
      : ['ELF_FILE', 'an ELF program or library', WRONG_FILE_HINT];
  }
  const found = signatures.find(({ magic }) => startsWith(magic));
  if (found !== undefined) {
    return [found.code, found.what, found.hint];
  }
  return /^[\t\n\r -~]*$/.test(latin1(head, 0, TEXT_BYTES)) ? ['TEXT_FILE', 'text', WRONG_FILE_HINT] : undefined;
};
