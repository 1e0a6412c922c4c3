// A guest's memory as what is looked through from end to end: every byte of every block once, in the order of addresses, so that
// what lies across two blocks that are neighbours in the address space lies in one stretch.

import type { PhysicalMap } from '../physical-map.js';
import type { Snapshot } from '../snapshot.js';

/** Bytes [offset, offset + bytes) of a block, at `position` of their stretch. */
export interface StretchPart {
  readonly position: number;
  readonly block: number;
  readonly offset: number;
  readonly bytes: number;
}

/** Memory without a hole in it. */
export interface Stretch {
  /** Guest-physical address of its first byte; undefined where it has none that is known. */
  readonly address: number | undefined;
  readonly bytes: number;
  /** In order. */
  readonly parts: readonly StretchPart[];
}

/** A place in a guest's memory. */
export interface MemoryPlace {
  readonly block: number;
  readonly offset: number;
  readonly address: number | undefined;
}

interface Piece {
  readonly from: number;
  readonly to: number;
}

/**
 * All memory that the file holds. Firmware may be at several addresses: the lowest counts.
 * @param map undefined where the addresses are not known: blocks are stretches of their own then
 * @param blocks positions of those that are wanted
 */
export const memoryStretches = (
  { setup, elsewhere }: Pick<Snapshot, 'setup' | 'elsewhere'>,
  map: PhysicalMap | undefined,
  blocks: ReadonlySet<number>,
): Stretch[] => {
  const isWanted = (block: number): boolean => blocks.has(block) && !elsewhere.has(block);
  const left = new Map<number, readonly Piece[]>();
  for (const { index, usedLength } of setup.blocks) {
    if (isWanted(index)) {
      left.set(index, [{ from: 0, to: usedLength }]);
    }
  }
  const stretches: Stretch[] = [];
  for (const { address, block, offset, bytes } of map?.ranges ?? []) {
    for (const { from, to } of take(left, block, { from: offset, to: offset + bytes })) {
      append(stretches, address + (from - offset), { block, offset: from, bytes: to - from });
    }
  }
  for (const [block, pieces] of left) {
    for (const { from, to } of pieces) {
      append(stretches, undefined, { block, offset: from, bytes: to - from });
    }
  }
  return stretches;
};

/** Takes what is left of a piece of a block, and returns it. */
const take = (left: Map<number, readonly Piece[]>, block: number, { from, to }: Piece): Piece[] => {
  const taken: Piece[] = [];
  const rest: Piece[] = [];
  for (const piece of left.get(block) ?? []) {
    const start = Math.max(from, piece.from);
    const end = Math.min(to, piece.to);
    if (start >= end) {
      rest.push(piece);
      continue;
    }
    taken.push({ from: start, to: end });
    rest.push(
      ...[
        { from: piece.from, to: start },
        { from: end, to: piece.to },
      ].filter((each) => each.from < each.to),
    );
  }
  if (left.has(block)) {
    left.set(block, rest);
  }
  return taken;
};

/** Adds a part to the last stretch if it follows it, or begins a stretch with it. */
const append = (stretches: Stretch[], address: number | undefined, part: Omit<StretchPart, 'position'>): void => {
  const last = stretches.at(-1);
  const follows = last?.address !== undefined && last.address + last.bytes === address;
  if (last === undefined || !follows) {
    stretches.push({ address, bytes: part.bytes, parts: [{ position: 0, ...part }] });
    return;
  }
  const parts = [...last.parts, { position: last.bytes, ...part }];
  stretches[stretches.length - 1] = { address: last.address, bytes: last.bytes + part.bytes, parts };
};

/** Where in the guest a byte of a stretch is. */
export const placeIn = ({ address, parts }: Stretch, position: number): MemoryPlace => {
  const part = parts.findLast((each) => each.position <= position)!;
  return {
    block: part.block,
    offset: part.offset + (position - part.position),
    address: address === undefined ? undefined : address + position,
  };
};
