// Writing pieces of memory in one system call, from where they lie. Node can do that too (`writev` of streams), but it
// wants an object for each piece, and guest pages have pieces of 8 bytes and 4 KiB in turn.

import { type SystemFunction, systemFunction } from '../memory/system-library-node.js';

interface SystemCalls {
  readonly writev: SystemFunction;
  readonly address: SystemFunction;
}

let systemCalls: SystemCalls | undefined;
let isResolved = false;

const resolve = (): SystemCalls | undefined => {
  if (!isResolved) {
    isResolved = true;
    const writev = systemFunction('int64_t writev(int descriptor, const void *entries, int count)');
    // A move of nothing onto itself returns where it would have moved to: the address, in a form that is a number.
    const memmove = systemFunction('uintptr_t memmove(void *to, const void *from, size_t byteCount)');
    systemCalls =
      writev === undefined || memmove === undefined
        ? undefined
        : { writev, address: (memory) => memmove(memory!, memory!, 0) };
  }
  return systemCalls;
};

/** The address of `memory` in this process; undefined where system calls cannot be made. */
export const addressInProcess = (memory: Uint8Array): number | undefined => resolve()?.address(memory);

/**
 * One `writev` of `count` entries, which do not block if the descriptor does not: bytes written, or less than 0 if it
 * failed, for whatever reason. Only where `addressInProcess` gave an address.
 */
export const writeEntries = (descriptor: number, entries: Uint8Array, count: number): number =>
  resolve()!.writev(descriptor, entries, count);
