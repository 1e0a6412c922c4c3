// Entry of the `ramferry` command.

import { runCommandLine } from './command-line.js';
import { verbs } from './verbs.js';

await runCommandLine(verbs, process.argv.slice(2));
