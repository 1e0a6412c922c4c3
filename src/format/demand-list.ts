// FILE.demand: the pages that a guest asked for when FILE was served, in that order, so that the next one need not ask.
// A hint and nothing more: pages that are missing in it come when they are asked for.
//
//   ramferry demand 1
//   202 pc.ram          page number, block

import { RamferryError } from '../memory/errors.js';

const HEAD = 'ramferry demand 1';

/** A guest that wants more than these wants everything; also what is read of a list that somebody else wrote. */
export const DEMAND_LIST_MAX = 65_536;

/** Longest line: a page number of 16 digits, a space and a block name. */
export const DEMAND_LIST_MAX_BYTES = DEMAND_LIST_MAX * 273;

export interface DemandedPage {
  readonly blockName: string;
  readonly page: number;
}

/** `first`, and what `further` adds to it: a guest that was given the first ones asks for others. */
export const joinDemands = (first: readonly DemandedPage[], further: readonly DemandedPage[]): DemandedPage[] => {
  const byLine = new Map([...first, ...further].map((page) => [lineOf(page), page]));
  return [...byLine.values()].slice(0, DEMAND_LIST_MAX);
};

export const writeDemandList = (pages: readonly DemandedPage[]): string => [HEAD, ...pages.map(lineOf), ''].join('\n');

/** @throws RamferryError `invalid` if it is no such list */
export const readDemandList = (text: string): DemandedPage[] => {
  const [head, ...lines] = text.split('\n');
  if (head !== HEAD || lines.pop() !== '' || lines.length > DEMAND_LIST_MAX) {
    throw new RamferryError('invalid', 'DEMAND_LIST', `This is no list of at most ${DEMAND_LIST_MAX} demanded pages.`, {
      hint: 'Remove it: it is written anew.',
    });
  }
  return lines.map((line, index) => {
    const [, page, blockName] = /^(\d{1,15}) ([\x20-\x7e]{1,255})$/.exec(line) ?? [];
    if (blockName === undefined) {
      throw new RamferryError('invalid', 'DEMAND_LIST', `Line ${index + 2} of the list of demanded pages names none.`, {
        value: line.slice(0, 80),
        hint: 'Remove it: it is written anew.',
      });
    }
    return { blockName, page: Number(page) };
  });
};

const lineOf = ({ blockName, page }: DemandedPage): string => `${page} ${blockName}`;
