import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import type { MigrationReport } from '../source/statistics.js';
import { progressOf } from './migration-report.js';
import { estimateMs, Progress, type ProgressState, progressBar, progressLine } from './progress.js';

const MIB = 2 ** 20;
const state: ProgressState = {
  phase: 'active',
  totalBytes: 1024 * MIB,
  remainingBytes: 256 * MIB,
  bytesPerSecond: 500 * MIB,
  iteration: 3,
  dirtyBytesPerSecond: 100 * MIB,
};

const FULL = 'active, 75 %, 500 MiB/s, 256 MiB left, iteration 3, dirtying 100 MiB/s, ETA 640 ms';

test('a plain line shows all that is known, and nothing that is not', () => {
  assert.equal(progressLine(state), FULL);
  assert.equal(progressLine({ phase: 'setup' }), 'setup');
  assert.equal(estimateMs({ ...state, dirtyBytesPerSecond: 500 * MIB }), undefined);
});

test('the live line drops the least important figures first', () => {
  const bar = progressBar(state, 120);
  assert.equal(
    bar,
    'active  [######################--------]  75 %  500 MiB/s  256 MiB left  iteration 3  dirtying 100 MiB/s  ETA 640 ms',
  );
  assert.equal(progressBar(state, 60), 'active  [###############------]  75 %  500 MiB/s  ETA 640 ms');
  assert.equal(progressBar(state, 30), 'active  [##########----]  75 %');
  assert.equal(progressBar(state, 5), 'activ');
});

test('the live line never exceeds the terminal', () => {
  const figure = fc.option(fc.nat(2 ** 31), { nil: undefined });
  fc.assert(
    fc.property(figure, figure, figure, figure, figure, fc.integer({ min: 1, max: 200 }), (a, b, c, d, e, columns) => {
      const line = progressBar(
        {
          phase: 'switchover',
          totalBytes: a,
          remainingBytes: b,
          bytesPerSecond: c,
          iteration: d,
          dirtyBytesPerSecond: e,
        },
        columns,
      );
      assert.ok(line.length <= columns, line);
    }),
  );
});

/** Runs `steps` updates 10 ms apart and returns all that was written. */
const written = (mode: 'bar' | 'lines' | 'none', steps: number, phaseAt: (step: number) => string): string[] => {
  const texts: string[] = [];
  let clock = 5000;
  const progress = new Progress({ stream: { write: (text) => texts.push(text), columns: 60 }, mode, now: () => clock });
  for (let step = 0; step < steps; step++, clock += 10) {
    progress.update({ ...state, phase: phaseAt(step) });
  }
  progress.note('note');
  progress.finish();
  return texts;
};

test('on a terminal one line is redrawn ten times a second and at a new phase, and removed at the end', () => {
  const texts = written('bar', 100, (step) => (step < 55 ? 'active' : 'device'));
  // 0, 100 … 500 ms, 550 ms for the phase, 650 … 950 ms; then erased for the note.
  assert.equal(texts.length, 6 + 5 + 2);
  assert.ok(texts.slice(0, -1).every((text) => text.startsWith('\r\x1b[K') && !text.includes('\n')));
  assert.deepEqual(texts.slice(-2), ['\r\x1b[K', 'note\n']);
});

test('elsewhere a line a second and at a new phase', () => {
  const texts = written('lines', 350, (step) => (step < 250 ? 'active' : 'device'));
  assert.deepEqual(
    texts.map((text) => text.split(',')[0]),
    ['active', 'active', 'active', 'device', 'note\n'],
  );
  assert.ok(texts.every((text) => text.endsWith('\n') && !text.includes('\x1b')));
});

test('quiet: only notes', () => {
  assert.deepEqual(
    written('none', 300, () => 'active'),
    ['note\n'],
  );
});

test('the ETA goes by pages, recent seconds count, and there is none while somebody else is waited for', () => {
  const written: string[] = [];
  let now = 0;
  const progress = new Progress({ stream: { write: (text) => written.push(text) }, mode: 'lines', now: () => now });
  const report = (status: string, remaining: number, pagesPerSecond: number): MigrationReport =>
    ({
      status,
      ram: {
        ...{
          total: 4096 * MIB,
          remaining,
          'page-size': 4096,
          'pages-per-second': pagesPerSecond,
          'dirty-pages-rate': 0,
        },
        // Zero pages: hardly a byte travels.
        mbps: 0.1,
      },
      ramferry: { iterations: [] },
    }) as unknown as MigrationReport;
  const lineAt = (time: number, migration: MigrationReport): string => {
    now = time;
    progress.update(progressOf(migration));
    return written.at(-1)!;
  };
  assert.match(lineAt(0, report('active', 1024 * MIB, 131_072)), /512 MiB\/s, .*ETA 2\.00 s$/m);
  // A moment of one page a second makes no hours.
  assert.match(lineAt(1000, report('active', 512 * MIB, 1)), /ETA 1\.\d\d s$/m);
  assert.doesNotMatch(lineAt(2000, report('active', 512 * MIB, 0)), /ETA/);
  assert.doesNotMatch(lineAt(3000, report('postcopy-paused', 512 * MIB, 1000)), /ETA/);
});
