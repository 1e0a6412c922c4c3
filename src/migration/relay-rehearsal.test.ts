// A rehearsal must end, or nothing that follows it begins.

import { test } from 'node:test';
import { rehearseRelay } from './relay-rehearsal.js';

// Its guest has fewer pages than its requests could have, if they did not keep clear of what came along with others.
test('the rehearsal of a small guest ends', { timeout: 60_000 }, rehearseRelay);
