// kill -9 at random moments of whatever writes a mapped-ram file: under its name there is a complete good file, or what was
// there before; and what lies under another name nobody takes for a good one.
//
//   OUT.ramferry-partial-PID ──▶ OUT ──▶ OUT.digest.ramferry-partial-PID ──▶ OUT.digest
//           a third of the rounds from here on ─┘

import assert from 'node:assert/strict';
import { type ChildProcess, fork } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { after, test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { RunningCommand, runCommand } from '../../test/command.js';
import { patternPage, StreamBuilder, type TestRecord, testDevice } from '../../test/streams.js';
import { deviceStates } from '../format/stream/device-tail.js';
import { WorkloadGuest } from '../guest/workload/workload-guest-node.js';
import { RamferryError } from '../memory/errors.js';
import { RamBlockList } from '../memory/ram-block-list.js';
import { loadMappedRam } from '../memory-file/load-mapped-ram-node.js';
import type { VerbResult } from './verb.js';
import { verify } from './verify.js';

const ROUNDS = process.env['RAMFERRY_SLOW'] === '1' ? 200 : 24;

/** Commands at a time. */
const PARALLEL = 2;

const base = fs.mkdtempSync(path.join(os.tmpdir(), 'ramferry-kill-'));
after(() => fs.rmSync(base, { recursive: true, force: true }));

const PAGES = 6000;
const contents = Array.from({ length: 500 }, (_, seed) => patternPage(seed));
const contentOf = (page: number): Uint8Array => contents[page % contents.length]!;
const pages = Array.from(
  { length: PAGES },
  (_, page): TestRecord => ({ block: 'pc.ram', page, kind: 'normal', content: contentOf(page) }),
);
const input = path.join(base, 'input.mig');
fs.writeFileSync(
  input,
  new StreamBuilder()
    .header()
    .ramStart([{ name: 'pc.ram', usedLength: PAGES * 4096 }])
    .part(pages)
    .end([])
    .devices([testDevice('cpu', 500)]).bytes,
);

interface Verdict {
  readonly valid: boolean;
  readonly digest?: { readonly checked: boolean; readonly mismatches: number };
}

/** What `verify` says of a file; status 3 stands for every error about the input. */
const verdictOf = async (file: string): Promise<{ status: number; verdict?: Verdict }> => {
  const signal = new AbortController().signal;
  const progress = { update() {}, note() {} } as unknown as Parameters<typeof verify.run>[0]['progress'];
  try {
    const { document, failure }: VerbResult = await verify.run({
      ...{ operands: [file], options: {}, signal, progress, publish: async () => {}, printPart: async () => true },
    });
    return { status: failure === undefined ? 0 : failure.kind === 'invalid' ? 3 : 1, verdict: document as Verdict };
  } catch (error) {
    assert.ok(error instanceof RamferryError, String(error));
    return { status: error.kind === 'invalid' ? 3 : 1 };
  }
};

const command = (...args: string[]): ChildProcess => new RunningCommand(args).child;

/** Whether a file is what its writer would have written in peace. */
type IsWhole = (file: string) => Promise<boolean>;

const sameBytes = async (file: string): Promise<boolean> => {
  const peaceful = path.join(base, 'peaceful');
  if (!fs.existsSync(peaceful)) {
    assert.equal((await runCommand('convert', input, peaceful, '--to', 'mapped-ram')).status, 0);
  }
  return fs.readFileSync(file).equals(fs.readFileSync(peaceful));
};

/** All of a guest is there, and every page is one that it wrote. */
const isGuest = async (file: string): Promise<boolean> => {
  const blocks = RamBlockList.create();
  const { summary } = await loadMappedRam(file, { blocks, memoryLimit: 2 ** 28 });
  const guest = WorkloadGuest.restore(blocks, deviceStates(summary.tail, summary.devices));
  try {
    return guest.verify().bad === 0 && guest.counters().pagesWritten > 1000;
  } finally {
    await guest.shutdown();
  }
};

/** Writers, with whether they write a digest. */
const writers: readonly {
  readonly name: string;
  readonly start: (out: string, round: number) => ChildProcess;
  readonly hasDigest: boolean;
  readonly isWhole: IsWhole;
}[] = [
  {
    name: 'convert',
    start: (out) => command('convert', input, out, '--to', 'mapped-ram'),
    hasDigest: true,
    isWhole: sameBytes,
  },
  {
    name: 'receive --to mapped-ram',
    start: (out) => command('receive', `exec:cat ${input}`, out, '--to', 'mapped-ram'),
    hasDigest: true,
    // Not byte for byte that of `convert`, but its memory.
    isWhole: async (file) => {
      const blocks = RamBlockList.create();
      await loadMappedRam(file, { blocks, memoryLimit: 2 ** 28 });
      const ram = blocks.find('pc.ram')!;
      return pages.every((_, page) => Buffer.compare(ram.read(page * 4096, 4096), contentOf(page)) === 0);
    },
  },
  {
    name: 'a guest saved live by the engine',
    start: (out, round) =>
      fork(new URL('../../test/save-child.js', import.meta.url), [out, String(round % 3)], { stdio: 'ignore' }),
    hasDigest: false,
    isWhole: isGuest,
  },
];

const ended = (child: ChildProcess): Promise<void> =>
  new Promise((resolve) => {
    if (child.exitCode !== null || child.signalCode !== null) {
      resolve();
    }
    child.once('exit', () => resolve());
  });

/** Waits until `condition` holds or the child is gone. */
const until = async (child: ChildProcess, condition: () => boolean): Promise<void> => {
  while (!condition() && child.exitCode === null && child.signalCode === null) {
    await delay(1);
  }
};

for (const { name, start, hasDigest, isWhole } of writers) {
  test(`kill -9 at ${ROUNDS} random moments: ${name}`, { timeout: 1_800_000 }, async (t) => {
    const outcomes = { nothing: 0, whole: 0, 'whole, with digest': 0, leftovers: 0 };
    /** From the first sign of the file to the end of the process. */
    let span = 0;
    const round = async (number: number, isKilled: boolean): Promise<void> => {
      const folder = fs.mkdtempSync(path.join(base, 'x'));
      const out = path.join(folder, 'out');
      const before = number % 2 === 0 ? 'precious' : undefined;
      if (before !== undefined) {
        fs.writeFileSync(out, before);
      }
      const names = (): string[] => fs.readdirSync(folder);
      const child = start(out, number);
      await until(child, () => names().some((file) => file.startsWith('out.ramferry-partial-')));
      const begin = performance.now();
      if (isKilled && hasDigest && number % 3 === 0) {
        await until(child, () => names().some((file) => file.startsWith('out.digest')));
        await delay(Math.random() * 8);
        child.kill('SIGKILL');
      } else if (isKilled) {
        await delay(Math.random() ** 2 * span);
        child.kill('SIGKILL');
      }
      await ended(child);
      if (!isKilled) {
        span = Math.max(span, performance.now() - begin);
      }

      const isThere = fs.existsSync(out) && (before === undefined || fs.statSync(out).size !== before.length);
      const { status, verdict } = isThere ? await verdictOf(out) : { status: 0 };
      if (isThere) {
        assert.ok(await isWhole(out));
        assert.equal(status, 0);
        assert.ok(verdict?.digest === undefined || (verdict.digest.checked && verdict.digest.mismatches === 0));
      } else {
        assert.equal(fs.existsSync(out) ? fs.readFileSync(out, 'utf8') : undefined, before);
        assert.equal(fs.existsSync(`${out}.digest`), false);
      }
      for (const file of names().filter((file) => file !== 'out' && file !== 'out.digest')) {
        assert.match(file, /^out(\.digest)?\.ramferry-partial-\d+$/);
        assert.equal((await verdictOf(path.join(folder, file))).status, 3, file);
        outcomes.leftovers += 1;
      }
      outcomes[!isThere ? 'nothing' : verdict?.digest === undefined ? 'whole' : 'whole, with digest'] += 1;
      fs.rmSync(folder, { recursive: true });
    };
    await Promise.all(Array.from({ length: PARALLEL }, (_, number) => round(number, false)));
    assert.equal(outcomes[hasDigest ? 'whole, with digest' : 'whole'], PARALLEL);
    let next = 0;
    const worker = async (): Promise<void> => {
      while (next < ROUNDS) {
        await round(next++, true);
      }
    };
    await Promise.all(Array.from({ length: PARALLEL }, worker));
    t.diagnostic(`${JSON.stringify(outcomes)}, ${PARALLEL} of them left in peace`);
    assert.ok(outcomes.nothing > 0 && outcomes.leftovers > 0);
  });
}

test('what a killed run leaves: status 3, whatever it holds', async () => {
  const left = path.join(base, 'out.ramferry-partial-123');
  await runCommand('convert', input, path.join(base, 'whole'), '--to', 'mapped-ram');
  const whole = fs.readFileSync(path.join(base, 'whole'));
  for (const bytes of [
    whole,
    whole.subarray(0, 2 ** 20),
    whole.subarray(0, 50),
    Buffer.alloc(2 ** 21),
    Buffer.alloc(0),
  ]) {
    fs.writeFileSync(left, bytes);
    const { status, stdout } = await runCommand('verify', left, '--json');
    const { error } = JSON.parse(stdout) as { error: { code: string } };
    assert.deepEqual([status, bytes === whole ? error.code : 'UNFINISHED_FILE'], [3, 'UNFINISHED_FILE'], stdout);
  }
});
