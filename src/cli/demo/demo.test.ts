// The demo as its users run it, small: what its JSON promises, and that both migrations were made and compared.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { runCommand } from '../../../test/command.js';
import type { MigrationReport } from '../../source/statistics.js';

interface Document extends MigrationReport {
  readonly ramferry: MigrationReport['ramferry'] & {
    readonly verified: boolean;
    readonly plain?: MigrationReport;
    readonly saved?: { readonly time: number; readonly bytes: number };
  };
}

const SMALL = ['--json', '--quiet', '--memory', '128M', '--working-set', '32M', '--rate', '48M'] as const;

const demo = async (...options: readonly string[]): Promise<Document> => {
  const { status, stdout, stderr } = await runCommand('demo', ...SMALL, ...options);
  assert.equal(status, 0, stderr);
  return JSON.parse(stdout) as Document;
};

test('demo: the same guest plain and with free page hints, both verified', async () => {
  const { status, ram, ramferry } = await demo('--hint-wait', '10000');
  assert.equal(status, 'completed');
  assert.equal(ramferry.verified, true);
  assert.ok(ramferry.iterations.length >= 2);
  const { plain, saved } = ramferry;
  assert.equal(plain!.status, 'completed');
  assert.deepEqual(plain!.ramferry.hints, { pages: 0, honoured: 0, stale: 0 });
  assert.equal(plain!.ramferry.parameters['clear-bitmap'], false);
  assert.ok(plain!.ram.transferred >= 128 * 2 ** 20);
  // 96 MiB are free; blocks of 4 MiB that are free in part are not hinted.
  assert.ok(ramferry.hints.honoured >= 80 * 256, `${ramferry.hints.honoured} pages`);
  assert.equal(saved!.bytes, Math.round((1 - ram.transferred / plain!.ram.transferred) * 1000) / 1000);
});

test('demo of a guest that takes memory all the time: its twin takes the same', async () => {
  const { ramferry } = await demo('--workload', 'build', '--no-plain', '--max-bandwidth', '0');
  assert.equal(ramferry.verified, true);
  assert.ok(ramferry.hints.honoured > 0);
  assert.equal(ramferry.plain, undefined);
});
