// The head of a libvirt save image for a stream of ours: the domain's XML is not in any memory file, so it is that of an
// image which libvirt wrote.

import { withFile } from '../../format/invalid.js';
import { isLibvirtImage, libvirtImageHead, readLibvirtImage } from '../../format/libvirt/save-image.js';
import { RamferryError } from '../../memory/errors.js';
import { openFileReader } from '../../memory-file/file-reader-node.js';

/** Enough to find out what a file is. */
const HEAD_BYTES = 4096;

/** The machine type in a domain's XML. libvirt writes it in full, never as an alias. */
const MACHINE = /<type\b[^>]*\bmachine=(["'])([^"']*)\1/;

export interface ImageLike {
  /** Path of the image whose XML is taken. */
  readonly like: string;
  readonly wasRunning: boolean;
}

/**
 * What `virsh restore` wants in front of a stream of `machine`.
 * @throws RamferryError `usage` if `like` is no libvirt save image, or one of another machine; `invalid` if it is damaged
 */
export const headLike = ({ like, wasRunning }: ImageLike, file: string, machine: string): Uint8Array => {
  const reader = openFileReader(like);
  try {
    const head = new Uint8Array(Math.min(HEAD_BYTES, reader.sizeBytes));
    reader.readAt(0, head);
    if (!isLibvirtImage(head)) {
      throw new RamferryError('usage', 'NOT_LIBVIRT', `${like} is no libvirt save image.`, {
        file: like,
        hint: 'virsh save makes one of any guest; for this, one of the same domain',
      });
    }
    const image = readLibvirtImage(head);
    if (image.dataOffset > reader.sizeBytes) {
      const statement = `${like} ends inside its XML, at byte ${reader.sizeBytes}.`;
      throw new RamferryError('invalid', 'LIBVIRT_INCOMPLETE', statement, { file: like, offset: reader.sizeBytes });
    }
    const xml = new Uint8Array(image.xmlBytes);
    reader.readAt(image.dataOffset - image.xmlBytes, xml);
    const found = MACHINE.exec(new TextDecoder().decode(xml))?.[2];
    if (found !== undefined && found !== machine) {
      throw new RamferryError(
        'usage',
        'OTHER_MACHINE',
        `${file} is of a ${machine}, the domain in ${like} a ${found}.`,
        {
          file: like,
          value: found,
          hint: 'take an image of the domain that the guest was saved from',
        },
      );
    }
    return libvirtImageHead(image, xml, wasRunning);
  } catch (error) {
    throw withFile(error, like);
  } finally {
    reader.close();
  }
};
