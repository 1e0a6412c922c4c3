// Binds the kernels to a memory: the wasm ones, or their twins where the engine cannot compile wasm SIMD and threads.
// A binding is good for one thread and for as long as the memory does not grow: create memories with
// initial == maximum. The modules are compiled once per thread, at the first binding (0.2 ms).

import { wasm as bitmapWasm } from './generated/bitmap.js';
import { wasm as pagesWasm } from './generated/pages.js';
import { wasm as searchWasm } from './generated/search.js';
import type { BitmapKernels, PageKernels, SearchKernels } from './kernels.js';
import { bindBitmapTwin } from './twin/bitmap-twin.js';
import { bindPageTwin } from './twin/pages-twin.js';
import { bindSearchTwin } from './twin/search-twin.js';

export * from './kernels.js';

const decode = (base64: string): Uint8Array<ArrayBuffer> => Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));

/** Instantiates one module, or returns undefined for lack of SIMD or threads: validation of the module is the test. */
const lazyModule = (base64: string): ((memory: WebAssembly.Memory) => WebAssembly.Exports | undefined) => {
  let module: WebAssembly.Module | undefined;
  return (memory) => {
    if (module === undefined) {
      const bytes = decode(base64);
      if (!WebAssembly.validate(bytes)) {
        return undefined;
      }
      module = new WebAssembly.Module(bytes);
    }
    return new WebAssembly.Instance(module, { env: { memory } }).exports;
  };
};

const bitmapExports = lazyModule(bitmapWasm);
const pageExports = lazyModule(pagesWasm);
const searchExports = lazyModule(searchWasm);

/** Bitmap kernels over a shared memory of at most 4 GiB. */
export const bindBitmapKernels = (memory: WebAssembly.Memory): BitmapKernels =>
  (bitmapExports(memory) as BitmapKernels | undefined) ?? bindBitmapTwin(memory);

/** Page kernels over a shared memory of at most 4 GiB. */
export const bindPageKernels = (memory: WebAssembly.Memory): PageKernels =>
  (pageExports(memory) as PageKernels | undefined) ?? bindPageTwin(memory);

/** Search kernels over a memory of less than 2 GiB that is not shared. */
export const bindSearchKernels = (memory: WebAssembly.Memory): SearchKernels =>
  (searchExports(memory) as SearchKernels | undefined) ?? bindSearchTwin(memory);
