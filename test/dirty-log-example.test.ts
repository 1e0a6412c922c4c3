// The example of docs/dirty-log.md: it is what is compiled and run here, letter by letter, and a log made like it loses nothing.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import fc from 'fast-check';
import type { RamBlock } from '../src/memory/ram-block.js';
import type { SourceGuest } from '../src/source/guest.js';
import { MigrationSource } from '../src/source/migration-source.js';
import { defaultParameters } from '../src/source/parameters.js';
import { SetLog } from './examples/set-log.js';
import { RecordingSink, ScriptedGuest } from './source-kit.js';

const root = new URL('../../', import.meta.url);
const read = (path: string): string => readFileSync(new URL(path, root), 'utf8');
const PAGES = [200, 70];

class ExampleGuest extends ScriptedGuest implements SourceGuest {
  readonly example = new SetLog(this.blocks);
  override readonly log = this.example;

  override store(block: RamBlock, page: number, value: number): void {
    const { segment, address, firstPage } = block.extentOf(page);
    segment.bytes[address + (page - firstPage) * 4096] = value;
    this.example.wrote(block, page);
  }
}

test('the documentation has the example as it is', () => {
  const blocks = [...read('docs/dirty-log.md').matchAll(/```ts\n([\s\S]*?)```/g)].map(([, code]) => code);
  assert.ok(
    blocks.includes(read('test/examples/set-log.ts')),
    'docs/dirty-log.md differs from test/examples/set-log.ts',
  );
});

test('the documentation has the interface as it is, all of it', () => {
  const source = read('src/dirty-log/dirty-log.ts');
  const documentation = read('docs/dirty-log.md');
  const members = [...source.matchAll(/^ {2}((?:readonly )?\w+(?:\(.*\))?: \w+);$/gm)].map(([, member]) => member!);
  assert.ok(members.length >= 8);
  for (const member of members) {
    assert.ok(documentation.includes(`  ${member};`), member);
  }
});

// G-7, G-8, CB-1: every store travels, whenever it is made
test('a guest with that log arrives as it was, whatever it stores during its migration', async () => {
  const store = fc.record({
    batch: fc.nat(12),
    block: fc.nat(1),
    page: fc.nat(69),
    value: fc.integer({ min: 1, max: 255 }),
  });
  await fc.assert(
    fc.asyncProperty(fc.array(store, { maxLength: 60 }), fc.boolean(), async (stores, eagerClear) => {
      const guest = new ExampleGuest(PAGES);
      const sink = new RecordingSink();
      sink.limit = 40;
      let batch = 0;
      const make = (due: (at: number) => boolean): void => {
        for (const { block, page, value } of stores.filter(({ batch: at }) => due(at))) {
          guest.store(guest.blocks.blocks[block]!, page, value);
        }
      };
      sink.beforeRead = () => guest.running && make((at) => at * 2 === batch);
      sink.afterRead = () => {
        if (guest.running) {
          make((at) => at * 2 + 1 === batch);
          batch += 1;
        }
      };
      guest.beforeStop = () => make((at) => at > batch);
      const engine = new MigrationSource({ guest, sink, parameters: { ...defaultParameters, eagerClear } });
      const report = await engine.run();
      assert.equal(report['error-desc'], undefined);
      for (const block of guest.blocks.blocks) {
        for (let page = 0; page < block.usedPages; page += 1) {
          assert.equal(sink.delivered.get(`${block.name}:${page}`), guest.load(block, page), `${block.name} ${page}`);
        }
      }
    }),
    { numRuns: 25 },
  );
});
