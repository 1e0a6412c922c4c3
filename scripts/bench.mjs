// `npm run bench [-- GROUP… --json FILE]`: builds what is stale, then runs the benchmarks.
import './build.mjs';

await import('../dist/bench/main.js');
