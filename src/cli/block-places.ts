// `--at BLOCK=ADDRESS`: what the user knows and the file does not say.

import { InvalidArgumentError, Option } from 'commander';
import type { BlockPlaces } from '../format/physical-map.js';

/** No processor has more address bits. */
const ADDRESS_LIMIT = 2 ** 52;
const PAGE_BYTES = 4096;

/** Adds one to those that were given already. */
const addPlace = (text: string, places: BlockPlaces): BlockPlaces => {
  const parts = /^(.+)=(0x[0-9a-f]+|\d+)$/i.exec(text);
  const address = Number(parts?.[2]);
  if (parts === null || address >= ADDRESS_LIMIT || address % PAGE_BYTES !== 0) {
    throw new InvalidArgumentError('It is the name of a RAM block and the address of a page, like dimm0=0x100000000.');
  }
  return new Map([...places, [parts[1]!, address]]);
};

/** The option, for verbs that take or print addresses. */
export const placesOption = (description = 'address of a RAM block that the file does not tell; repeatable'): Option =>
  new Option('--at <block=address>', description).argParser(addPlace).default(new Map(), 'none');
