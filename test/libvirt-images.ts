// Heads of libvirt save images for tests (src/format/libvirt/save-image.ts draws them).

export interface LibvirtHeadOptions {
  /** libvirt's number: raw 0, gzip 1, bzip2 2, xz 3, lzop 4, zstd 5, sparse 6. */
  readonly format: number;
  readonly magic?: 'LibvirtQemudSave' | 'LibvirtQemudPart';
  readonly version?: number;
  /** Said in the header; as many bytes follow it, up to a MiB. */
  readonly xmlBytes?: number;
  readonly wasRunning?: boolean;
  readonly bigEndian?: boolean;
}

export const libvirtHead = ({
  format,
  magic = 'LibvirtQemudSave',
  version = 2,
  xmlBytes = 5000,
  wasRunning = false,
  bigEndian = false,
}: LibvirtHeadOptions): Buffer => {
  const head = Buffer.alloc(92 + Math.min(xmlBytes, 2 ** 20), ' ');
  head.fill(0, 0, 92);
  head.write(magic, 'latin1');
  for (const [index, number] of [version, xmlBytes, Number(wasRunning), format, 0].entries()) {
    head[bigEndian ? 'writeUInt32BE' : 'writeUInt32LE'](number, 16 + 4 * index);
  }
  return head;
};
