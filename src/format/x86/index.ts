// What is known about x86 guests (package subpath `ramferry/format/x86`).

export * from './page-tables.js';
export * from './registers.js';
