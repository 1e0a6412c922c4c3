// Big-endian integers and names, as every QEMU format writes them (spec/qemu-wire-format.md 0.1).

/** Unsigned 16-bit integer at `at`. */
export const be16 = (bytes: Uint8Array, at: number): number => bytes[at] * 0x100 + bytes[at + 1];

/** Unsigned 32-bit integer at `at`. */
export const be32 = (bytes: Uint8Array, at: number): number =>
  ((bytes[at] << 24) | (bytes[at + 1] << 16) | (bytes[at + 2] << 8) | bytes[at + 3]) >>> 0;

/** Unsigned 64-bit integer at `at`, for messages; lengths and offsets go through `be64`. */
export const be64Exact = (bytes: Uint8Array, at: number): bigint =>
  (BigInt(be32(bytes, at)) << 32n) | BigInt(be32(bytes, at + 4));

/** Unsigned 64-bit integer at `at`; NaN if a number cannot hold it exactly, so that every comparison with it fails. */
export const be64 = (bytes: Uint8Array, at: number): number => {
  const high = be32(bytes, at);
  return high < 0x20_0000 ? high * 0x1_0000_0000 + be32(bytes, at + 4) : Number.NaN;
};

/** The bytes [start, end) as text, one character a byte. Works on shared memory, where TextDecoder does not. */
export const latin1 = (bytes: Uint8Array, start: number, end: number): string => {
  // String.fromCharCode takes its characters as arguments, which live on the stack: 4 KiB at a time. Spread, they would go
  // through an iterator: 20 times as long.
  let text = '';
  for (let at = start; at < end; at += 4096) {
    text += String.fromCharCode.apply(null, bytes.subarray(at, Math.min(at + 4096, end)) as unknown as number[]);
  }
  return text;
};

/**
 * Whether [start, end) is printable ASCII. Every name QEMU writes is (device paths, backend ids, machine types), and a
 * name with a NUL or a line break could pass for another one in a message or in another tool.
 */
export const isPrintable = (bytes: Uint8Array, start: number, end: number): boolean => {
  for (let at = start; at < end; at += 1) {
    if (bytes[at] < 0x20 || bytes[at] > 0x7e) {
      return false;
    }
  }
  return true;
};
