// Bytes as people read them: sixteen a line, hexadecimal and as text, lines that repeat the one before as a star.

const LINE_BYTES = 16;

const hexByte = (byte: number): string => byte.toString(16).padStart(2, '0');

const asText = (bytes: Uint8Array): string =>
  Array.from(bytes, (byte) => (byte >= 0x20 && byte <= 0x7e ? String.fromCharCode(byte) : '.')).join('');

/** `7f 45 4c 46  .ELF`, on one line. */
export const hexLine = (bytes: Uint8Array): string => `${Array.from(bytes, hexByte).join(' ')}  ${asText(bytes)}`;

/**
 * Lines of a hexdump.
 * @param address of the first byte
 * @param digits of an address, at least
 */
export const hexdump = (bytes: Uint8Array, address: number | bigint = 0, digits = 4): string[] => {
  const lines: string[] = [];
  let isFolded = false;
  for (let at = 0; at < bytes.length; at += LINE_BYTES) {
    const isLast = at + LINE_BYTES >= bytes.length;
    if (at > 0 && !isLast && repeatsLine(bytes, at)) {
      if (!isFolded) {
        lines.push('*');
      }
      isFolded = true;
      continue;
    }
    isFolded = false;
    const line = bytes.subarray(at, at + LINE_BYTES);
    const left = Array.from(line.subarray(0, 8), hexByte).join(' ');
    const right = Array.from(line.subarray(8), hexByte).join(' ');
    const place = (BigInt(address) + BigInt(at)).toString(16).padStart(digits, '0');
    lines.push(`${place}  ${left.padEnd(23)}  ${right.padEnd(23)}  |${asText(line)}|`);
  }
  return lines;
};

const repeatsLine = (bytes: Uint8Array, at: number): boolean => {
  for (let index = at; index < at + LINE_BYTES; index += 1) {
    if (bytes[index] !== bytes[index - LINE_BYTES]) {
      return false;
    }
  }
  return true;
};
