// Members of a gzip file (RFC 1952): a header, deflated data, CRC-32 and size of what was packed.

/** What follows the data of a member: CRC-32 and size modulo 2^32, each of four bytes, little-endian. */
export const GZIP_TRAILER_BYTES = 8;

/** Length of a header without anything optional. */
const FIXED_BYTES = 10;

const DEFLATE = 8;

const Flag = { HEADER_CRC: 2, EXTRA: 4, NAME: 8, COMMENT: 16 } as const;

/** Length of the header of the member that `bytes` begin with; undefined if none does, or if `bytes` are not all of it. */
export const gzipHeaderBytes = (bytes: Uint8Array): number | undefined => {
  if (bytes.length < FIXED_BYTES || bytes[0] !== 0x1f || bytes[1] !== 0x8b || bytes[2] !== DEFLATE) {
    return undefined;
  }
  const flags = bytes[3]!;
  let at = FIXED_BYTES;
  if (flags & Flag.EXTRA) {
    if (at + 2 > bytes.length) {
      return undefined;
    }
    at += 2 + bytes[at]! + 256 * bytes[at + 1]!;
  }
  const texts = [Flag.NAME, Flag.COMMENT].filter((text) => flags & text).length;
  for (let count = 0; count < texts; count += 1) {
    const end = bytes.indexOf(0, at);
    if (end < 0) {
      return undefined;
    }
    at = end + 1;
  }
  if (flags & Flag.HEADER_CRC) {
    at += 2;
  }
  return at <= bytes.length ? at : undefined;
};
