// `npm run bench [-- GROUP… --json FILE]`: every path against its peer in the same run, as a table and as JSON
// (DESIGN section 5). A new group is a module that exports `group` (bench/harness.ts) and a line below.

import { renameSync, writeFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { type BenchmarkGroup, type BenchmarkRow, figures, measure, table } from './harness.js';

/** In the order of the table. Imported when asked for, so that one group's needs are not everybody's. */
const groups: Readonly<Record<string, () => Promise<{ readonly group: BenchmarkGroup }>>> = {
  kernels: () => import('./kernels.js'),
  stream: () => import('./stream.js'),
  'mapped-ram': () => import('./mapped-ram.js'),
  restore: () => import('./restore.js'),
  discards: () => import('./discards.js'),
  snapshot: () => import('./snapshot.js'),
  hints: () => import('./hints.js'),
  postcopy: () => import('./postcopy.js'),
  search: () => import('./search.js'),
  dump: () => import('./dump.js'),
};

const usage = (message: string): never => {
  process.stderr.write(
    `${message}\nusage: npm run bench -- [GROUP...] [--json FILE]; groups: ${Object.keys(groups).join(', ')}\n`,
  );
  process.exit(2);
};

const commandLine = (): { readonly names: readonly string[]; readonly json: string | undefined } => {
  try {
    const { positionals, values } = parseArgs({ allowPositionals: true, options: { json: { type: 'string' } } });
    const unknown = positionals.find((name) => !Object.hasOwn(groups, name));
    return unknown === undefined
      ? { names: positionals.length > 0 ? positionals : Object.keys(groups), json: values.json }
      : usage(`there is no benchmark group "${unknown}"`);
  } catch (error) {
    return usage((error as Error).message);
  }
};

// Through `exit`, so that what must not outlive this process is cleared away there.
process.once('SIGINT', () => process.exit(130));
process.once('SIGTERM', () => process.exit(143));

const { names, json } = commandLine();
const rows: BenchmarkRow[] = [];
for (const name of names) {
  const { group } = await groups[name]!();
  for await (const benchmark of group.run()) {
    process.stderr.write(`${group.name}: ${benchmark.name}`);
    const row = await measure(group.name, benchmark);
    process.stderr.write(`: ${figures(row)}\n`);
    rows.push(row);
  }
}
process.stdout.write(`${table(rows)}\n`);
if (json !== undefined) {
  // Complete or not there at all.
  writeFileSync(`${json}.part`, `${JSON.stringify(rows, undefined, 2)}\n`);
  renameSync(`${json}.part`, json);
}
