// The file beside a served one that remembers what its guest asked for first.

import fs from 'node:fs';
import { OutputFile } from '../channel/output-file-node.js';
import {
  DEMAND_LIST_MAX_BYTES,
  type DemandedPage,
  joinDemands,
  readDemandList,
  writeDemandList,
} from '../format/demand-list.js';
import { memoryFile } from './open-snapshot-file-node.js';

/** `FILE.demand`, also of `file:FILE,offset=N`. */
export const demandPath = (operand: string): string => `${memoryFile(operand).path}.demand`;

/** What the list says; nothing, with a `note` that says why, where it cannot be read: a guest starts without it as well. */
export const readDemandFile = (path: string, note: (text: string) => void): DemandedPage[] => {
  try {
    return demandsIn(path) ?? [];
  } catch (error) {
    note(`warning: ${path} is not used: ${(error as Error).message}`);
    return [];
  }
};

/** Undefined where there is no file. */
const demandsIn = (path: string): DemandedPage[] | undefined => {
  const stat = fs.statSync(path, { throwIfNoEntry: false });
  return (
    stat && readDemandList(stat.isFile() && stat.size <= DEMAND_LIST_MAX_BYTES ? fs.readFileSync(path, 'latin1') : '')
  );
};

/** Adds demands to the list; a note where it cannot be written. A file that is no such list is left as it is. */
export const writeDemandFile = async (
  path: string,
  known: readonly DemandedPage[],
  demands: readonly DemandedPage[],
  note: (text: string) => void,
): Promise<void> => {
  const joined = joinDemands(known, demands);
  // What was served from a pipe or a device has no place for it.
  const isFile = fs.statSync(path.replace(/\.demand$/, ''), { throwIfNoEntry: false })?.isFile();
  if (joined.length === known.length || isFile !== true) {
    return;
  }
  try {
    demandsIn(path);
    const file = OutputFile.open(path);
    fs.writeFileSync(file.descriptor, writeDemandList(joined), 'latin1');
    await file.commit();
  } catch (error) {
    note(`warning: the demands are not remembered: ${(error as Error).message}`);
  }
};
