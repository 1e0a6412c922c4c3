// The head of a libvirt save image, as `virsh save` and `managedsave` write it (spec/field.md 4.3). Numbers are in the byte
// order of the host that wrote it.
//
//   | LibvirtQemudSave | version | data_len | was_running | format | cookieOffset | unused[14] | XML, cookie | data |
//   0                  16        20         24            28       32             36           92            92 + data_len
//
// The data are QEMU's stream as `format` says: raw or packed by a program. `sparse` is a mapped-ram file, whose offsets
// count from the start of the image.

import { latin1 } from '../bytes.js';
import { invalid } from '../invalid.js';

export const LIBVIRT_HEADER_BYTES = 92;

const MAGIC_BYTES = 16;
const COMPLETE = 'LibvirtQemudSave';
/** The magic until the save is complete. */
const PARTIAL = 'LibvirtQemudPart';

/** What is in the data, by libvirt's number. */
const formats = ['raw', 'gzip', 'bzip2', 'xz', 'lzop', 'zstd', 'sparse'] as const;
export type LibvirtFormat = (typeof formats)[number];

/** 1 until 2010, 2 since; none is known beyond 3. */
const NEWEST_VERSION = 3;

/** Domain XML with cookie: tens of KB. What is beyond this is no XML. */
const XML_LIMIT_BYTES = 16 * 1024 * 1024;

export interface LibvirtImage {
  /** False for an image whose save was interrupted. */
  readonly complete: boolean;
  readonly version: number;
  /** Whether the guest ran when it was saved. */
  readonly wasRunning: boolean;
  readonly format: LibvirtFormat;
  /** Bytes of domain XML and cookie, which follow the header. */
  readonly xmlBytes: number;
  /** Where the cookie begins, as the header has it; 0 without one. */
  readonly cookieOffset: number;
  /** Where the data begin. */
  readonly dataOffset: number;
}

export const isLibvirtImage = (head: Uint8Array): boolean =>
  [COMPLETE, PARTIAL].includes(latin1(head, 0, Math.min(MAGIC_BYTES, head.length)));

/**
 * Reads the header, of an image for which `isLibvirtImage` holds.
 * @throws RamferryError `invalid`
 */
export const readLibvirtImage = (head: Uint8Array): LibvirtImage => {
  if (head.length < LIBVIRT_HEADER_BYTES) {
    throw invalid('LIBVIRT_INCOMPLETE', 'The libvirt save image ends inside its header', head.length);
  }
  const view = new DataView(head.buffer, head.byteOffset, head.length);
  // The byte order in which the version is small is the right one.
  const littleEndian = view.getUint32(MAGIC_BYTES, true) <= 0xffff;
  const number = (index: number): number => view.getUint32(MAGIC_BYTES + 4 * index, littleEndian);
  const [version, xmlBytes, wasRunning, formatNumber] = [number(0), number(1), number(2), number(3)];
  if (version < 1 || version > NEWEST_VERSION) {
    const statement = `The libvirt save image has version ${version}, and up to ${NEWEST_VERSION} are known`;
    throw invalid('LIBVIRT_VERSION', statement, MAGIC_BYTES, { value: version });
  }
  if (xmlBytes > XML_LIMIT_BYTES) {
    throw invalid('LIBVIRT_HEADER', `The XML of the libvirt save image has ${xmlBytes} bytes`, MAGIC_BYTES + 4, {
      value: xmlBytes,
    });
  }
  const format = formats[formatNumber];
  if (format === undefined) {
    throw invalid('LIBVIRT_FORMAT', `The libvirt save image is in format ${formatNumber}`, MAGIC_BYTES + 12, {
      value: formatNumber,
      hint: `Known are ${formats.map((name, index) => `${index} (${name})`).join(', ')}.`,
    });
  }
  return {
    complete: latin1(head, 0, MAGIC_BYTES) === COMPLETE,
    version,
    wasRunning: wasRunning !== 0,
    format,
    xmlBytes,
    cookieOffset: number(4),
    dataOffset: LIBVIRT_HEADER_BYTES + xmlBytes,
  };
};

/** The version that libvirt has written since 2010. */
const WRITTEN_VERSION = 2;

/** Header, XML and cookie of an image with a stream behind it that is not packed. */
export const libvirtImageHead = (
  { cookieOffset }: Pick<LibvirtImage, 'cookieOffset'>,
  xml: Uint8Array,
  wasRunning: boolean,
): Uint8Array => {
  const head = new Uint8Array(LIBVIRT_HEADER_BYTES + xml.length);
  head.set(new TextEncoder().encode(COMPLETE));
  const view = new DataView(head.buffer);
  const raw = formats.indexOf('raw');
  for (const [index, value] of [WRITTEN_VERSION, xml.length, Number(wasRunning), raw, cookieOffset].entries()) {
    view.setUint32(MAGIC_BYTES + 4 * index, value, true);
  }
  head.set(xml, LIBVIRT_HEADER_BYTES);
  return head;
};
