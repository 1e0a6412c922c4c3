// Runs the tests of the built tree with Node's own runner: `npm test`, or `npm test -- PATTERN…` for the test files
// whose path contains one of the patterns. Real worker threads load real JavaScript, so the tests run on dist/.
import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import './build.mjs';

const root = join(dirname(fileURLToPath(import.meta.url)), '..');
const patterns = process.argv.slice(2);

const testFiles = (folder) =>
  readdirSync(folder, { withFileTypes: true }).flatMap((entry) => {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) {
      return testFiles(path);
    }
    return entry.name.endsWith('.test.js') ? [relative(root, path)] : [];
  });

// dist/ may still hold the output of a test that was since deleted or moved.
const hasSource = (file) => existsSync(join(root, file.replace(/^dist[/\\]/, '').replace(/\.js$/, '.ts')));

const files = testFiles(join(root, 'dist'))
  .filter(hasSource)
  .filter((file) => patterns.length === 0 || patterns.some((pattern) => file.includes(pattern)))
  .sort();
if (files.length === 0) {
  console.error(`no test file matches ${patterns.join(' ')}`);
  process.exit(2);
}
// A test that fails in its middle may leave threads that never end, and one that hangs ends nothing: neither may hold up the
// rest. The longest file takes some minutes on two cores, with two versions of QEMU; what RAMFERRY_SLOW asks for may take as
// long as it likes.
const limits = ['--test-force-exit', ...(process.env.RAMFERRY_SLOW === undefined ? ['--test-timeout=900000'] : [])];
const result = spawnSync(
  process.execPath,
  ['--enable-source-maps', '--test', '--test-concurrency=2', '--test-reporter=spec', ...limits, ...files],
  { cwd: root, stdio: ['ignore', 'inherit', 'inherit'] },
);
process.exit(result.status ?? 1);
