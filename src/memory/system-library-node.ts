// The C library, for the few calls that Node does not have. It is reached through the optional dependency koffi; where that
// is missing, or the system is not Linux, its users do without.

import { createRequire } from 'node:module';
import process from 'node:process';

/** A pointer is the first byte of a view: shared wasm memory never moves, so the address stays good. */
export type SystemFunction = (...values: (number | Uint8Array)[]) => number;

/** What is used of koffi. Not its own types: it may be missing where this is compiled. */
interface Koffi {
  errno(): number;
  address(view: Uint8Array): bigint;
  load(library: null): { func(declaration: string): SystemFunction & { async: (...values: unknown[]) => void } };
}

let koffi: Koffi | undefined;
let library: ReturnType<Koffi['load']> | undefined;
let isOpen = false;

const open = (): void => {
  isOpen = true;
  try {
    koffi = process.platform === 'linux' ? (createRequire(import.meta.url)('koffi') as Koffi) : undefined;
    library = koffi?.load(null);
  } catch {
    library = undefined;
  }
};

/** The function of that C declaration, or undefined where there is no way to call it. The first call loads koffi. */
export const systemFunction = (declaration: string): SystemFunction | undefined => {
  if (!isOpen) {
    open();
  }
  return library?.func(declaration);
};

/** Calls in a thread of the system's pool and calls back in the event loop, whatever the function returned. */
export type AsyncSystemFunction = (then: () => void, ...values: (number | Uint8Array)[]) => void;

/** The same for a call that may take long. Views must stay until it calls back. */
export const asyncSystemFunction = (declaration: string): AsyncSystemFunction | undefined => {
  if (!isOpen) {
    open();
  }
  const call = library?.func(declaration);
  return call && ((then, ...values) => call.async(...values, () => then()));
};

/** `errno` of the last call. */
export const systemErrno = (): number => koffi?.errno() ?? 0;

/** Where a view begins in this process, for structures with pointers in them; a number holds any user space address. */
export const addressOf = (view: Uint8Array): number => Number(koffi!.address(view));
