// The command line of a saved guest, as far as its file says it: for somebody who starts clones without one.

import { SnapshotIndexer } from '../format/open-snapshot.js';
import { shellCommand } from '../memory/shell-command.js';
import { openContainer } from '../memory-file/open-snapshot-file-node.js';

/** What a guest has at the head of its file: steps of the reader, which come to its pages after a few. */
const HEAD_STEPS = 16;

const KIB = 2 ** 10;
const MIB = 2 ** 20;

/** A QEMU with the guest's machine and memory. Its devices are for the user to add: the file has their state, not their options. */
export const cloneExample = async (operand: string, count: number): Promise<string> => {
  const container = await openContainer(operand);
  try {
    const { file, readAt, sizeBytes, startOffset } = container;
    const indexer = new SnapshotIndexer(readAt, sizeBytes, { file, startOffset });
    for (let step = 0; indexer.soFar.setup === undefined && step < HEAD_STEPS; step += 1) {
      indexer.advance();
    }
    const { configuration, setup } = indexer.soFar;
    const machine = configuration?.machine ?? 'pc';
    const memory = Math.max(MIB, ...(setup?.blocks ?? []).map(({ usedLength }) => usedLength));
    return shellCommand`ramferry clone ${operand} -n ${count} -- qemu-system-x86_64 -M ${machine} -m ${memory / KIB}K -nodefaults -display none`;
  } finally {
    container.close();
  }
};
