#!/usr/bin/env node
import './node-floor.js';

// Not a static import: an older Node refuses that before any module runs.
await import('../dist/src/cli/main.js');
