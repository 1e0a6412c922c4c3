// The package as its users import it: by the entry points of package.json, of which docs/library.md has a table.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { openSnapshot } from 'ramferry/format';
import { kernelAnswer } from 'ramferry/format/linux';
import { LiteralMatcher, MemorySearch, memoryStretches, SearchMemory, textNeedles } from 'ramferry/format/search';
import { BANNER, RELEASE, wholeLinux } from './linux-memory.js';

const read = (file: string): string => readFileSync(new URL(`../../${file}`, import.meta.url), 'utf8');

test('every entry point can be imported, and is in the table of the documentation', async () => {
  const { exports } = JSON.parse(read('package.json')) as { exports: Record<string, string> };
  const rows = read('docs/library.md');
  for (const entry of Object.keys(exports)) {
    const name = `ramferry${entry.slice(1)}`;
    const module = (await import(name)) as object;
    assert.ok(Object.keys(module).length > 0, name);
    assert.ok(rows.includes(`| \`${name}\``), `docs/library.md has no row for ${name}`);
  }
});

test("a guest's kernel and what is in its memory, through the entry points alone", async () => {
  const bytes = wholeLinux().stream();
  const snapshot = openSnapshot((at, target) => target.set(bytes.subarray(at, at + target.length)), bytes.length);
  const { release, log } = await kernelAnswer(snapshot, async (scan) => {
    while (scan.advance() > 0) {}
  });
  assert.deepEqual([release, log?.records[0]?.text], [RELEASE, BANNER]);

  const memory = new SearchMemory();
  const matcher = new LiteralMatcher(memory, textNeedles('Linux version', { encodings: ['utf-8'], ignoreCase: false }));
  const blocks = new Set(snapshot.setup.blocks.map(({ index }) => index));
  const found: string[] = [];
  const search = new MemorySearch(snapshot, memoryStretches(snapshot, undefined, blocks), memory, matcher, {
    limit: 100,
    visit: ({ bytes: match }) => found.push(Buffer.from(match).toString()),
  });
  while (search.step() > 0) {}
  // In the image, and in the log.
  assert.deepEqual(found, ['Linux version', 'Linux version']);
});
