// `npm run toolbox [-- PART…]`: QEMU and a Linux guest for the tests and for `demo --guest qemu`, unpacked on Debian.

import { fillToolbox, parts, toolboxFolder } from './toolbox.js';

const names = parts.map(({ name }) => name);
const words = process.argv.slice(2);
const unknown = words.find((word) => !names.some((name) => name === word));
if (unknown !== undefined) {
  process.stderr.write(`The toolbox has no part "${unknown}"; its parts are ${names.join(', ')}.\n`);
  process.exit(2);
}
const wanted = parts
  .filter(({ name, need }) => (words.length === 0 ? need !== 'on request' : words.includes(name)))
  .map(({ name }) => name);
const missing = fillToolbox(wanted);
for (const name of wanted) {
  const why = missing.get(name);
  process.stdout.write(why === undefined ? `${name} is in ${toolboxFolder()}\n` : `${name} is missing: ${why}\n`);
}
process.exitCode = missing.size > 0 ? 1 : 0;
