// Group `search`: 16 random bytes in a guest of 4 GiB of which 1 GiB has content, against ripgrep on a raw dump of the pages that
// have content. Milliseconds of the whole command; the files are in the page cache.

import { spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import fs from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { ByteWriter } from '../src/format/byte-writer.js';
import { mappedRamStart } from '../src/format/mapped-ram/layout.js';
import * as write from '../src/format/stream/write.js';
import { fileOffset } from '../src/memory/units.js';
import { bin } from '../test/command.js';
import { describedTail } from '../test/described-stream.js';
import { clockDevice } from '../test/pc-memory.js';
import { testConfiguration } from '../test/streams.js';
import type { Benchmark, BenchmarkGroup, Measure } from './harness.js';

const PAGE = 4096;
const MIB = 2 ** 20;
const GUEST_BYTES = 4096 * MIB;
/** Every fourth run of so many pages has content. */
const RUN_PAGES = 64;
const RUN_BYTES = RUN_PAGES * PAGE;

const RUNS = { runs: 7, warmUpRuns: 2 };

interface SearchFiles {
  readonly stream: string;
  readonly mapped: string;
  readonly raw: string;
  readonly needle: Buffer;
}

/** Kinds of content that guests have: noise, code, a log, pointers. */
const contents = (): Buffer[] => {
  const log = Array.from(
    { length: 5000 },
    (_, line) => `[${line * 0.371}] usb ${line % 9}-1: read/${line * 31}, error -110\n`,
  );
  const pointers = Buffer.alloc(RUN_BYTES);
  for (let at = 0; at < RUN_BYTES; at += 64) {
    pointers.writeBigUInt64LE(0xffff_8880_0000_0000n + BigInt(at * 977), at);
  }
  const program = fs.openSync(process.execPath, 'r');
  const code = Buffer.alloc(RUN_BYTES);
  fs.readSync(program, code, 0, RUN_BYTES, 32 * MIB);
  fs.closeSync(program);
  return [randomBytes(RUN_BYTES), code, Buffer.from(log.join('').repeat(2)).subarray(0, RUN_BYTES), pointers];
};

const writeFiles = (folder: string): SearchFiles => {
  // ripgrep takes no line break in an expression.
  const needle = randomBytes(16).map((byte) => (byte === 0x0a ? 0x0b : byte)) as Buffer;
  const files = {
    stream: join(folder, 'guest.mig'),
    mapped: join(folder, 'guest.mapped'),
    raw: join(folder, 'raw'),
    needle,
  };
  const [stream, mapped, raw] = [files.stream, files.mapped, files.raw].map((file) => fs.openSync(file, 'w')) as [
    number,
    number,
    number,
  ];
  const blocks = [{ name: 'pc.ram', usedLength: GUEST_BYTES }];
  const tail = describedTail([clockDevice(2048 * MIB, 2048 * MIB)]);
  const machine = 'pc-q35-10.0';
  const head = write.streamHeader(testConfiguration({ machine, capabilities: ['mapped-ram'] }));
  const { pieces, layouts, end } = mappedRamStart(fileOffset(head.length), 1, blocks, PAGE);
  const { pagesOffset, bitmapOffset, bitmapBytes } = layouts[0]!;
  fs.writeSync(mapped, head, 0, head.length, 0);
  for (const { bytes, position } of pieces) {
    fs.writeSync(mapped, bytes, 0, bytes.length, position);
  }
  const bitmap = new Uint8Array(bitmapBytes);
  const first = new ByteWriter();
  first
    .bytes(write.streamHeader(testConfiguration({ machine })))
    .bytes(write.ramStart(1, blocks, []))
    .bytes(write.ramPart(2, 1));
  fs.writeSync(stream, first.copy());
  const kinds = contents();
  const runs = GUEST_BYTES / RUN_BYTES;
  for (let run = 1; run < runs; run += 4) {
    const content = kinds[((run - 1) / 4) % kinds.length]!;
    if (run === runs - 3) {
      needle.copy(content, PAGE - 8);
    }
    fs.writeSync(raw, content);
    fs.writeSync(mapped, content, 0, RUN_BYTES, pagesOffset + run * RUN_BYTES);
    bitmap.fill(0xff, (run * RUN_PAGES) / 8, ((run + 1) * RUN_PAGES) / 8);
    const records = new ByteWriter(RUN_BYTES + RUN_PAGES * 16);
    for (let page = 0; page < RUN_PAGES; page += 1) {
      const name = run === 1 && page === 0 ? 'pc.ram' : undefined;
      write.normalRecord(
        records,
        (run * RUN_PAGES + page) * PAGE,
        content.subarray(page * PAGE, (page + 1) * PAGE),
        name,
      );
    }
    fs.writeSync(stream, records.copy());
  }
  fs.writeSync(mapped, bitmap, 0, bitmap.length, bitmapOffset);
  const last = new ByteWriter();
  last.bytes(write.ramBodyEnd(1)).bytes(write.ramPart(3, 1)).bytes(write.ramBodyEnd(1));
  last.bytes(tail.sections).bytes(write.streamEnd(tail.description));
  fs.writeSync(stream, last.copy());
  const mappedEnd = Buffer.concat([write.ramPart(2, 1), last.copy()]);
  fs.writeSync(mapped, mappedEnd, 0, mappedEnd.length, end);
  for (const descriptor of [stream, mapped, raw]) {
    fs.closeSync(descriptor);
  }
  return files;
};

/** The time of a command that has to find one place. */
const timed = (program: string, args: readonly string[], isRight: (stdout: string) => boolean): number => {
  const start = performance.now();
  const { status, stdout, error } = spawnSync(program, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] });
  const ms = performance.now() - start;
  if (status !== 0 || !isRight(stdout)) {
    throw new Error(`${program} found something else: ${error?.message ?? stdout}`);
  }
  return ms;
};

const ours =
  (file: string, needle: Buffer): Measure =>
  () =>
    timed(
      process.execPath,
      [bin, 'search', file, '--hex', needle.toString('hex'), '--json'],
      (stdout) => (JSON.parse(stdout) as { count: number }).count === 1,
    );

const ripgrep = ({ raw, needle }: SearchFiles): Benchmark['peer'] => {
  const program = process.env['RAMFERRY_RIPGREP'] ?? 'rg';
  if (spawnSync(program, ['--version']).status !== 0) {
    return { missing: 'no ripgrep (RAMFERRY_RIPGREP, PATH)' };
  }
  const bytes = Array.from(needle, (byte) => `\\x${byte.toString(16).padStart(2, '0')}`).join('');
  return {
    name: 'rg -c',
    measure: () => timed(program, ['-a', '-c', `(?-u:${bytes})`, raw], (stdout) => stdout.trim() === '1'),
  };
};

export const group: BenchmarkGroup = {
  name: 'search',
  async *run() {
    const folder = fs.mkdtempSync(join(tmpdir(), 'ramferry-bench-'));
    const clean = (): void => fs.rmSync(folder, { recursive: true, force: true });
    process.once('exit', clean);
    try {
      const files = writeFiles(folder);
      const peer = ripgrep(files);
      const common = { unit: 'ms', better: 'lower', peer, ...RUNS } as const;
      yield { name: '16 bytes in 1 of 4 GiB, mapped-ram', ...common, ours: ours(files.mapped, files.needle) };
      yield { name: '16 bytes in 1 of 4 GiB, stream', ...common, ours: ours(files.stream, files.needle) };
    } finally {
      clean();
    }
  },
};
