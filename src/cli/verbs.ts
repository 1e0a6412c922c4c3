// The verbs, in the order of the overview.

import type { VerbEntry } from './verb.js';

export const verbs: readonly VerbEntry[] = [
  {
    name: 'demo',
    operands: '',
    summary: 'migrates a busy guest to a second process and compares the two',
    example: 'demo',
    load: async () => (await import('./demo/demo.js')).demo,
  },
  {
    name: 'inspect',
    operands: '<file>',
    summary: 'says what a memory file is',
    example: 'inspect guest.mig --pages',
    load: async () => (await import('./inspect.js')).inspect,
  },
  {
    name: 'verify',
    operands: '<file>',
    summary: 'checks that a memory file is whole',
    example: 'verify guest.mig',
    load: async () => (await import('./verify.js')).verify,
  },
  {
    name: 'convert',
    operands: '<in> <out>',
    summary: 'writes a memory file in another format',
    example: 'convert guest.mig guest.core --to elf',
    load: async () => (await import('./convert/convert.js')).convert,
  },
  {
    name: 'diff',
    operands: '<a> <b>',
    summary: 'says which pages of two memory files differ',
    example: 'diff before.mig after.mig',
    load: async () => (await import('./diff.js')).diff,
  },
  {
    name: 'device',
    operands: '<file> [name]',
    summary: 'shows what the devices of a saved guest hold, field by field',
    example: 'device guest.mig cpu/0',
    load: async () => (await import('./device.js')).device,
  },
  {
    name: 'registers',
    operands: '<file>',
    summary: 'shows the registers of each vCPU of a saved x86 guest',
    example: 'registers guest.mig --cpu 0',
    load: async () => (await import('./registers.js')).registers,
  },
  {
    name: 'pages',
    operands: '<file>',
    summary: 'says what the pages of a saved guest hold: entropy, repetitions, how far they compress',
    example: 'pages guest.mig --map',
    load: async () => (await import('./pages.js')).pages,
  },
  {
    name: 'kernel',
    operands: '<file>',
    summary: 'says which Linux kernel a saved guest runs, and shows its log',
    example: 'kernel guest.mig --log',
    load: async () => (await import('./kernel.js')).kernel,
  },
  {
    name: 'receive',
    operands: '<uri> <out>',
    summary: 'is the destination of a live migration and saves the guest',
    example: 'receive tcp:0.0.0.0:4444 guest.mig',
    load: async () => (await import('./receive.js')).receive,
  },
  {
    name: 'send',
    operands: '<file> <uri>',
    summary: 'sends a saved guest into a waiting qemu -incoming',
    example: 'send guest.mig tcp:host2:4444',
    load: async () => (await import('./send.js')).send,
  },
  {
    name: 'serve',
    operands: '<file> <uri>',
    summary: 'runs a saved guest at once in a waiting qemu -incoming; its memory follows',
    example: 'serve guest.mig unix:/run/in.sock',
    load: async () => (await import('./serve.js')).serve,
  },
  {
    name: 'clone',
    operands: '<file> [qemu-command...]',
    summary: 'starts many QEMUs from one saved guest, all running at once',
    example: 'clone guest.mapped -n 8 -- qemu-system-x86_64 -M pc -m 1G -nodefaults -display none',
    load: async () => (await import('./clone.js')).clone,
  },
  {
    name: 'relay',
    operands: '<listen-uri> <uri...>',
    summary: 'moves a live guest on to other QEMUs, where it runs at once',
    example: 'relay tcp:0.0.0.0:4444 unix:/run/in.sock',
    load: async () => (await import('./relay.js')).relay,
  },
];
