// A command line with verbs that do nothing but end in every way a verb can end; src/cli's tests run it as a process.

import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import { OutputFile } from '../src/channel/output-file-node.js';
import { parseSize } from '../src/cli/arguments.js';
import { runCommandLine } from '../src/cli/command-line.js';
import type { Verb } from '../src/cli/verb.js';
import { RamferryError } from '../src/memory/errors.js';

const defect = (): void => (undefined as unknown as { x: () => void }).x();

const endings: Record<string, () => unknown> = {
  well: () => undefined,
  failed: () => {
    throw new RamferryError('failed', 'PEER_CLOSED', 'The peer closed.', { file: 'unix:x', hint: 'look there' });
  },
  usage: () => {
    throw new RamferryError('usage', 'INVALID_URI', 'Not a URI.');
  },
  invalid: () => {
    throw new RamferryError('invalid', 'BAD_MAGIC', 'Bad magic.', { file: 'x.mig', offset: 4096, value: 7n });
  },
  defect,
  missing: () => {
    writeFileSync('/nonexistent/file', '');
  },
  later: () => {
    setTimeout(defect, 1);
    return delay(10_000);
  },
};

const end: Verb<{ size?: number }> = {
  configure: (command) => command.option('--size <size>', 'a size', parseSize).option('--hang', 'leave a timer behind'),
  examples: [['well', 'ends well']],
  run: async ({ operands, options, progress }) => {
    progress.update({ phase: 'active', totalBytes: 100, remainingBytes: 50 });
    progress.note('listening on unix:/tmp/x');
    setInterval(() => {}, 1000);
    if (operands[0] === 'mismatch') {
      const failure = new RamferryError('failed', 'MISMATCH', 'Page 7 differs.');
      return { document: { pages: 8 }, text: '8 pages\n', failure };
    }
    await endings[operands[0]!]?.();
    return { document: { operands, size: options.size }, text: `ended ${operands.join(' ')}\n` };
  },
};

const publish: Verb = {
  configure: () => {},
  examples: [],
  run: async ({ operands, signal, publish: print }) => {
    await print({ document: { running: 3 }, text: '3 run\n' });
    const timer = setInterval(() => {}, 1000);
    await once(signal, 'abort');
    clearInterval(timer);
    const failure = operands[0] === 'failed' ? new RamferryError('failed', 'DIED', 'The clone died.') : undefined;
    return { document: { running: 0 }, text: 'none runs\n', failure };
  },
};

const lots: Verb = {
  configure: () => {},
  examples: [],
  run: async () => ({ document: {}, text: 'all work and no play\n'.repeat(100_000) }),
};

const write: Verb = {
  configure: () => {},
  examples: [],
  run: async ({ operands, signal, progress }) => {
    const file = OutputFile.open(operands[0]!);
    try {
      writeFileSync(file.descriptor, 'new content');
      progress.note('writing');
      const timer = setInterval(() => {}, 1000);
      await once(signal, 'abort');
      clearInterval(timer);
      progress.note('cleaning up');
      await delay(operands[1] === 'slowly' ? 60_000 : 50);
      throw new Error('everything fell over');
    } finally {
      file.abort();
    }
  },
};

await runCommandLine(
  [
    { name: 'end', operands: '<how> [more...]', summary: 'ends', example: 'end well', load: async () => end },
    { name: 'lots', operands: '', summary: 'prints much', example: 'lots | head', load: async () => lots },
    { name: 'publish', operands: '<how>', summary: 'goes on', example: 'publish well', load: async () => publish },
    { name: 'write', operands: '<file> [how]', summary: 'writes', example: 'write x', load: async () => write },
    {
      name: 'broken',
      operands: '',
      summary: 'cannot be loaded',
      example: 'broken',
      load: () => Promise.reject(new Error('loaded although it was not asked for')),
    },
  ],
  process.argv.slice(2),
);
