// Which RAM blocks are the memory that a PC has from the start, and which part of it each is. The file lists blocks by size and, of
// the same size, in the order in which they were made; it does not say what they are for.

import type { ReadRamBlock } from '../stream/stream-handler.js';
import type { BootMemory, BootNode } from './boot-memory.js';

/** What QEMU calls the RAM of a machine for which nothing else was given. */
const DEFAULT_NAMES: readonly string[] = ['pc.ram', 'microvm.ram'];

/** Addresses that somebody knows from elsewhere, by the names of the blocks that begin there. */
export type BlockPlaces = ReadonlyMap<string, number>;

export const isDefaultName = (name: string): boolean => DEFAULT_NAMES.includes(name);

/** The block that is all RAM of the machine, by its name. */
export const defaultBlock = (blocks: readonly ReadRamBlock[]): ReadRamBlock | undefined =>
  blocks.find(({ name }) => isDefaultName(name));

/** Which node each block is; `open` are the nodes for which there is more than one choice, and the blocks that they could be. */
export interface AssignedNodes {
  readonly assigned: ReadonlyMap<ReadRamBlock, BootNode>;
  readonly open: readonly { readonly node: BootNode; readonly candidates: readonly ReadRamBlock[] }[];
}

/** @param candidates blocks that may be RAM, in the order of the file */
export const assignNodes = (
  memory: BootMemory,
  candidates: readonly ReadRamBlock[],
  places: BlockPlaces,
): AssignedNodes => {
  const whole = wholeBlock(memory, candidates, places);
  if (whole !== undefined) {
    return { assigned: new Map([[whole, { node: 0, offset: 0, bytes: memory.bytes }]]), open: [] };
  }
  const assigned = new Map<ReadRamBlock, BootNode>();
  const open: { node: BootNode; candidates: readonly ReadRamBlock[] }[] = [];
  for (const size of new Set(memory.nodes.map(({ bytes }) => bytes))) {
    const nodes = memory.nodes.filter(({ bytes }) => bytes === size);
    const fitting = candidates.filter(({ usedLength }) => usedLength === size);
    const told = nodes.map((node) => fitting.find(({ name }) => places.get(name) === addressOf(memory, node)));
    const left = nodes.filter((_, index) => told[index] === undefined);
    // What somebody has placed elsewhere is something else.
    const free = fitting.filter(({ name }) => !places.has(name));
    const chosen = inOrder(free, left);
    nodes.forEach((node, index) => {
      const block = told[index] ?? chosen?.[left.indexOf(node)];
      if (block === undefined) {
        open.push({ node, candidates: free });
      } else {
        assigned.set(block, node);
      }
    });
  }
  return { assigned, open };
};

/** Guest-physical address of a node's first byte. */
export const addressOf = (memory: BootMemory, { offset }: BootNode): number => memory.rangesOf(offset, 1)[0]!.address;

/** The block that is all RAM, also where its nodes are only parts of it. */
const wholeBlock = (
  memory: BootMemory,
  candidates: readonly ReadRamBlock[],
  places: BlockPlaces,
): ReadRamBlock | undefined => {
  const fitting = candidates.filter(({ usedLength }) => usedLength === memory.bytes);
  const free = fitting.filter(({ name }) => !places.has(name));
  const told = fitting.find(({ name }) => places.get(name) === 0) ?? defaultBlock(free);
  // A DIMM may be as large as all nodes together.
  const isSplit =
    memory.nodes.length > 1 &&
    memory.nodes.every(({ bytes }) => candidates.some(({ usedLength }) => usedLength === bytes));
  return told ?? (free.length === 1 && !isSplit ? free[0] : undefined);
};

/**
 * The blocks that the nodes are, one for each, if their names leave no doubt: there is only one of that size, or they are called
 * as libvirt calls them (`ram-node1`), or they are numbered in the order in which they were made.
 */
const inOrder = (blocks: readonly ReadRamBlock[], nodes: readonly BootNode[]): readonly ReadRamBlock[] | undefined => {
  const named = nodes.map(({ node }) => blocks.find(({ name }) => name === `ram-node${node}`));
  if (named.every((block) => block !== undefined)) {
    return named;
  }
  return blocks.length === nodes.length && isNumbered(blocks.map(({ name }) => name)) ? blocks : undefined;
};

const isNumbered = (names: readonly string[]): boolean => {
  const parts = names.map((name) => /^(.*?)(\d+)$/.exec(name));
  return (
    names.length === 1 ||
    parts.every((part, index) => {
      const previous = parts[index - 1];
      return part !== null && (index === 0 || (previous![1] === part[1] && Number(previous![2]) < Number(part[2])));
    })
  );
};
