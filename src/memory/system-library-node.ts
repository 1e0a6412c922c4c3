// The C library, for the few calls that Node does not have. It is reached through the optional dependency koffi; where that
// is missing, or the system is not Linux, its users do without.

import { createRequire } from 'node:module';
import process from 'node:process';

/** A pointer is the first byte of a view: shared wasm memory never moves, so the address stays good. */
export type SystemFunction = (...values: (number | Uint8Array)[]) => number;

/** What is used of koffi. Not its own types: it may be missing where this is compiled. */
interface Koffi {
  load(library: null): { func(declaration: string): SystemFunction };
}

const open = (): ReturnType<Koffi['load']> | undefined => {
  try {
    return process.platform === 'linux' ? (createRequire(import.meta.url)('koffi') as Koffi).load(null) : undefined;
  } catch {
    return undefined;
  }
};

let library: ReturnType<Koffi['load']> | undefined;
let isOpen = false;

/** The function of that C declaration, or undefined where there is no way to call it. The first call loads koffi. */
export const systemFunction = (declaration: string): SystemFunction | undefined => {
  if (!isOpen) {
    isOpen = true;
    library = open();
  }
  return library?.func(declaration);
};
