// Builds everything that is derived: the kernels (AssemblyScript to wasm, embedded as base64 so that Node and the
// browser load them alike) and the TypeScript. Skips what is newer than its sources; writes to stderr only, because
// `npm start -- VERB --json` owns stdout.
import { spawnSync } from 'node:child_process';
import { mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import '../bin/node-floor.js';

const root = join(dirname(fileURLToPath(import.meta.url)), '..');
const bin = (name) => join(root, 'node_modules', '.bin', name);

/** Newest modification time, in milliseconds, of the files below the given paths. */
const newest = (...paths) =>
  Math.max(
    0,
    ...paths.flatMap((path) => {
      const stat = statSync(join(root, path), { throwIfNoEntry: false });
      if (stat === undefined) {
        return [];
      }
      return stat.isDirectory()
        ? readdirSync(join(root, path)).map((name) => newest(join(path, name)))
        : [stat.mtimeMs];
    }),
  );

const run = (command, args, output) => {
  const { status, error } = spawnSync(command, args, { cwd: root, stdio: ['ignore', 2, 2] });
  if (status !== 0) {
    // Whatever it left must not pass for up to date.
    rmSync(join(root, output), { force: true });
    console.error(`build failed: ${command}: ${error?.message ?? `status ${status}`}`);
    process.exit(1);
  }
};

/** Kernels over memory of one thread alone. It is not shared: what V8 copies into shared memory goes word by word. */
const unshared = new Set(['search']);

// One wasm module per file in kernels/assembly whose name does not start with an underscore.
const modules = readdirSync(join(root, 'kernels', 'assembly')).filter((name) => /^[a-z].*\.ts$/.test(name));
for (const file of modules) {
  const name = file.replace(/\.ts$/, '');
  const target = join('kernels', 'generated', `${name}.ts`);
  if (newest(target) > newest('kernels/assembly', 'scripts/build.mjs')) {
    continue;
  }
  mkdirSync(join(root, 'kernels', 'generated'), { recursive: true });
  const wasm = join('kernels', 'generated', `${name}.wasm`);
  // No runtime and no static data: the module's memory is guest memory, nothing of ours may land in it.
  run(
    bin('asc'),
    [
      join('kernels', 'assembly', file),
      ...['-O3', '--noAssert', '--runtime', 'stub', '--importMemory', '--enable', 'simd'],
      ...(unshared.has(name) ? [] : ['--sharedMemory', '--enable', 'threads']),
      ...['--initialMemory', '1', '--maximumMemory', '65536', '-o', wasm],
    ],
    wasm,
  );
  const base64 = readFileSync(join(root, wasm)).toString('base64');
  writeFileSync(
    join(root, target),
    `// Generated from kernels/assembly/${file} by scripts/build.mjs.\nexport const wasm =\n  '${base64}';\n`,
  );
  rmSync(join(root, wasm));
}

const stamp = join('dist', '.tsbuildinfo');
if (newest(stamp) < newest('src', 'kernels', 'test', 'bench', 'tsconfig.json', 'package.json')) {
  run(bin('tsc'), ['--pretty', 'false'], stamp);
  // tsc leaves the stamp alone when the output did not change; touch it so that the next start is quick.
  writeFileSync(join(root, stamp), readFileSync(join(root, stamp)));
}
