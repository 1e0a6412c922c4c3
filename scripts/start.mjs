// `npm start [-- VERB …]` from a checkout: builds what is stale, then runs the command line; `demo` without a verb.
import { spawn } from 'node:child_process';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import './build.mjs';

const root = join(dirname(fileURLToPath(import.meta.url)), '..');
const args = process.argv.slice(2);
const child = spawn(process.execPath, [join(root, 'bin', 'ramferry.js'), ...(args.length === 0 ? ['demo'] : args)], {
  stdio: 'inherit',
});
// Ctrl-C reaches the whole foreground group; this process only has to outlive the child to report its status.
process.on('SIGINT', () => {});
process.on('SIGTERM', () => child.kill('SIGTERM'));
child.on('exit', (code, signal) => {
  process.exitCode = signal === null ? (code ?? 1) : 1;
});
