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

const dump = (magic: string, code: string, what: string): Signature => ({
  magic,
  code,
  what,
  hint: 'It holds memory, but no device state that a QEMU could resume from. Save the guest with migrate instead.',
});

const otherHypervisor = (magic: string, code: string, name: string, what = 'saved state'): Signature => ({
  magic,
  code,
  what: `${what} of ${name}`,
  hint: `Only ${name} loads it: its devices are not those of QEMU.`,
});

const disk = (magic: string, name: string): Signature => ({
  magic,
  code: 'DISK_IMAGE',
  what: `a ${name} disk image`,
  hint: 'A disk holds no guest memory; of qcow2 images, the snapshots that savevm made are opened.',
});

const signatures: readonly Signature[] = [
  compressed('\xfd7zXZ\0', 'xz'),
  compressed('BZh', 'bzip2'),
  compressed('\x89LZO\0\r\n\x1a\n', 'lzop'),
  compressed('\x04\x22\x4d\x18', 'lz4'),
  { magic: 'KDUMP   ', code: 'KDUMP_FILE', what: 'a kdump-compressed memory dump', hint: CORE_HINT },
  { magic: 'DISKDUMP', code: 'KDUMP_FILE', what: 'a diskdump memory dump', hint: CORE_HINT },
  { magic: 'makedumpfile\0', code: 'KDUMP_FILE', what: 'a flattened kdump memory dump', hint: CORE_HINT },
  dump('EMiL', 'LIME_FILE', 'a LiME memory dump'),
  dump('AVML', 'AVML_FILE', 'an AVML memory dump'),
  dump('PAGEDU', 'WINDOWS_DUMP', 'a Windows crash dump'),
  dump('hibr', 'WINDOWS_DUMP', 'a Windows hibernation file'),
  dump('HIBR', 'WINDOWS_DUMP', 'a Windows hibernation file'),
  ...['\xd0\xbe\xd2\xbe', '\xd1\xba\xd1\xba', '\xd2\xbe\xd2\xbe', '\xd3\xbe\xd3\xbe'].map((magic) =>
    otherHypervisor(magic, 'VMWARE_STATE', 'VMware', 'a suspended state or snapshot (.vmss, .vmsn)'),
  ),
  otherHypervisor('LibxlFmt', 'XEN_SAVE', 'Xen', 'a saved domain'),
  otherHypervisor('Xen saved domain', 'XEN_SAVE', 'Xen', 'a saved domain'),
  otherHypervisor('LinuxGuestRecord', 'XEN_SAVE', 'Xen', 'a saved domain'),
  otherHypervisor('\xff\xff\xff\xff\xff\xff\xff\xffXENF', 'XEN_SAVE', 'Xen', 'the saved memory'),
  otherHypervisor('\x7fVirtualBox SavedState V', 'VIRTUALBOX_STATE', 'VirtualBox', 'a saved state (.sav)'),
  otherHypervisor('\x76\x86\x76\x86', 'V86_STATE', 'v86'),
  disk('KDMV', 'VMDK'),
  disk('vhdxfile', 'VHDX'),
  disk('conectix', 'VHD'),
  disk('<<< ', 'VDI'),
  disk('QED\0', 'QED'),
];

/** Of archives, at this place of the first file's head. */
const TAR_OFFSET = 257;
const TAR_MAGIC = 'ustar';

/** Firecracker's, of x86-64 and of ARM, behind 16 bits of version. */
const FIRECRACKER_OFFSET = 2;
const FIRECRACKER_MAGICS = ['\x64\x86\x84\x19\x10\x07', '\xaa\xaa\x84\x19\x10\x07'];

/** What Cloud Hypervisor's `state.json` begins with. */
const CLOUD_HYPERVISOR = /^\s*\{\s*"(?:snapshots|snapshot_data|id)"\s*:/;

const WRONG_FILE_HINT = 'Is it the right file?';

/** Text is text for this long; no memory file that is not recognised is. */
const TEXT_BYTES = 64;

const ELF_MAGIC = '\x7fELF';
const ELF_TYPE_OFFSET = 16;
const ELF_TYPE_CORE = 4;

/** A PC's memory begins with 256 interrupt vectors, most of which lead into its BIOS. */
const VECTOR_BYTES = 4;
const VECTORS = 256;
const MOST_VECTORS = VECTORS / 2;
const BIOS_SEGMENTS = [0xf0, 0xc0];

const GZIP_MAGIC = '\x1f\x8b';
const ZSTD_MAGIC = '\x28\xb5\x2f\xfd';
/** zstd files of several threads may begin with a frame that is to be skipped. */
const ZSTD_SKIPPABLE = '\x2a\x4d\x18';
const STREAM_MAGIC = 'QEVM';

/** Which of the packings that are unpacked here a file has, by its first bytes. */
export const packingOf = (head: Uint8Array): 'gzip' | 'zstd' | undefined => {
  const magic = latin1(head, 0, Math.min(4, head.length));
  return magic.startsWith(GZIP_MAGIC)
    ? 'gzip'
    : magic === ZSTD_MAGIC || (/^[P-_]/.test(magic) && magic.endsWith(ZSTD_SKIPPABLE))
      ? 'zstd'
      : undefined;
};

/** Whether a file begins as a migration stream does. */
export const beginsStream = (head: Uint8Array): boolean => latin1(head, 0, Math.min(4, head.length)) === STREAM_MAGIC;

/** A finding: code, what the file is, and what to do about it. */
type Finding = readonly [code: string, what: string, hint: Hint];

/**
 * Recognises files that are not migration streams by their first bytes.
 * @param head the first FILE_HEAD_BYTES of the file, all of it if it is shorter
 * @param isUnpacked `head` is of what was packed in the file
 * @returns an error of kind `invalid` that names what it looks like; undefined for streams and for what nobody knows
 */
export const foreignFile = (head: Uint8Array, file: string, isUnpacked = false): RamferryError | undefined => {
  const finding = recognise(head);
  if (finding === undefined) {
    return undefined;
  }
  const [code, what, hint] = finding;
  return new RamferryError(
    'invalid',
    code,
    `${file}${isUnpacked ? ', unpacked,' : ''} is ${what}, not a migration stream.`,
    {
      file,
      offset: 0,
      hint: typeof hint === 'string' ? hint : hint(file),
    },
  );
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
  const at = (offset: number, magic: string): boolean => latin1(head, offset, offset + magic.length) === magic;
  if (at(TAR_OFFSET, TAR_MAGIC)) {
    return ['TAR_FILE', 'a tar archive', (file) => `See what is in it: ${shellCommand`tar -tf ${file}`}`];
  }
  if (FIRECRACKER_MAGICS.some((magic) => at(FIRECRACKER_OFFSET, magic))) {
    return ['FIRECRACKER_STATE', "a Firecracker snapshot's state", 'Only Firecracker loads it.'];
  }
  const text = latin1(head, 0, Math.min(TEXT_BYTES, head.length));
  if (CLOUD_HYPERVISOR.test(text)) {
    return ['CLOUD_HYPERVISOR_STATE', "a Cloud Hypervisor snapshot's state", 'Only Cloud Hypervisor loads it.'];
  }
  if (/^[\t\n\r -~]*$/.test(text)) {
    return ['TEXT_FILE', 'text', WRONG_FILE_HINT];
  }
  if (isRawMemory(head, startsWith)) {
    const hint =
      'It is the memory alone, as pmemsave and .vmem files have it, without devices: nothing can resume it. Save with migrate.';
    return ['RAW_MEMORY', 'raw guest memory', hint];
  }
  return undefined;
};

/** Memory as it is, from address 0 on: of a PC with its vectors, of another guest with pages that nobody used. */
const isRawMemory = (head: Uint8Array, startsWith: (magic: string) => boolean): boolean => {
  if (head.length < FILE_HEAD_BYTES || startsWith(STREAM_MAGIC)) {
    return false;
  }
  let vectors = 0;
  for (let vector = 0; vector < VECTORS; vector += 1) {
    vectors += Number(BIOS_SEGMENTS.includes(head[VECTOR_BYTES * vector + 3]!));
  }
  return vectors >= MOST_VECTORS || head.every((byte) => byte === 0);
};
