// Sizes in the ways in which QEMU, people and our own output write them.

/** Bytes of each unit: `M` and `MiB` as QEMU and people mean them, `MB` as disks are sold. */
const UNITS: ReadonlyMap<string, number> = new Map([
  ...['', 'b', 'byte', 'bytes'].map((unit) => [unit, 1] as const),
  ...[...'kmgtp'].flatMap((letter, index) => {
    const [binary, decimal] = [1024 ** (index + 1), 1000 ** (index + 1)];
    return [[letter, binary] as const, [`${letter}ib`, binary] as const, [`${letter}b`, decimal] as const];
  }),
]);

const SIZE = /^([0-9][0-9,]*(?:\.[0-9]+)?(?:e\+?[0-9]+)?|0x[0-9a-f]+) *([a-z]*)$/i;
const GROUPED = /^[0-9]{1,3}(?:,[0-9]{3})+(?:\.|$)/;

/** The number of bytes that a text spells, as `parseSize` of the command line takes it; undefined if it is none below 2^53. */
export const byteSize = (text: string): number | undefined => {
  const [, digits = '', unitText = ''] = SIZE.exec(text) ?? [];
  const unit = UNITS.get(unitText.toLowerCase());
  const isHexadecimal = /^0x/i.test(digits);
  if (unit === undefined || (digits.includes(',') && !GROUPED.test(digits)) || (isHexadecimal && unitText !== '')) {
    return undefined;
  }
  const value = Number(digits.replaceAll(',', '')) * unit;
  // "1.43 GiB" is what was printed of a size; a fraction of a byte was meant by nobody.
  const size = unit === 1 ? value : Math.round(value);
  return digits !== '' && Number.isSafeInteger(size) ? size : undefined;
};
