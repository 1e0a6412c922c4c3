// `npm run record`: saves the machines of test/interop/machines.ts anew, into test/recorded (Debian, as root, with zstd).
import './build.mjs';

await import('../dist/test/recorded/record.js');
