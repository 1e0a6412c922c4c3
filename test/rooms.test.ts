// The rooms of DESIGN section 3: imports only go downward, and browser-safe rooms import nothing from Node.

import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join, relative, resolve, sep } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';

const root = resolve(dirname(fileURLToPath(import.meta.url)), '..', '..');

/** Highest first; rooms of one row may not import each other. */
const rows = [
  ['src/cli', 'src/web'],
  ['src/migration'],
  ['src/guest'],
  ['src/memory-file'],
  ['src/qemu'],
  ['src/source', 'src/destination'],
  ['src/device'],
  ['src/format'],
  ['src/channel'],
  ['src/dirty-log'],
  ['src/memory'],
  ['kernels'],
];

/** Rooms whose product code must run in a browser. Elsewhere a file that needs Node says so in its name: `*-node.ts`. */
const browserSafe = new Set(['src/source', 'src/destination', 'src/device', 'src/format', 'kernels']);

/** Rooms in which only `*-node.ts` may import from Node. */
const nodeByName = new Set(['src/channel', 'src/dirty-log', 'src/guest', 'src/memory', 'src/memory-file']);

const sourceFiles = (folder: string): string[] =>
  readdirSync(join(root, folder), { withFileTypes: true }).flatMap((entry) => {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) {
      return ['assembly', 'generated'].includes(entry.name) ? [] : sourceFiles(path);
    }
    return entry.name.endsWith('.ts') ? [path] : [];
  });

const roomOf = (path: string): string | undefined => rows.flat().find((room) => path.startsWith(room + sep));

const importsOf = (file: string): string[] => {
  const text = readFileSync(join(root, file), 'utf8');
  return [
    ...text.matchAll(
      /(?:^|\n)\s*(?:import|export)\b[^;'"]*?from\s*['"]([^'"]+)['"]|import\(\s*['"]([^'"]+)['"]\s*\)|new URL\(\s*['"]([^'"]+)['"],\s*import\.meta\.url/g,
    ),
  ].map((match) => match[1] ?? match[2] ?? match[3] ?? '');
};

const files = [...sourceFiles('src'), ...sourceFiles('kernels')];
const isTest = (file: string): boolean => /\.test\.(worker\.)?ts$/.test(file);

test('the check sees the tree', () => {
  assert.ok(files.length > 10);
  assert.ok(files.some((file) => importsOf(file).length > 0));
});

test('every source file is in a room, or is the public index', () => {
  const homeless = files.filter((file) => roomOf(file) === undefined && file !== join('src', 'index.ts'));
  assert.deepEqual(homeless, []);
});

test('imports only go downward', () => {
  const upward: string[] = [];
  for (const file of files) {
    const from = roomOf(file);
    if (from === undefined) {
      continue;
    }
    for (const specifier of importsOf(file).filter((name) => name.startsWith('.'))) {
      const target = relative(root, resolve(root, dirname(file), specifier));
      const to = roomOf(target);
      // Tests may reach for the shared helpers in test/, never for a higher room.
      if (to === undefined && isTest(file) && target.startsWith(`test${sep}`)) {
        continue;
      }
      const rowOf = (room: string | undefined): number =>
        rows.findIndex((row) => room !== undefined && row.includes(room));
      if (to !== from && rowOf(to) <= rowOf(from)) {
        upward.push(`${file} imports ${specifier}`);
      }
    }
  }
  assert.deepEqual(upward, []);
});

test('browser-safe code imports nothing from Node', () => {
  const offenders = files.filter((file) => {
    const room = roomOf(file) ?? '';
    const safe = browserSafe.has(room) || (nodeByName.has(room) && !/-node\.ts$/.test(file));
    return safe && !isTest(file) && importsOf(file).some((name) => name.startsWith('node:') || name === 'koffi');
  });
  assert.deepEqual(offenders, []);
});
