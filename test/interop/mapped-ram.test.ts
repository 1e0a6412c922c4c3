// ramferry and the mapped-ram files of real QEMU: read as QEMU wrote them in each of its modes, wrapped as libvirt wraps
// them, cut, damaged; sent on into QEMU.

import assert from 'node:assert/strict';
import { closeSync, fstatSync, openSync, readFileSync, readSync, writeFileSync, writeSync } from 'node:fs';
import { gzipSync } from 'node:zlib';
import { openSnapshot, type Snapshot } from '../../src/format/index.js';
import { pageIndex, RamferryError } from '../../src/memory/index.js';
import { libvirtHead } from '../libvirt-images.js';
import { randomChoices } from '../random.js';
import { corpusDestination, corpusStream, startFromCorpus } from './corpus.js';
import { interopTest, type Lab, liveInteropTest, type MigrateOptions } from './lab.js';
import { Ramferry, type RamferryExit } from './ramferry.js';
import { readReference, sha256 } from './reference-reader.js';

const SLOW = process.env['RAMFERRY_SLOW'] === '1';
/** 100,000 in the slow run, in two tests of some minutes. */
const MUTATIONS = SLOW ? 50_000 : 300;
const SEEDS = SLOW ? [8, 9] : [8];

const mappedRam = { capabilities: { 'mapped-ram': true } };

const document = ({ status, stdout, stderr }: RamferryExit): Record<string, unknown> => {
  assert.equal(status, 0, `${stdout}\n${stderr}`);
  return JSON.parse(stdout) as Record<string, unknown>;
};

interface ShownBlock {
  readonly name: string;
  readonly sha256: string;
  readonly presentPages: number;
  readonly absentPages: number;
}

const inspect = async (lab: Lab, ...args: string[]): Promise<Record<string, unknown> & { blocks: ShownBlock[] }> =>
  document(await Ramferry.run(lab, 'inspect', '--json', ...args)) as Record<string, unknown> & { blocks: ShownBlock[] };

const digests = (blocks: readonly { name: string; sha256: string }[]): object =>
  Object.fromEntries(blocks.map(({ name, sha256: digest }) => [name, digest]));

/** The stopped guest of the `plain` corpus, saved by QEMU 10 as `options` say; `offset` as QEMU's URI takes it. */
const savePlain = async (lab: Lab, file: string, options: MigrateOptions, offset = 0): Promise<void> => {
  const guest = await corpusDestination(lab, 'plain');
  await guest.loadStream((await corpusStream(lab, 'plain')).file);
  await guest.saveStream(offset === 0 ? file : `${file},offset=${offset}`, options);
  await guest.qemu.quit();
};

// MR-1, MR-2, MR-15, MR-20: the digests are those of the stream, which do not depend on the file's format.
for (const [mode, options, offset] of [
  ['plain', mappedRam, 0],
  ['at an offset', mappedRam, 0x1234],
  [
    'with three multifd channels',
    { capabilities: { 'mapped-ram': true, multifd: true }, parameters: { 'multifd-channels': 3 } },
    0,
  ],
  [
    'with multifd and direct I/O',
    { capabilities: { 'mapped-ram': true, multifd: true }, parameters: { 'direct-io': true } },
    0,
  ],
] satisfies [string, MigrateOptions, number][]) {
  interopTest(`mapped-ram ${mode}: digests are those of the stream of the same guest`, async (lab) => {
    const { truth } = await corpusStream(lab, 'plain');
    const file = lab.path('guest.mapped');
    await savePlain(lab, file, options, offset);
    const operand = offset === 0 ? file : `file:${file},offset=${offset}`;
    const shown = await inspect(lab, operand, '--digest', '--pages');
    const { container, format, machine, complete, capabilities, warnings } = shown;
    assert.deepEqual(
      { container, format, machine, complete, capabilities, warnings },
      {
        ...{ container: 'qemu', format: 'mapped-ram', machine: truth.machine, complete: true },
        ...{ capabilities: ['mapped-ram'], warnings: [] },
      },
    );
    assert.deepEqual(digests(shown.blocks), digests(truth.blocks));
    if (offset === 0) {
      const reference = readReference(file);
      assert.deepEqual(shown['devices'], reference.sections);
      for (const { name, presentPages } of shown.blocks) {
        assert.equal(presentPages, reference.blocks.get(name)!.stored.filter((kind) => kind === 2).length, name);
      }
    }
    const verified = document(await Ramferry.run(lab, 'verify', operand, '--json'));
    assert.deepEqual([verified['valid'], verified['findings']], [true, []]);
  });
}

interopTest('libvirt save images, raw, gzip and sparse: the same digests', async (lab) => {
  const { file, truth } = await corpusStream(lab, 'plain');
  const stream = readFileSync(file);
  const raw = lab.path('raw.save');
  writeFileSync(raw, Buffer.concat([libvirtHead({ format: 0 }), stream]));
  const gzip = lab.path('gzip.save');
  writeFileSync(gzip, Buffer.concat([libvirtHead({ format: 1 }), gzipSync(stream, { level: 1 })]));
  const sparse = lab.path('sparse.save');
  await savePlain(lab, sparse, mappedRam, 8192);
  const descriptor = openSync(sparse, 'r+');
  writeSync(descriptor, libvirtHead({ format: 6, xmlBytes: 8192 - 92 }), 0, 8192, 0);
  closeSync(descriptor);
  for (const image of [raw, gzip, sparse]) {
    const shown = await inspect(lab, image, '--digest');
    assert.equal(shown['container'], 'libvirt');
    assert.equal(shown['format'], image === sparse ? 'mapped-ram' : 'stream');
    assert.deepEqual(digests(shown.blocks), digests(truth.blocks), image);
  }
});

// Sink and reader against each other, and against the digests of QEMU's own copy.
interopTest('a stream of QEMU sent to `receive --to mapped-ram`: the same digests, and valid', async (lab) => {
  const { file, truth } = await corpusStream(lab, 'devices');
  const out = lab.path('received.mapped');
  const receiving = Ramferry.start(lab, 'receive', `unix:${lab.path('receive')}`, out, '--to', 'mapped-ram', '--json');
  document(await Ramferry.run(lab, 'send', file, await receiving.listening(), '--json'));
  document(await receiving.exited);
  const shown = await inspect(lab, out, '--digest');
  assert.deepEqual([shown['format'], shown['warnings']], ['mapped-ram', []]);
  assert.deepEqual(digests(shown.blocks), digests(truth.blocks));
  assert.equal(document(await Ramferry.run(lab, 'verify', out, '--json'))['valid'], true);
});

liveInteropTest('send: a mapped-ram file of a live guest into QEMU, memory equal, the guest runs on', async (lab) => {
  const source = await startFromCorpus(lab, 'busy');
  await source.verifyAll();
  const file = lab.path('busy.mapped');
  // Slow enough for pages to be written again, and for some to be left behind.
  await source.saveStream(file, { ...mappedRam, parameters: { 'max-bandwidth': 300e6 } });
  assert.equal(source.bad(), 0);
  await source.qemu.quit();
  const shown = await inspect(lab, file, '--digest');

  const ramFile = lab.path('destination.ram');
  const destination = await corpusDestination(lab, 'busy', lab.release, { ramFile });
  await destination.stop();
  const uri = await destination.listenTcp({ capabilities: { 'return-path': true } });
  document(await Ramferry.run(lab, 'send', file, uri, '--json'));
  await destination.waitMigration();
  assert.equal(sha256(readFileSync(ramFile)), shown.blocks.find(({ name }) => name === 'pc.ram')?.sha256);
  await destination.resume();
  assert.equal(await destination.verifyAll(), 0);
});

interopTest(
  'a save that was killed is not complete; nor is one with background-snapshot, which has no bitmaps',
  async (lab) => {
    const source = await startFromCorpus(lab, 'busy');
    await source.verifyAll();
    const killed = lab.path('killed.mapped');
    await source.migrate(`file:${killed}`, { ...mappedRam, parameters: { 'max-bandwidth': 50e6 } });
    await source.waitMigration(['active']);
    await new Promise((resolve) => setTimeout(resolve, 1000));
    source.qemu.kill();
    await source.qemu.exited;
    for (const verb of ['inspect', 'verify']) {
      const { status, stdout } = await Ramferry.run(lab, verb, killed, '--json');
      const shown = JSON.parse(stdout) as { complete?: boolean; error: { code: string } };
      assert.deepEqual([status, shown.error.code], [3, 'STREAM_INCOMPLETE'], stdout);
      assert.equal(shown.complete ?? false, false);
    }

    const background = lab.path('background.mapped');
    const another = await startFromCorpus(lab, 'plain');
    await another.saveStream(background, { capabilities: { 'mapped-ram': true, 'background-snapshot': true } });
    const { status, stdout } = await Ramferry.run(lab, 'inspect', background, '--json');
    assert.deepEqual([status, JSON.parse(stdout).error?.code], [3, 'MAPPED_RAM_NO_BITMAPS'], stdout);
  },
);

const window = new Uint8Array(2 ** 20);

const readAll = (snapshot: Snapshot): void => {
  const { blocks, targetPageSize } = snapshot.setup;
  for (const { index, usedLength } of blocks) {
    const pages = usedLength / targetPageSize;
    for (let page = snapshot.nextPresent(index, pageIndex(0)); page < pages; ) {
      const count = Math.min(window.length / targetPageSize, pages - page);
      snapshot.readPages(index, page, count, window.subarray(0, count * targetPageSize));
      page = snapshot.nextPresent(index, pageIndex(page + count));
    }
  }
};

for (const seed of SEEDS) {
  interopTest(`${MUTATIONS} mutations of a mapped-ram file of QEMU 10, seed ${seed}`, async (lab, context) => {
    const guest = await corpusDestination(lab, 'tiny');
    await guest.loadStream((await corpusStream(lab, 'tiny')).file);
    const file = lab.path('tiny.mapped');
    await guest.saveStream(file, mappedRam);
    const descriptor = openSync(file, 'r');
    const sizeBytes = fstatSync(descriptor).size;
    const original = Buffer.alloc(sizeBytes);
    readSync(descriptor, original, 0, sizeBytes, 0);
    closeSync(descriptor);
    const readAt = (position: number, target: Uint8Array): void => {
      assert.ok(position >= 0 && position + target.length <= sizeBytes);
      target.set(original.subarray(position, position + target.length));
    };
    // Page contents are not looked at by anything: all mutations go where structure is.
    const whole = openSnapshot(readAt, sizeBytes);
    const { blocks } = whole.setup;
    const structure: [from: number, to: number][] = [
      [0, blocks[0]!.mapped!.bitmapOffset],
      ...blocks
        .slice(1)
        .map(({ mapped }, index): [number, number] => [blocks[index]!.mapped!.end, mapped!.bitmapOffset]),
      ...blocks.map(({ mapped }): [number, number] => [
        mapped!.bitmapOffset,
        mapped!.bitmapOffset + mapped!.bitmapBytes,
      ]),
      [blocks.at(-1)!.mapped!.end, sizeBytes],
    ];
    const choose = randomChoices(seed);
    let refused = 0;
    let slowestMs = 0;
    for (let round = 0; round < MUTATIONS; round += 1) {
      const undo: [at: number, bytes: Buffer][] = [];
      for (let change = choose(4); change >= 0; change -= 1) {
        const [from, to] = structure[choose(structure.length)]!;
        const at = from + choose(to - from);
        const end = Math.min(at + 1 + choose(8), to);
        undo.push([at, Buffer.from(original.subarray(at, end))]);
        if (choose(3) === 0) {
          original[at] = choose(256);
        } else {
          original.fill([0xff, 0x80, 0][choose(3)]!, at, end);
        }
      }
      const start = performance.now();
      try {
        readAll(openSnapshot(readAt, sizeBytes, { indexLimitBytes: 2 ** 20 }));
      } catch (error) {
        assert.ok(error instanceof RamferryError, error instanceof Error ? error.stack : String(error));
        assert.ok(error.kind === 'invalid' || error.code === 'INDEX_TOO_LARGE', error.message);
        assert.ok(error.code === 'INDEX_TOO_LARGE' || error.message.includes(`byte ${error.offset}`), error.message);
        refused += 1;
      }
      slowestMs = Math.max(slowestMs, performance.now() - start);
      for (const [at, bytes] of undo.reverse()) {
        bytes.copy(original, at);
      }
    }
    context.diagnostic(`${refused} refused; the slowest took ${slowestMs.toFixed(0)} ms`);
    assert.ok(refused > 0 && refused < MUTATIONS, `${refused} refused`);
    assert.ok(slowestMs < 5000, `${slowestMs} ms for one file`);
  });
}
