// ELF cores of saved guests beside those that QEMU itself makes of the same guest, stopped: `dump-guest-memory`.

import assert from 'node:assert/strict';
import { readFileSync, rmSync } from 'node:fs';
import { startFromCorpus } from './corpus.js';
import { interopTest } from './lab.js';
import { Ramferry } from './ramferry.js';
import { ALL_RELEASES } from './releases.js';

const readCore = (path: string) => {
  const file = readFileSync(path);
  const u64 = (at: number): number => Number(file.readBigUInt64LE(at));
  const headers = Array.from({ length: file.readUInt16LE(56) }, (_, index) => u64(32) + index * 56);
  const [note, ...loads] = headers as [number, ...number[]];
  const notes: string[] = [];
  const end = u64(note + 8) + u64(note + 32);
  for (let at = u64(note + 8); at < end; ) {
    const start = at + 12 + Math.ceil(file.readUInt32LE(at) / 4) * 4;
    const next = start + Math.ceil(file.readUInt32LE(at + 4) / 4) * 4;
    notes.push(file.toString('hex', at, next));
    at = next;
  }
  const segments = loads.map((at) => ({
    virtual: file.readBigUInt64LE(at + 16),
    physical: u64(at + 24),
    content: file.subarray(u64(at + 8), u64(at + 8) + u64(at + 32)),
  }));
  return { machine: file.readUInt16LE(18), notes, segments };
};

type Core = ReturnType<typeof readCore>;

interopTest(
  "cores: the notes are QEMU's own, and RAM is the same",
  async (lab) => {
    const guest = await startFromCorpus(lab, 'plain');
    await guest.stop();
    const [saved, dumped, core] = ['saved', 'dumped', 'core'].map((name) => lab.path(name)) as [string, string, string];
    await guest.saveStream(saved);
    await guest.qmp.execute('dump-guest-memory', { paging: false, protocol: `file:${dumped}` });
    await guest.qemu.quit();
    const { status, stderr } = await Ramferry.start(lab, 'convert', saved, core, '--to', 'elf').exited;
    assert.equal(status, 0, stderr);

    const [theirs, ours] = [readCore(dumped), readCore(core)];
    assert.equal(ours.machine, theirs.machine);
    assert.ok(theirs.notes.length >= 2);
    assert.deepEqual(ours.notes.slice(0, theirs.notes.length), theirs.notes);
    const ram = (each: Core): Buffer => each.segments.find(({ physical }) => physical === 0)!.content;
    assert.equal(Buffer.compare(ram(ours), ram(theirs)), 0);

    for (const file of [saved, dumped, core]) {
      rmSync(file, { force: true });
    }
  },
  ALL_RELEASES,
);
