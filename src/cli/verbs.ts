// The verbs, in the order of the overview.

import type { VerbEntry } from './verb.js';

export const verbs: readonly VerbEntry[] = [];
