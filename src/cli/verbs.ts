// The verbs, in the order of the overview.

import type { VerbEntry } from './verb.js';

export const verbs: readonly VerbEntry[] = [
  {
    name: 'send',
    operands: '<file> <uri>',
    summary: 'sends a saved guest into a waiting qemu -incoming',
    example: 'send guest.mig tcp:host2:4444',
    load: async () => (await import('./send.js')).send,
  },
];
