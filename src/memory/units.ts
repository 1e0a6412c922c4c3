// Branded numbers, so that a page index can never be added to a byte address. All are plain numbers at run time;
// byte addresses are exact up to 2^53 and are never touched with `<<`, `>>` or `|`, which are 32-bit (CB-25).

declare const unit: unique symbol;
type Branded<Name extends string> = number & { readonly [unit]: Name };

/** Index of a guest page inside its RAM block. */
export type PageIndex = Branded<'PageIndex'>;

/** Index of a guest page in the flat ram address space that exists only to index dirty memory (spec/algorithms.md 1.1). */
export type RamPage = Branded<'RamPage'>;

/** Guest-physical byte address. */
export type GuestAddress = Branded<'GuestAddress'>;

/** Byte offset in a file or in a stream, counted from its start. */
export type FileOffset = Branded<'FileOffset'>;

export const pageIndex = (value: number): PageIndex => value as PageIndex;
export const ramPage = (value: number): RamPage => value as RamPage;
export const guestAddress = (value: number): GuestAddress => value as GuestAddress;
export const fileOffset = (value: number): FileOffset => value as FileOffset;
