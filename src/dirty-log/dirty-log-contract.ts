// What can be seen of a dirty log that does not honour its contract. One that sees no writes at all looks like that of an idle
// guest; but one that counts marks and hands none on, or lacks a method, loses writes, and that shows.

import { DirtyClient } from '../memory/dirty-memory.js';
import { RamferryError } from '../memory/errors.js';
import type { RamBlock } from '../memory/ram-block.js';
import type { RamBlockList } from '../memory/ram-block-list.js';
import type { DirtyLog } from './dirty-log.js';

const METHODS = ['start', 'stop', 'sync', 'clear', 'forget', 'syncCostMs'] as const;

/** @throws RamferryError `DIRTY_LOG_CONTRACT` if something is missing: it would be missed in the middle of a migration */
export const checkMethods = (log: DirtyLog): void => {
  const missing = METHODS.find((method) => typeof log[method] !== 'function');
  if (missing !== undefined) {
    throw broken(`The guest's dirty log has no method ${missing}().`, missing);
  }
  if (!(log.clearAlignPages >= 1 && Number.isInteger(Math.log2(log.clearAlignPages)))) {
    throw broken(
      `The guest's dirty log clears ranges aligned to ${log.clearAlignPages} pages, which is no power of two.`,
      String(log.clearAlignPages),
    );
  }
};

/** @throws RamferryError `DIRTY_LOG_CONTRACT` unless what `method` returned for the block is a number of pages */
export const checkCount = (method: keyof DirtyLog, block: RamBlock, count: number): void => {
  if (!(Number.isSafeInteger(count) && count >= 0)) {
    throw broken(
      `${method}() of the guest's dirty log returned ${count} for RAM block ${block.name}, which is no number of pages.`,
      String(count),
    );
  }
};

/**
 * After a sync, before its bits are taken over.
 * @throws RamferryError `DIRTY_LOG_CONTRACT` if the log has counted marks, and dirty memory has none of them
 */
export const checkHandedOn = (block: RamBlock, marks: number, { dirty }: RamBlockList): void => {
  checkCount('sync', block, marks);
  if (marks > 0 && !dirty.anyDirty(block.ramPage, block.usedPages, DirtyClient.migration)) {
    throw broken(
      `sync() of the guest's dirty log counted ${marks} marks of RAM block ${block.name} and put none into dirty memory: the ` +
        'writes would be lost.',
      marks,
    );
  }
};

const broken = (message: string, value: number | string): RamferryError =>
  new RamferryError('usage', 'DIRTY_LOG_CONTRACT', message, {
    value,
    hint: 'docs/dirty-log.md says what a log of your own must do, with an example',
  });
