// ELF cores of saved guests beside those that QEMU itself makes of the same guest, stopped: `dump-guest-memory`.

import assert from 'node:assert/strict';
import { closeSync, openSync, readSync, rmSync } from 'node:fs';
import { startFromCorpus } from './corpus.js';
import { interopTest } from './lab.js';
import { Ramferry } from './ramferry.js';
import { ALL_RELEASES } from './releases.js';

const RAM_BYTES = 256 * 2 ** 20;
const COMPARED_BYTES = 4 * 2 ** 20;
/** Where our cores have memory that nobody has mapped. */
const NOWHERE = 1n << 63n;
const UPPER_HALF = 0xffff_8000_0000_0000n;
const HIGHEST_BITS = 0xffffn << 48n;

/** A core whose memory stays in its file. */
class Core {
  readonly machine: number;
  readonly notes: readonly string[];
  readonly segments: readonly { virtual: bigint; physical: number; offset: number; bytes: number }[];
  readonly #descriptor: number;

  constructor(path: string) {
    this.#descriptor = openSync(path, 'r');
    const head = this.read(0, 64);
    const headers = this.read(Number(head.readBigUInt64LE(32)), head.readUInt16LE(56) * 56);
    const [note, ...loads] = Array.from({ length: headers.length / 56 }, (_, index) => {
      const field = (at: number): bigint => headers.readBigUInt64LE(index * 56 + at);
      return { virtual: field(16), physical: Number(field(24)), offset: Number(field(8)), bytes: Number(field(32)) };
    });
    this.machine = head.readUInt16LE(18);
    this.notes = notesOf(this.read(note!.offset, note!.bytes));
    this.segments = loads;
  }

  read(position: number, bytes: number): Buffer {
    const buffer = Buffer.alloc(bytes);
    assert.equal(readSync(this.#descriptor, buffer, 0, bytes, position), bytes);
    return buffer;
  }

  /** All RAM from address 0 on. */
  *ram(): Generator<Buffer> {
    const { offset, bytes } = this.segments.find(({ physical }) => physical === 0)!;
    assert.equal(bytes, RAM_BYTES);
    for (let at = 0; at < RAM_BYTES; at += COMPARED_BYTES) {
      yield this.read(offset + at, COMPARED_BYTES);
    }
  }

  /** Guest-physical address of each page of RAM by its virtual one. */
  mappedPages(): Map<bigint, number> {
    const pages = new Map<bigint, number>();
    for (const { virtual, physical, bytes } of this.segments) {
      const isMapped = virtual < NOWHERE || virtual >= HIGHEST_BITS;
      for (let at = 0; isMapped && at < Math.min(bytes, RAM_BYTES - physical); at += 4096) {
        pages.set(virtual + BigInt(at), physical + at);
      }
    }
    return pages;
  }

  close(): void {
    closeSync(this.#descriptor);
  }
}

const notesOf = (bytes: Buffer): string[] => {
  const notes: string[] = [];
  for (let at = 0; at < bytes.length; ) {
    const start = at + 12 + Math.ceil(bytes.readUInt32LE(at) / 4) * 4;
    const next = start + Math.ceil(bytes.readUInt32LE(at + 4) / 4) * 4;
    notes.push(bytes.toString('hex', at, next));
    at = next;
  }
  return notes;
};

interopTest(
  "cores: the notes are QEMU's own, RAM is the same, and so is what is mapped",
  async (lab) => {
    const guest = await startFromCorpus(lab, 'plain');
    await guest.stop();
    const names = ['saved', 'dumped', 'paged', 'core', 'virtual'];
    const files = names.map((name) => lab.path(name)) as [string, string, string, string, string];
    const [saved, dumped, paged, core, virtual] = files;
    await guest.saveStream(saved);
    for (const [file, paging] of [
      [dumped, false],
      [paged, true],
    ] as const) {
      await guest.qmp.execute('dump-guest-memory', { paging, protocol: `file:${file}` }, { timeoutMs: 120_000 });
    }
    await guest.qemu.quit();
    for (const [out, ...args] of [[core], [virtual, '--virtual']] as [string, ...string[]][]) {
      const { status, stderr } = await Ramferry.start(lab, 'convert', saved, out, '--to', 'elf', ...args).exited;
      assert.equal(status, 0, stderr);
    }

    const [theirs, ours, theirsPaged, oursVirtual] = [dumped, core, paged, virtual].map((file) => new Core(file)) as [
      Core,
      Core,
      Core,
      Core,
    ];
    assert.equal(ours.machine, theirs.machine);
    assert.ok(theirs.notes.length >= 2);
    for (const each of [ours, oursVirtual]) {
      assert.deepEqual(each.notes.slice(0, theirs.notes.length), theirs.notes);
    }
    const theirRam = theirs.ram();
    for (const piece of ours.ram()) {
      assert.equal(Buffer.compare(piece, theirRam.next().value as Buffer), 0);
    }

    // QEMU sets the highest 16 bits of every address, so that those of a program, which have them clear, are none that any
    // debugger would ask for. Ours are as the program has them.
    const ourPages = oursVirtual.mappedPages();
    const asTheirs = new Map([...ourPages].map(([page, address]) => [page | HIGHEST_BITS, address]));
    const theirPages = theirsPaged.mappedPages();
    const differing = [...theirPages].filter(([page, address]) => asTheirs.get(page) !== address);
    assert.deepEqual([differing.slice(0, 5), ourPages.size], [[], theirPages.size]);
    assert.ok([...ourPages.keys()].some((page) => page < NOWHERE));
    assert.ok([...ourPages.keys()].some((page) => page >= UPPER_HALF));
    for (const each of [theirs, ours, theirsPaged, oursVirtual]) {
      each.close();
    }
    for (const file of files) {
      rmSync(file, { force: true });
    }
  },
  ALL_RELEASES,
);
