// `npm run toolbox [-- PART…]`: unpacks QEMU and a Linux guest into .toolbox, or where RAMFERRY_TOOLBOX says (Debian, as root).
import './build.mjs';

await import('../dist/test/toolbox/fill.js');
