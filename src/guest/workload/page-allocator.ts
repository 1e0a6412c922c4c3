// The page allocator of the workload guest: next fit over the generation tables, where 0 means free. It keeps nothing but the
// place where it stopped, so it migrates with the guest RAM. Its successor is a buddy allocator, which also
// knows which pages it could report as free.

import { Register } from './registers.js';
import type { WorkloadWriter } from './writer.js';

/** First of `count` free pages in a row at or above ordinal `from`; undefined if there are none. */
export function allocate(writer: WorkloadWriter, from: number, count: number): number | undefined {
  const { registers, pageCount } = writer;
  const resume = Math.min(Math.max(registers[Register.allocateFrom]!, from), pageCount);
  const first = findRun(writer, resume, pageCount, count) ?? findRun(writer, from, pageCount, count);
  if (first !== undefined) {
    registers[Register.allocateFrom] = first + count;
  }
  return first;
}

function findRun(writer: WorkloadWriter, from: number, to: number, count: number): number | undefined {
  let run = 0;
  for (let ordinal = from; ordinal < to; ordinal += 1) {
    run = writer.isFree(ordinal) ? run + 1 : 0;
    if (run >= count) {
      return ordinal + 1 - count;
    }
  }
  return undefined;
}
