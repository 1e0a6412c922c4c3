// Says in a sentence which Node it takes, in place of whatever an older one stumbles over first. npm is not asked to refuse
// (engine-strict): it would also refuse for the sake of packages that only build, and with them a plain Debian, whose npm is 9.
import { readFileSync } from 'node:fs';

const { engines } = JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8'));
const floor = engines.node.replace('>=', '');
const [major, minor] = process.versions.node.split('.').map(Number);
const [leastMajor, leastMinor] = floor.split('.').map(Number);

if (major < leastMajor || (major === leastMajor && minor < leastMinor)) {
  console.error(`ramferry needs Node ${floor} or newer; this is ${process.versions.node}.`);
  process.exit(1);
}
