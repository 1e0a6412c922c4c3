// Our loading process of the mapped-ram benchmarks: loads the file of argument 1 into memory of its own, once, when it is
// told, and says so.

import { adviseHugePages } from '../src/memory/huge-pages-node.js';
import { RamBlockList } from '../src/memory/index.js';
import { loadMappedRam } from '../src/memory-file/load-mapped-ram-node.js';
import { MEMORY_LIMIT } from './loaded-guest.js';
import { serveParent, tellParent } from './node-child.js';

serveParent(async () => {
  const blocks = RamBlockList.create({ onSegment: adviseHugePages });
  await loadMappedRam(process.argv[2]!, { blocks, memoryLimit: MEMORY_LIMIT });
  return 'loaded';
});
tellParent('ready');
