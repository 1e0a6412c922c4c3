// The stream reader against what the specification says it must take, refuse and survive.

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { patternPage, richStream, StreamBuilder, testDevice, virtioMemEarlyBody } from '../../../test/streams.js';
import { ByteWriter } from '../byte-writer.js';
import type { StreamConfiguration } from './configuration.js';
import { buildDeviceTail } from './device-tail.js';
import { LONGEST_UNIT_BYTES, StreamReader, type StreamReaderOptions } from './read.js';
import type { RamSetup, ReadRamBlock, StreamHandler, StreamSummary } from './stream-handler.js';
import { command, footer, sectionHeader, streamEnd } from './write.js';
import { decodeXbzrle } from './xbzrle.js';

/** Loads a stream into plain arrays, as a destination would. */
class Loader implements StreamHandler {
  configurationElement: StreamConfiguration | undefined;
  readonly memory = new Map<string, Uint8Array>();
  readonly commands: string[] = [];
  summary: StreamSummary | undefined;
  #pageSize = 0;

  configuration(configuration: StreamConfiguration): void {
    this.configurationElement = configuration;
  }

  ramSetup({ blocks, targetPageSize }: RamSetup): void {
    this.#pageSize = targetPageSize;
    for (const { name, usedLength } of blocks) {
      this.memory.set(name, new Uint8Array(Math.min(usedLength, 2 ** 24)));
    }
  }

  zeroPage(block: ReadRamBlock, page: number): void {
    this.#page(block, page).fill(0);
  }

  page(block: ReadRamBlock, page: number, bytes: Uint8Array, at: number): void {
    this.#page(block, page).set(bytes.subarray(at, at + this.#pageSize));
  }

  xbzrlePage(block: ReadRamBlock, page: number, bytes: Uint8Array, at: number, length: number, offset: number): void {
    decodeXbzrle(bytes, at, length, this.#page(block, page), offset);
  }

  command(number: number, payload: Uint8Array): void {
    this.commands.push(`${number}:${Buffer.from(payload).toString('hex')}`);
  }

  end(summary: StreamSummary): void {
    this.summary = summary;
  }

  #page(block: ReadRamBlock, page: number): Uint8Array {
    return this.memory.get(block.name)!.subarray(page * this.#pageSize, (page + 1) * this.#pageSize);
  }
}

/** Pushes `bytes` in pieces of `pieceBytes`, each with what was left over before it, then ends. */
const load = (bytes: Uint8Array, pieceBytes = bytes.length, options: StreamReaderOptions = {}): Loader => {
  const loader = new Loader();
  const reader = new StreamReader(loader, options);
  let start = 0;
  for (let end = 0; end < bytes.length && !reader.done; ) {
    end = Math.min(end + pieceBytes, bytes.length);
    start += reader.push(bytes, start, end);
    assert.ok(reader.done || end - start < LONGEST_UNIT_BYTES);
    assert.equal(reader.position, start);
  }
  reader.end();
  return loader;
};

test('a stream with everything loads, in one push', () => {
  const { bytes, memory, tail } = richStream();
  const loader = load(bytes);
  assert.deepEqual(loader.memory, memory);
  assert.deepEqual(loader.configurationElement, {
    machine: 'pc-i440fx-10.0',
    targetPageBits: undefined,
    capabilities: [],
    uuid: '00112233-4455-6677-8899-aabbccddeeff',
  });
  assert.deepEqual(loader.commands, ['1:', '2:00000001', '11:']);
  const summary = loader.summary!;
  assert.deepEqual(summary.tail, tail);
  assert.equal(summary.bytes, bytes.length);
  assert.deepEqual(summary.warnings, []);
  assert.ok(summary.complete && !summary.backgroundSnapshot);
  assert.deepEqual(
    summary.devices.map(({ name, instance, section, bytes: length }) => [name, instance, section, length]),
    [
      ['0000:00:03.0/virtio-mem-device-early', 0, 2, 52],
      ['timer', 0, 3, 24],
      ['cpu', 0, 4, 5000],
      ['cpu', 1, 5, 300],
      ['0000:00:02.0/vga', 0, 6, 77],
    ],
  );
  const cpu = summary.devices[2];
  assert.deepEqual(bytes.slice(cpu.offset, cpu.offset + cpu.bytes), testDevice('cpu', 5000).body);
});

test('the result does not depend on how the bytes are cut into pieces', () => {
  const { bytes } = richStream();
  const expected = load(bytes);
  for (const pieceBytes of [1, 2, 3, 7, 13, 4095, 4104]) {
    assert.deepEqual(load(bytes, pieceBytes), expected);
  }
});

test('every place to cut a stream in two gives the same result', () => {
  const { bytes } = richStream();
  const expected = load(bytes);
  // Pages are long and dull: every byte of everything else, every 61st of them.
  for (let cut = 1; cut < bytes.length; cut += cut % 4096 < 600 || cut > bytes.length - 6000 ? 1 : 61) {
    const loader = new Loader();
    const reader = new StreamReader(loader);
    const consumed = reader.push(bytes, 0, cut);
    reader.push(bytes, consumed, bytes.length);
    assert.ok(reader.done, `cut at ${cut}`);
    assert.deepEqual(loader.summary, expected.summary);
    assert.deepEqual(loader.memory, expected.memory);
  }
});

test('a run of CONTINUE records is offered in bulk, whole records only', () => {
  const builder = new StreamBuilder().header().ramStart([{ name: 'a', usedLength: 2 ** 20 }]);
  const partStart = builder.length;
  builder.part(
    Array.from({ length: 200 }, (_, page) => ({ block: 'a', page, kind: 'normal', content: patternPage(page) })),
  );
  const { bytes, memory } = builder.end().devices([]);
  class BulkLoader extends Loader {
    offsets: number[] = [];
    records(block: ReadRamBlock, input: Uint8Array, start: number, end: number, offset: number): number {
      let at = start;
      for (; end - at >= 4104 && input[at + 7] === 0x28; at += 4104) {
        this.page(block, (input[at + 5] * 65536 + input[at + 6] * 256) / 4096, input, at + 8);
      }
      this.offsets.push(offset);
      return at - start;
    }
  }
  const loader = new BulkLoader();
  const reader = new StreamReader(loader);
  reader.push(bytes);
  assert.deepEqual(loader.memory, memory);
  // One call takes everything behind the first record, which names the block.
  assert.deepEqual(loader.offsets, [partStart + 5 + 8 + 2 + 4096]);
});

test('pages of 16 KiB and 64 KiB, as Arm has them', () => {
  for (const targetPageBits of [14, 16]) {
    const pageSize = 2 ** targetPageBits;
    const content = patternPage(1, pageSize);
    const { bytes, memory } = new StreamBuilder(7777, pageSize)
      .header({ machine: 'virt-10.0', targetPageBits })
      .ramStart([{ name: 'mach-virt.ram', usedLength: 4 * pageSize }])
      .part([
        { block: 'mach-virt.ram', page: 3, kind: 'normal', content },
        { block: 'mach-virt.ram', page: 0, kind: 'zero' },
      ])
      .end()
      .devices([]);
    assert.deepEqual(load(bytes, 1000).memory, memory);
    // The same stream without the subsection, for a caller that knows the machine.
    const bare = new StreamBuilder(1, pageSize)
      .header()
      .ramStart([{ name: 'r', usedLength: pageSize }])
      .end()
      .devices([]);
    assert.equal(load(bare.bytes, 99, { targetPageSize: pageSize }).memory.get('r')?.length, pageSize);
  }
});

test('x-ignore-shared adds an address to each block', () => {
  const capabilities = ['x-ignore-shared'];
  const { bytes } = new StreamBuilder()
    .header({ capabilities })
    .ramStart([{ name: 'a', usedLength: 4096, address: 0xc0000 }], capabilities)
    .end()
    .devices([]);
  assert.deepEqual(load(bytes).configurationElement?.capabilities, capabilities);
  const seen: unknown[] = [];
  const handler = new (class extends Loader {
    override ramSetup(setup: RamSetup): void {
      super.ramSetup(setup);
      seen.push(...setup.blocks);
    }
  })();
  new StreamReader(handler).push(bytes);
  const lengthOffset = Buffer.from(bytes).indexOf('\x01a') + 2;
  assert.deepEqual(seen, [{ index: 0, name: 'a', usedLength: 4096, address: 0xc0000, lengthOffset }]);
});

test('a source that only announces postcopy is taken, if its pages are plain', () => {
  const advise = (summary: number): Uint8Array => command(3, new ByteWriter().be64(summary).be64(4096).copy());
  const stream = (summary: number): Uint8Array =>
    new StreamBuilder()
      .header()
      .raw(advise(summary))
      .ramStart([{ name: 'a', usedLength: 4096 }])
      .end()
      .devices([]).bytes;
  assert.ok(load(stream(0x1000)).summary);
  assert.throws(() => load(stream(0x201000)), { code: 'POSTCOPY_PAGE_SIZES', value: 0x201000n });
});

test('a background snapshot has no END, and its devices follow the last PART', () => {
  const { bytes, memory } = new StreamBuilder()
    .header()
    .ramStart([{ name: 'a', usedLength: 8192 }])
    .part([{ block: 'a', page: 1, kind: 'normal', content: patternPage(1) }])
    .part([])
    .devices([testDevice('cpu', 100)]);
  const loader = load(bytes, 50);
  assert.deepEqual(loader.memory, memory);
  assert.equal(loader.summary?.backgroundSnapshot, true);
  assert.equal(loader.summary?.devices.length, 1);
  assert.equal(loader.summary?.tail.early.length, 0);
});

test('the end is recognised while the peer stays connected, to the byte', () => {
  const { bytes } = richStream();
  const reader = new StreamReader(new Loader());
  assert.equal(reader.push(bytes, 0, bytes.length - 1), bytes.length - 1);
  assert.equal(reader.done, false);
  const more = Buffer.concat([bytes.subarray(-1), Buffer.from('more')]);
  assert.equal(reader.push(more), 1);
  assert.equal(reader.done, true);
  assert.equal(reader.push(more, 1), 0);
});

test('a footer and a length that together look like a description do not hide it', () => {
  // Last section id 6 and a description of 0x7b22 bytes: 7e 00 00 [00 06 00 06 00 00 7b 22] {"
  const tail = buildDeviceTail([2, 3, 4, 5, 6].map((instance) => testDevice('cpu', 10, instance)));
  const description = tail.description.padEnd(0x7b22, ' ');
  const stream = new StreamBuilder()
    .header()
    .ramStart([{ name: 'a', usedLength: 4096 }])
    .end();
  const { bytes } = stream.tail({ ...tail, description });
  const reader = new StreamReader(new Loader());
  reader.push(bytes);
  assert.ok(reader.done);
});

test('device state that looks like a description does not end the stream', () => {
  // One cut short by a byte 00, one by the end of its device.
  const decoy = (bytes: number, text: string): ByteWriter => new ByteWriter().u8(0).u8(6).be32(bytes).ascii(text).u8(0);
  const body = Buffer.concat([decoy(200, '{"a": 1').view, decoy(500, `{"${'x'.repeat(400)}`).view]);
  const { bytes } = new StreamBuilder()
    .header()
    .ramStart([{ name: 'a', usedLength: 4096 }])
    .end()
    .devices([{ name: 'decoy', instance: 0, version: 1, body }, testDevice('cpu', 50)]);
  const loader = load(bytes, 100);
  assert.deepEqual(
    loader.summary?.devices.map((device) => device.bytes),
    [body.length, 50],
  );
  assert.deepEqual(loader.summary?.warnings, []);
});

describe('streams without a usable description', () => {
  const stream = (): StreamBuilder =>
    new StreamBuilder()
      .header()
      .ramStart([{ name: 'a', usedLength: 4096 }])
      .end();
  const devices = [testDevice('timer', 24), testDevice('cpu', 3000), testDevice('cpu', 10, 1)];
  const tail = buildDeviceTail(devices);
  const withEnd = (...end: Uint8Array[]): Uint8Array => Buffer.concat([stream().bytes, tail.sections, ...end]);

  for (const [how, bytes, complete] of [
    ['missing', withEnd(Uint8Array.of(0)), true],
    ['empty', withEnd(streamEnd('')), true],
    ['cut', withEnd(streamEnd(tail.description)).subarray(0, -7), false],
    ['cut', withEnd(Uint8Array.of(0, 6, 0)), false],
    ['damaged', withEnd(streamEnd(tail.description.replace('fields', 'fi"lds'))), true],
    ['damaged', withEnd(streamEnd(tail.description.replace('"instance_id": 1', '"instance_id": x'))), true],
    ['damaged', withEnd(streamEnd(tail.description.replace('timer', 'ti\x07er'))), true],
    ['damaged', withEnd(streamEnd('no description at all')), true],
  ] as const) {
    test(`${how}: the sections are cut by their footers, with a warning`, () => {
      const { summary } = load(bytes, 77);
      assert.deepEqual(
        summary?.devices.map((device) => [device.name, device.bytes]),
        devices.map((device) => [device.name, device.body.length]),
      );
      assert.equal(summary?.complete, complete);
      const { descriptionDamage } = summary!;
      assert.equal(descriptionDamage?.code.startsWith('DESCRIPTION_'), how === 'damaged' ? true : undefined);
      assert.ok(descriptionDamage === undefined || descriptionDamage.offset! > summary!.devices.at(-1)!.offset);
      assert.match(summary?.warnings[0] ?? '', new RegExp(`description is ${how}`));
      assert.deepEqual(summary?.tail.sections, tail.sections);
    });
  }

  test('what looks like the end of a section, but cannot be, does not end it', () => {
    const like = (next: ByteWriter): Uint8Array => footer(new ByteWriter(), 3).bytes(next.view).copy();
    const body = Buffer.concat([
      like(sectionHeader(new ByteWriter(), 4, 2, 'x', 0, 1)),
      like(new ByteWriter().u8(0).u8(7)),
      like(new ByteWriter().u8(0).u8(6).be32(3)),
      like(new ByteWriter().u8(4).be32(9).u8(0)),
      like(sectionHeader(new ByteWriter(), 4, 9, 'x', 0x10000, 1)),
      patternPage(1, 30),
    ]);
    const decoys = buildDeviceTail([testDevice('timer', 24), { ...testDevice('cpu', 0), body }, testDevice('last', 5)]);
    // Without the description, and with one that is wrong about the section.
    for (const description of ['', decoys.description.replaceAll(`${body.length}`, '1')]) {
      const { summary } = load(Buffer.concat([stream().bytes, decoys.sections, streamEnd(description)]));
      assert.deepEqual(
        summary?.devices.map((device) => device.bytes),
        [24, body.length, 5],
      );
    }
  });

  test('a described length that does not meet the footer falls back to it, with a warning', () => {
    const wrong = tail.description.replaceAll('3000', '2999');
    const { summary } = load(withEnd(streamEnd(wrong)));
    assert.deepEqual(
      summary?.devices.map((device) => device.bytes),
      [24, 3000, 10],
    );
    assert.match(summary?.warnings[0] ?? '', /1 sections do not have the described length: "cpu"/);
  });
});

describe('early device sections', () => {
  const section = (name: string, body: Uint8Array, id = 9): Uint8Array =>
    footer(sectionHeader(new ByteWriter(), 4, id, name, 0, 1).bytes(body), id).copy();
  const stream = (early: Uint8Array, description: string): Uint8Array =>
    new StreamBuilder()
      .header()
      .ramStart([{ name: 'a', usedLength: 4096 }])
      .raw(early)
      .raw(command(11))
      .end()
      .raw(streamEnd(description)).bytes;
  const describe9 = (name: string, bytes: number): string =>
    `{"devices": [{"name": "${name}", "instance_id": 0, "fields": [{"size": ${bytes}}]}]}`;

  test('virtio-mem tells its own length, even where a footer seems to come earlier', () => {
    const name = '0000:00:02.0/virtio-mem-device-early';
    const body = virtioMemEarlyBody(1000);
    body.set(Buffer.from('7e000000090200000001', 'hex'), 60);
    const { summary } = load(stream(section(name, body), describe9(name, body.length)), 13);
    assert.deepEqual(summary?.tail.early, section(name, body));
    assert.equal(summary?.devices[0].bytes, 36 + 8 * 16);
  });

  test('any other ends at the first footer that an element follows, and is checked against the description', () => {
    // A footer of another section, and one of this section that nothing can follow.
    const body = Buffer.concat([
      patternPage(1, 500),
      Buffer.from('7e0000000804' + '7e0000000955', 'hex'),
      patternPage(2, 99),
    ]);
    for (const pieceBytes of [1, 7, 5000]) {
      const { summary } = load(stream(section('x/new-early', body), describe9('x/new-early', body.length)), pieceBytes);
      assert.deepEqual(summary?.tail.early, section('x/new-early', body));
    }
    assert.throws(() => load(stream(section('x/new-early', body), describe9('x/new-early', 7))), {
      code: 'DEVICE_SECTION',
      kind: 'invalid',
    });
  });

  test('two in a row', () => {
    const early = Buffer.concat([section('a/early', patternPage(1, 100)), section('b/early', patternPage(2, 200), 10)]);
    const { summary } = load(stream(early, ''), 11);
    assert.deepEqual(
      summary?.devices.map((device) => [device.name, device.bytes]),
      [
        ['a/early', 100],
        ['b/early', 200],
      ],
    );
  });
});

// QEMU 11.1 sends them there, whatever the machine type.
describe('early device sections in front of RAM', () => {
  const section = (name: string, body: Uint8Array, id: number): Uint8Array =>
    footer(sectionHeader(new ByteWriter(), 4, id, name, 0, 1).bytes(body), id).copy();
  const virtioMem = '0000:00:02.0/virtio-mem-device-early';
  const virtioMemBody = virtioMemEarlyBody(1000);
  // A footer of the section that nothing can follow, and one that a part of RAM could follow if RAM had started.
  const body = Buffer.concat([
    patternPage(1, 500),
    Buffer.from('7e0000000955' + '7e000000090200000001', 'hex'),
    patternPage(2, 99),
  ]);
  const front = Buffer.concat([section(virtioMem, virtioMemBody, 10), section('x/new-early', body, 9)]);
  const behind = section('y/new-early', patternPage(3, 70), 11);
  const described = [
    [virtioMem, virtioMemBody.length],
    ['x/new-early', body.length],
    ['y/new-early', 70],
  ] as const;
  const devices = described.map(
    ([name, bytes]) => `{"name": "${name}", "instance_id": 0, "fields": [{"size": ${bytes}}]}`,
  );
  const stream = (...early: readonly Uint8Array[]): Uint8Array => {
    const builder = new StreamBuilder().header();
    for (const bytes of early) {
      builder.raw(bytes);
    }
    return builder
      .ramStart([{ name: 'a', usedLength: 4096 }])
      .raw(behind)
      .end()
      .raw(streamEnd(`{"devices": [${devices.join(', ')}]}`)).bytes;
  };

  test('are read like those behind its start, in pieces of any size', () => {
    for (const pieceBytes of [1, 7, 5000]) {
      const { summary } = load(stream(front), pieceBytes);
      assert.deepEqual(
        summary?.devices.map(({ name, bytes }) => [name, bytes]),
        described.map((device) => [...device]),
      );
      assert.deepEqual(summary?.tail.early, new Uint8Array(Buffer.concat([front, behind])));
      assert.deepEqual(summary?.warnings, []);
    }
  });

  test('a command may stand between them and RAM', () => {
    const { summary } = load(stream(front, command(1)), 11);
    assert.equal(summary?.devices.length, 3);
  });

  test('are told when the blocks are known that they speak of, each with its own body', () => {
    const told: string[] = [];
    const reader = new StreamReader({
      ramSetup: ({ blocks }) => told.push(blocks.map(({ name }) => name).join()),
      earlySection: ({ name }, bytes) => told.push(`${name} ${bytes.length} ${Buffer.from(bytes).readUInt32BE(0)}`),
      zeroPage: () => {},
      page: () => {},
      xbzrlePage: () => {},
      end: () => told.push('end'),
    });
    const bytes = stream(front);
    reader.push(bytes, reader.push(bytes, 0, 700));
    const word = (of: Uint8Array): number => Buffer.from(of).readUInt32BE(0);
    assert.deepEqual(told, [
      'a',
      `${virtioMem} ${virtioMemBody.length} ${word(virtioMemBody)}`,
      `x/new-early ${body.length} ${word(body)}`,
      `y/new-early 70 ${word(patternPage(3, 70))}`,
      'end',
    ]);
  });

  test('a stream that ends before RAM starts, and a section with the id of RAM, are refused', () => {
    const end = new StreamBuilder()
      .header()
      .raw(section(virtioMem, virtioMemBody, 10))
      .raw(streamEnd('')).bytes;
    assert.throws(() => load(end, 13), { code: 'SECTION_ORDER', kind: 'invalid' });
    assert.throws(() => load(stream(section(virtioMem, virtioMemBody, 1)), 13), { code: 'DEVICE_SECTION' });
  });
});

test('an error names the file', () => {
  assert.throws(() => load(Buffer.from('not a stream'), 12, { file: 'x.mig' }), {
    file: 'x.mig',
    offset: 0,
    code: 'NOT_A_STREAM',
  });
});

test('what a handler throws comes out of push', () => {
  const failure = new Error('disk full');
  const handler = new Loader();
  handler.zeroPage = () => {
    throw failure;
  };
  assert.throws(() => new StreamReader(handler).push(richStream().bytes), failure);
});
