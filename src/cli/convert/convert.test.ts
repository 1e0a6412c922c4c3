// `convert` from outside the process: every format holds the same memory, and no failure leaves a file.

import assert from 'node:assert/strict';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { after, test } from 'node:test';
import { type CommandResult, RunningCommand, runCommand } from '../../../test/command.js';
import { describedTail } from '../../../test/described-stream.js';
import { clockDevice, pcStream } from '../../../test/pc-memory.js';
import { patternPage, richStream, StreamBuilder, testDevice } from '../../../test/streams.js';
import { ByteWriter } from '../../format/byte-writer.js';
import { ElementType } from '../../format/stream/constants.js';
import { StreamReader } from '../../format/stream/read.js';
import { normalRecord, ramBodyEnd, ramPart, ramStart, zeroRecord } from '../../format/stream/write.js';
import { rawFileName } from './raw.js';

const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'ramferry-convert-'));
after(() => fs.rmSync(folder, { recursive: true }));

const at = (name: string): string => path.join(folder, name);

const save = (name: string, bytes: Uint8Array): string => {
  fs.writeFileSync(at(name), bytes);
  return at(name);
};

const convert = async (...args: string[]): Promise<{ result: CommandResult; document: Record<string, unknown> }> => {
  const result = await runCommand('convert', '--json', ...args);
  return { result, document: JSON.parse(result.stdout) as Record<string, unknown> };
};

const converted = async (...args: string[]): Promise<Record<string, unknown>> => {
  const { result, document } = await convert(...args);
  assert.equal(result.status, 0, result.stdout);
  return document;
};

const errorOf = ({ error }: Record<string, unknown>): { code: string; file: string; message: string } =>
  error as { code: string; file: string; message: string };

/** All that a stream file holds, in its order, whatever its RAM sections. */
const pagesAndState = (file: string): unknown[] => {
  const held: unknown[] = [];
  const reader = new StreamReader({
    configuration: (configuration) => held.push(configuration),
    ramSetup: ({ blocks }) => held.push(blocks.map(({ name, usedLength }) => [name, usedLength])),
    zeroPage: ({ name }, page) => held.push([name, page, 'zero']),
    page: ({ name }, page, stream, start) => held.push([name, page, Buffer.from(stream.subarray(start, start + 4096))]),
    xbzrlePage: ({ name }, page) => held.push([name, page, 'xbzrle']),
    end: ({ tail: state, warnings }) => held.push(state, warnings),
  });
  reader.push(fs.readFileSync(file));
  reader.end();
  return held;
};

const { bytes, memory, tail } = richStream();
const rich = save('rich.mig', bytes);

test('stream and mapped-ram, there and back: the same guest, device state byte for byte', async () => {
  const document = await converted(rich, at('a.mig'), '--to', 'stream');
  assert.deepEqual(
    [document['file'], document['out'], document['format'], document['machine'], document['ram']],
    [rich, at('a.mig'), 'stream', 'pc-i440fx-10.0', { totalBytes: 69 * 4096 }],
  );
  await converted(at('a.mig'), at('a.mapped'), '--to', 'mapped-ram');
  await converted(at('a.mapped'), at('b.mig'), '--to', 'stream');
  await converted(at('b.mig'), at('b.mapped'), '--to', 'mapped-ram');
  await converted(at('b.mapped'), at('c.mig'), '--to', 'stream');
  // Both hold every page once, in order, so nothing may differ but where a RAM section ends, which is a matter of time. Not the
  // first one: what a stream leaves out, mapped-ram can only call zero, and a stream made from it says so.
  assert.deepEqual(pagesAndState(at('b.mig')), pagesAndState(at('c.mig')));
  for (const name of ['a.mig', 'a.mapped', 'b.mig']) {
    const difference = await runCommand('diff', rich, at(name));
    assert.equal(difference.status, 0, difference.stdout);
    const file = fs.readFileSync(at(name));
    for (const part of [tail.early, tail.sections, tail.description]) {
      assert.ok(file.includes(Buffer.from(part)), name);
    }
    const { status, stdout } = await runCommand('inspect', '--json', at(name));
    const { uuid, capabilities } = JSON.parse(stdout) as Record<string, unknown>;
    assert.deepEqual(
      [status, uuid, capabilities],
      [0, '00112233-4455-6677-8899-aabbccddeeff', name === 'a.mapped' ? ['mapped-ram'] : []],
    );
  }
});

test('the page size of an architecture that leaves it open stays in the configuration', async () => {
  const stream = new StreamBuilder()
    .header({ machine: 'virt-10.0', targetPageBits: 12 })
    .ramStart([{ name: 'mach-virt.ram', usedLength: 8 * 4096 }])
    .part([{ block: 'mach-virt.ram', page: 3, kind: 'normal', content: patternPage(3) }])
    .end([])
    .devices([testDevice('cpu', 40)]).bytes;
  const input = save('arm.mig', stream);
  await converted(input, at('arm.mapped'), '--to', 'mapped-ram');
  await converted(at('arm.mapped'), at('arm-back.mig'), '--to', 'stream');
  const received = await runCommand('receive', `exec:cat ${input}`, at('arm-received.mapped'), '--to', 'mapped-ram');
  assert.equal(received.status, 0, received.stderr);
  const subsection = Buffer.from('\x1econfiguration/target-page-bits\0\0\0\x01\0\0\0\x0c', 'latin1');
  for (const name of ['arm.mig', 'arm.mapped', 'arm-back.mig', 'arm-received.mapped']) {
    assert.ok(fs.readFileSync(at(name)).includes(subsection), name);
  }
});

test('a mapped-ram file takes the space of its nonzero pages, and 2 % at most', async () => {
  const pageCount = 6144;
  const contents = Array.from({ length: 64 }, (_, seed) => patternPage(seed + 1));
  // Single pages, and one long run.
  const isPresent = (page: number): boolean => page % 2 === 0 || page > 5000;
  const pages = Array.from({ length: pageCount }, (_, page) =>
    isPresent(page)
      ? { block: 'pc.ram', page, kind: 'normal' as const, content: contents[page % 64]! }
      : { block: 'pc.ram', page, kind: 'zero' as const },
  );
  const input = save(
    'half.mig',
    new StreamBuilder()
      .header()
      .ramStart([{ name: 'pc.ram', usedLength: pageCount * 4096 }])
      .part(pages)
      .end([])
      .devices([testDevice('cpu', 500)]).bytes,
  );
  const nonzero = pages.filter(({ kind }) => kind === 'normal').length * 4096;
  await converted(input, at('half.mapped'), '--to', 'mapped-ram');
  await runCommand('receive', `exec:cat ${input}`, at('half-received.mapped'), '--to', 'mapped-ram');
  for (const name of ['half.mapped', 'half-received.mapped']) {
    const { size, blocks } = fs.statSync(at(name));
    assert.ok(size > pageCount * 4096);
    assert.ok(blocks * 512 >= nonzero && blocks * 512 <= nonzero * 1.02, `${blocks * 512} for ${nonzero}`);
    // Larger than all windows that the input is read through: none was read again before it was written.
    assert.equal((await runCommand('diff', input, at(name))).status, 0);
  }
});

test('raw: a file for each RAM block, or the one that is named', async () => {
  const document = await converted(rich, `${at('raw')}/`, '--to', 'raw');
  const blocks = document['blocks'] as { name: string; usedLength: number; file: string }[];
  assert.deepEqual(
    blocks.map(({ name }) => name),
    [...memory.keys()],
  );
  assert.deepEqual(fs.readdirSync(at('raw')).sort(), [
    '%2From@etc%2Facpi%2Frsdp.raw',
    '0000:00:02.0%2Fvga.vram.raw',
    'pc.ram.raw',
  ]);
  for (const { name, usedLength, file } of blocks) {
    const content = fs.readFileSync(path.join(at('raw'), file));
    assert.equal(content.length, usedLength);
    assert.ok(content.equals(memory.get(name)!), name);
  }
  await converted(rich, at('vram'), '--to', 'raw', '--block', '0000:00:02.0/vga.vram');
  assert.ok(fs.readFileSync(at('vram')).equals(memory.get('0000:00:02.0/vga.vram')!));
});

test('raw of a guest whose device state is cut, behind all of its memory; nothing else is made of it', async () => {
  const cut = save('cut-devices.mig', bytes.subarray(0, bytes.length - 2000 - tail.description.length));
  const { status, stderr } = await runCommand('convert', cut, at('cut.ram'), '--to', 'raw', '--block', 'pc.ram');
  assert.equal(status, 0);
  assert.match(stderr, /^warning: The stream ends in.* The memory before it is whole; no device state is read\.$/m);
  assert.ok(fs.readFileSync(at('cut.ram')).equals(memory.get('pc.ram')!));
  for (const format of ['mapped-ram', 'elf', 'lime']) {
    assert.equal((await runCommand('convert', cut, at('cut.out'), '--to', format)).status, 3, format);
  }
});

test('file names of blocks: different for different blocks, and never a path', () => {
  const names = ['/a', '%2Fa', '..', '.', 'a/b', 'a%2Fb', 'a\0', 'a', '\xff', 'a b', 'a_b'].map(rawFileName);
  assert.equal(new Set(names).size, names.length);
  for (const name of names) {
    assert.equal(path.basename(name), name);
    assert.match(name, /^[\w@.:%-]+\.raw$/);
  }
});

/** A PC of `mebibytes` with one page in every 16 MiB, and one stored page of zeros. */
const pc = (name: string, machine: string, mebibytes: number): string => {
  const records = new ByteWriter();
  const builder = new StreamBuilder()
    .header({ machine })
    .raw(ramStart(1, [{ name: 'pc.ram', usedLength: mebibytes * 2 ** 20 }]))
    .raw(ramPart(ElementType.SECTION_END, 1));
  zeroRecord(records, 4096, 'pc.ram');
  for (let mebibyte = 0; mebibyte < mebibytes; mebibyte += 16) {
    normalRecord(records, mebibyte * 2 ** 20, patternPage(mebibyte));
  }
  return save(
    name,
    builder
      .raw(records.copy())
      .raw(ramBodyEnd(1))
      .tail(describedTail([clockDevice(Math.min(mebibytes, 3072) * 2 ** 20, Math.max(0, mebibytes - 3072) * 2 ** 20)]))
      .bytes,
  );
};

test('elf: program headers say which bytes of the file are at which address; sparse', async () => {
  const mebibytes = 5 * 1024;
  const document = await converted(pc('pc.mig', 'pc-i440fx-10.0', mebibytes), at('pc.core'), '--to', 'elf');
  const GIB = 2 ** 30;
  assert.deepEqual(document['ranges'], [
    { block: 'pc.ram', address: 0, offset: 0, bytes: 3 * GIB },
    { block: 'pc.ram', address: 4 * GIB, offset: 3 * GIB, bytes: 2 * GIB },
  ]);
  const { size, blocks } = fs.statSync(at('pc.core'));
  assert.equal(size, 4096 + mebibytes * 2 ** 20);
  assert.ok(blocks * 512 <= (mebibytes / 16) * 4096 * 1.02 + 4096, `${blocks} blocks of 512 bytes`);

  const descriptor = fs.openSync(at('pc.core'), 'r');
  const read = (position: number, length: number): Buffer => {
    const target = Buffer.alloc(length);
    fs.readSync(descriptor, target, 0, length, position);
    return target;
  };
  const header = read(0, 64);
  assert.deepEqual([...header.subarray(0, 8)], [0x7f, 0x45, 0x4c, 0x46, 2, 1, 1, 0]);
  assert.deepEqual([header.readUInt16LE(16), header.readUInt16LE(18)], [4, 62]);
  const [offset, size1, count] = [header.readUInt32LE(32), header.readUInt16LE(54), header.readUInt16LE(56)];
  const loads = Array.from({ length: count }, (_, index) => read(offset + index * size1, size1)).filter(
    (entry) => entry.readUInt32LE(0) === 1,
  );
  const field = (entry: Buffer, position: number): number => Number(entry.readBigUInt64LE(position));
  /** The page at a guest-physical address, found as a debugger does. */
  const physical = (address: number): Buffer => {
    const load = loads.find((entry) => address >= field(entry, 24) && address < field(entry, 24) + field(entry, 32))!;
    return read(field(load, 8) + address - field(load, 24), 4096);
  };
  assert.deepEqual(physical(0), Buffer.from(patternPage(0)));
  assert.deepEqual(physical(4096), Buffer.alloc(4096));
  assert.deepEqual(physical(2 ** 20 * 3056), Buffer.from(patternPage(3056)));
  assert.deepEqual(physical(4 * GIB), Buffer.from(patternPage(3072)));
  assert.deepEqual(physical(6 * GIB - 16 * 2 ** 20), Buffer.from(patternPage(5104)));
  fs.closeSync(descriptor);
});

const MIB = 2 ** 20;

/** A PC with a DIMM of 8 MiB and video memory. */
const withDimm = (): string =>
  save(
    'dimm.mig',
    pcStream({
      blocks: [
        { name: 'pc.ram', usedLength: 16 * MIB },
        { name: 'dimm0', usedLength: 8 * MIB },
        { name: 'pc.bios', usedLength: MIB },
        { name: '0000:00:02.0/vga.vram', usedLength: MIB },
      ],
      devices: [clockDevice(16 * MIB)],
    }),
  );

test('elf: a DIMM is refused by name until --at says where it lies, and what has no address is named', async () => {
  const input = withDimm();
  const { result, document } = await convert(input, at('dimm.core'), '--to', 'elf');
  assert.deepEqual([result.status, errorOf(document).code], [2, 'BLOCK_ADDRESS']);
  assert.match(errorOf(document).message, /"dimm0"/);
  assert.ok(!fs.existsSync(at('dimm.core')));
  const { ranges, leftOut } = await converted(input, at('dimm.core'), '--to', 'elf', '--at', 'dimm0=0x140000000');
  assert.deepEqual(ranges, [
    { block: 'pc.ram', address: 0, offset: 0, bytes: 16 * MIB },
    { block: 'pc.bios', address: 0xfff0_0000, offset: 0, bytes: MIB },
    { block: 'dimm0', address: 0x1_4000_0000, offset: 0, bytes: 8 * MIB },
  ]);
  assert.deepEqual(
    (leftOut as { block: string }[]).map(({ block }) => block),
    ['0000:00:02.0/vga.vram'],
  );
  // pc.ram, dimm0, pc.bios follow each other in the file, in the order of the input.
  assert.equal(fs.statSync(at('dimm.core')).size, 4096 + 25 * MIB);
  const bios = await converted(input, at('bios.core'), '--to', 'elf', '--block', 'pc.bios');
  assert.deepEqual(bios['ranges'], [
    { block: 'pc.bios', address: 0xfff0_0000, offset: 0, bytes: MIB },
    { block: 'pc.bios', address: 0xe_0000, offset: MIB - 128 * 1024, bytes: 128 * 1024 },
  ]);
  const piped = await runCommand('convert', input, '-', '--to', 'elf', '--at', 'dimm0=5368709120');
  assert.equal(piped.status, 0, piped.stderr);
  assert.equal(piped.stdout.length, 4096 + 25 * MIB);
});

test('wrong usage: status 2, nothing written, and what was there stays', async () => {
  const virt = pc('virt.mig', 'virt-10.0', 1);
  const old = save('old', Buffer.from('old content'));
  fs.mkdirSync(at('full'));
  fs.writeFileSync(at('full/file'), 'mine');
  for (const [args, code] of [
    [[virt, old, '--to', 'elf'], 'MACHINE_ADDRESSES'],
    [[rich, old, '--to', 'elf'], 'RAM_ADDRESSES'],
    [[withDimm(), old, '--to', 'elf', '--block', '0000:00:02.0/vga.vram'], 'BLOCK_ADDRESS'],
    [[withDimm(), old, '--to', 'elf', '--at', 'dimm1=0x140000000'], 'BLOCK_PLACE'],
    [[withDimm(), old, '--to', 'elf', '--at', 'dimm0=0x140000001'], 'INVALID_VALUE'],
    [[withDimm(), old, '--to', 'raw', '--at', 'dimm0=0x140000000'], 'AT_OPTION'],
    [[withDimm(), old, '--to', 'elf', '--by-address'], 'BY_ADDRESS_OPTION'],
    [[withDimm(), old, '--to', 'raw', '--by-address'], 'BLOCK_ADDRESS'],
    [[withDimm(), old, '--to', 'lime'], 'BLOCK_ADDRESS'],
    [[rich, old, '--to', 'raw', '--block', 'pc.rom'], 'NO_SUCH_BLOCK'],
    [[rich, old, '--to', 'stream', '--block', 'pc.ram'], 'BLOCK_OPTION'],
    [[rich, old, '--to', 'raw'], 'OUTPUT_EXISTS'],
    [[rich, at('full'), '--to', 'raw'], 'OUTPUT_EXISTS'],
    [[rich, at('full'), '--to', 'mapped-ram'], 'IS_DIRECTORY'],
    [[rich, old], 'MISSING_OPTION'],
  ] as const) {
    const { result, document } = await convert(...args);
    assert.deepEqual([result.status, errorOf(document).code], [2, code], args.join(' '));
  }
  assert.equal(fs.readFileSync(old, 'utf8'), 'old content');
  assert.deepEqual(fs.readdirSync(at('full')), ['file']);
  assert.deepEqual(
    fs.readdirSync(folder).filter((name) => name.includes('partial')),
    [],
  );
});

for (const to of ['stream', 'mapped-ram', 'raw', 'elf', 'kdump', 'lime']) {
  test(`--to ${to}: a damaged input, a full disk, a cancellation leave nothing`, async () => {
    const here = fs.mkdtempSync(path.join(folder, 'x'));
    const out = path.join(here, 'out');
    const damaged = await convert(save('damaged.mig', bytes.subarray(0, 20_000)), out, '--to', to);
    assert.equal(damaged.result.status, 3);
    assert.equal(errorOf(damaged.document).file, at('damaged.mig'));
    if (to === 'stream') {
      const full = await convert(rich, '/dev/full', '--to', to);
      assert.deepEqual([full.result.status, errorOf(full.document).code], [1, 'NO_SPACE']);
    }
    const running = new RunningCommand(['convert', pc('large.mig', 'pc', 3072), out, '--to', to, '--json']);
    await new Promise<void>((resolve) => {
      const watcher = fs.watch(here, () => {
        watcher.close();
        resolve();
      });
    });
    running.child.kill('SIGINT');
    const { status, stdout } = await running.ended;
    // It may have been done by then; what it says must be so.
    assert.equal(fs.existsSync(out), status === 0);
    if (status !== 0) {
      assert.deepEqual([status, errorOf(JSON.parse(stdout)).code], [1, 'CANCELLED']);
      assert.deepEqual(fs.readdirSync(here), []);
    }
  });
}

/** Names that lead to the same file as `name`. */
const aliases = (name: string): string[] => {
  fs.symlinkSync(at(name), at(`${name}.link`));
  fs.linkSync(at(name), at(`${name}.hard`));
  return [at(name), at(`${name}.link`), at(`${name}.hard`), `file:${at(name)}`, path.join(folder, '.', name)];
};

test('an output that is the input, by whatever name and in whatever format, is refused and nothing is changed', async () => {
  const input = save('itself.mig', bytes);
  const names = aliases('itself.mig');
  for (const args of [['stream'], ['mapped-ram'], ['raw'], ['raw', '--block', 'pc.ram'], ['elf']]) {
    for (const name of names) {
      const out = name.replace(/^file:/, '');
      const { result, document } = await convert(input, out, '--to', ...args);
      assert.deepEqual([result.status, errorOf(document).code], [2, 'OUTPUT_IS_INPUT'], `${args} ${name}`);
      const reversed = await convert(name, input, '--to', ...args);
      assert.equal(errorOf(reversed.document).code, 'OUTPUT_IS_INPUT', `${args} ${name}`);
    }
  }
  const descriptor = fs.openSync(input, 'r');
  const { document } = await convert(`/proc/${process.pid}/fd/${descriptor}`, input, '--to', 'stream');
  fs.closeSync(descriptor);
  assert.equal(errorOf(document).code, 'OUTPUT_IS_INPUT');
  assert.ok(fs.readFileSync(input).equals(Buffer.from(bytes)));
});

test('neither the input nor a stranger’s file is replaced by a digest, and no folder that holds the input by one of blocks', async () => {
  const input = save('sidecar.mig.digest', bytes);
  const besides = await convert(input, at('sidecar.mig'), '--to', 'stream');
  assert.equal(errorOf(besides.document).code, 'OUTPUT_IS_INPUT');
  save('stranger.mig.digest', Buffer.from('my own notes'));
  const strange = await convert(rich, at('stranger.mig'), '--to', 'stream');
  assert.deepEqual([strange.result.status, errorOf(strange.document).code], [2, 'FILE_EXISTS']);
  assert.equal(fs.readFileSync(at('stranger.mig.digest'), 'utf8'), 'my own notes');
  assert.equal(fs.existsSync(at('stranger.mig')), false);
  await converted(rich, at('stranger.mig'), '--to', 'stream', '--no-digest');
  fs.mkdirSync(at('holds'));
  fs.writeFileSync(at('holds/guest.mig'), bytes);
  const around = await convert(at('holds/guest.mig'), at('holds'), '--to', 'raw');
  assert.deepEqual([around.result.status, errorOf(around.document).code], [2, 'OUTPUT_EXISTS']);
  assert.deepEqual(fs.readdirSync(at('holds')), ['guest.mig']);
  assert.ok(fs.readFileSync(input).equals(Buffer.from(bytes)));
});
