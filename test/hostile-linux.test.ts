// Guests whose kernel has been tampered with: VMCOREINFO, page tables, symbols and logs are the guest's word, and whoever asks
// `kernel` gets an answer, or is told what is wrong, in bounded time.

import assert from 'node:assert/strict';
import { Buffer } from 'node:buffer';
import { describe, test } from 'node:test';
import { kernelText, logLines } from '../src/cli/kernel-text.js';
import { createColors } from '../src/cli/terminal.js';
import { type KernelAnswer, kernelAnswer } from '../src/format/linux/kernel-answer.js';
import { openSnapshot } from '../src/format/open-snapshot.js';
import type { Snapshot } from '../src/format/snapshot.js';
import { startCpuTimer } from './cpu-time.js';
import {
  DIRECT_ADDRESS,
  putBuffer,
  putRing,
  putSymbols,
  putText,
  RECORDS,
  TestLinux,
  vmcoreinfoDevice,
  wholeLinux,
} from './linux-memory.js';
import { survives, withMutations } from './mutations.js';

const open = (bytes: Uint8Array): Snapshot =>
  openSnapshot((at, target) => target.set(bytes.subarray(at, at + target.length)), bytes.length);

const answer = async (snapshot: Snapshot): Promise<KernelAnswer> => {
  const found = await kernelAnswer(snapshot, async (scan) => {
    while (scan.advance() > 0) {}
  });
  assert.ok(kernelText(found, createColors(false)).length < 100_000);
  if (found.log !== undefined) {
    assert.ok(logLines(found.log).length < 2 ** 28);
  }
  return found;
};

/** Where bytes of the guest's memory are in its stream, for bytes that are nowhere else. */
const placeOf = (stream: Uint8Array, bytes: Uint8Array | string, length: number): readonly [number, number] => {
  const at = Buffer.from(stream).indexOf(bytes);
  assert.ok(at > 0);
  return [at, at + length];
};

const wordsOf = (linux: TestLinux, virtual: bigint, length: number): Uint8Array => {
  const view = linux.view(virtual);
  return new Uint8Array(view.buffer, view.byteOffset, length).slice();
};

const symbolOf = (linux: TestLinux, name: string): bigint => {
  const line = linux.lines.find((each) => each.startsWith(`SYMBOL(${name})=`))!;
  return BigInt(`0x${line.slice(line.indexOf('=') + 1)}`);
};

describe('a kernel that was tampered with', () => {
  test('VMCOREINFO, symbols, the ring of its log, page tables', async () => {
    const linux = wholeLinux();
    const bytes = linux.stream({ devices: [vmcoreinfoDevice()], isSparse: true });
    const pointer = symbolOf(linux, 'prb');
    const ring = linux.view(pointer).getBigUint64(0, true);
    const tables = linux.tables.pagesOf('pc.ram').map(({ content }) => placeOf(bytes, content, 4096));
    const places = [
      placeOf(bytes, 'OSRELEASE=', linux.vmcoreinfo.length),
      placeOf(bytes, 'OSRELEASE=', linux.vmcoreinfo.length),
      placeOf(bytes, 'OSRELEASE=', 300),
      placeOf(bytes, wordsOf(linux, ring, 88), 88),
      placeOf(bytes, wordsOf(linux, symbolOf(linux, 'kallsyms_names'), 256), 256),
      placeOf(bytes, wordsOf(linux, symbolOf(linux, 'kallsyms_offsets'), 20), 20),
      ...tables,
    ];
    const snapshot = open(bytes);
    const whole = await answer(snapshot);
    assert.deepEqual([whole.log?.records.length, whole.bootId?.slice(0, 8)], [RECORDS.length, 'e4a9b86a']);
    let damaged = 0;
    let searched = 0;
    await survives(
      (below) =>
        withMutations(bytes, below, places, async () => {
          const { kernel, log } = await answer(snapshot);
          damaged += log?.damage === undefined ? 0 : 1;
          searched += kernel?.foundBy === 'device' ? 0 : 1;
        }),
      { seed: 21, codes: [] },
    );
    assert.ok(damaged > 0 && searched > 0, `${damaged} damaged logs, ${searched} found by search`);
    assert.deepEqual(await answer(snapshot), whole);
  });

  for (const [what, put] of [
    ['of records', (linux: TestLinux) => void putBuffer(linux, RECORDS)],
    ['of text', (linux: TestLinux) => putText(linux, ['<6>one', '<3>two', 'three'])],
  ] as const) {
    test(`a log ${what}`, async () => {
      const linux = new TestLinux();
      put(linux);
      const bytes = linux.stream({ devices: [vmcoreinfoDevice()], isSparse: true });
      const variables = ['log_buf', 'log_buf_len'].map((name) =>
        placeOf(bytes, wordsOf(linux, symbolOf(linux, name), 8), 32),
      );
      const buffer = linux.view(symbolOf(linux, 'log_buf')).getBigUint64(0, true);
      const places = [
        ...variables,
        placeOf(bytes, wordsOf(linux, buffer, 64), 128),
        placeOf(bytes, 'OSRELEASE=', linux.vmcoreinfo.length),
      ];
      const snapshot = open(bytes);
      let damaged = 0;
      await survives(
        (below) =>
          withMutations(bytes, below, places, async () => {
            damaged += (await answer(snapshot)).log?.damage === undefined ? 0 : 1;
          }),
        { seed: 22, codes: [] },
      );
      assert.ok(damaged > 0);
    });
  }
});

describe('a kernel that is made to be slow', () => {
  /** Milliseconds that an answer takes. */
  const timed = async (snapshot: Snapshot): Promise<{ readonly ms: number; readonly found: KernelAnswer }> => {
    const cpuMs = startCpuTimer();
    const found = await answer(snapshot);
    return { ms: cpuMs(), found };
  };

  /** Maps a page of memory over and over, 512 GiB of it, from a virtual address on that is a multiple of that. */
  const mapEndlessly = (linux: TestLinux, virtual: bigint, content: Uint8Array): void => {
    const at = linux.direct.length - 4096;
    linux.direct.set(content, at);
    const { tables } = linux;
    tables.map(virtual, BigInt(DIRECT_ADDRESS + at));
    let table = tables.root;
    let index = Number((virtual >> 39n) & 511n);
    for (let level = 0; level < 3; level += 1) {
      table = Number(tables.entry(table, index) & ~0xfffn);
      index = 0;
      for (let other = 1; other < 512; other += 1) {
        tables.put(table, other, tables.entry(table, 0));
      }
    }
  };
  const endless = 0xffff_9000_0000_0000n;

  test('names of symbols without end', async () => {
    const linux = new TestLinux();
    putSymbols(linux, { init_uts_ns: linux.textVirtual });
    // Each name is 32,767 times the token that is nothing.
    mapEndlessly(linux, endless, new Uint8Array(4096).fill(0xff));
    linux.view(symbolOf(linux, 'kallsyms_num_syms')).setUint32(0, 2 ** 15, true);
    linux.lines.push(`SYMBOL(kallsyms_names)=${endless.toString(16)}`);
    const { ms, found } = await timed(open(linux.stream({ devices: [vmcoreinfoDevice()], isSparse: true })));
    assert.equal(found.kernel?.symbols.size, 0);
    assert.ok(ms < 3000, `${ms} ms`);
  });

  test('a log of nothing but line breaks, in one page that is mapped again and again', async () => {
    const linux = new TestLinux();
    mapEndlessly(linux, endless, new Uint8Array(4096).fill(0x0a));
    const { ring, descriptors, infos } = putRing(
      linux,
      Array.from({ length: 64 }, () => ({ text: 'x' })),
      { countBits: 6, sizeBits: 12 },
    );
    linux.view(ring).setBigUint64(48, 22n, true);
    linux.view(ring).setBigUint64(56, endless, true);
    for (let index = 0; index < 64; index += 1) {
      linux.view(descriptors).setBigUint64(24 * index + 8, BigInt(index * 65536), true);
      linux.view(descriptors).setBigUint64(24 * index + 16, BigInt((index + 1) * 65536), true);
      linux.view(infos).setUint16(88 * index + 16, 65528, true);
    }
    const { ms, found } = await timed(open(linux.stream({ devices: [vmcoreinfoDevice()], isSparse: true })));
    assert.match(found.log?.damage?.message ?? '', /it has more than \d+ lines\.$/);
    assert.ok(ms < 4000, `${ms} ms`);
  });

  test('memory that is full of beginnings', async () => {
    for (const text of ['Linux version 6.1 (a #', 'OSRELEASE=6\nPAGESIZE=4096\n', 'Kernel command line: x']) {
      const bytes = new TestLinux().stream({ more: text.repeat(2 ** 20 / text.length) });
      const { ms } = await timed(open(bytes));
      assert.ok(ms < 2000, `${text}: ${ms} ms`);
    }
  });
});
