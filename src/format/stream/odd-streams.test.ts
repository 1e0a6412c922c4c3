// Streams of machines that are not a PC of today. What they hold of memory is read whatever else is in them.

import assert from 'node:assert/strict';
import { suite, test } from 'node:test';
import { described } from '../../../test/odd-machines.js';
import { patternPage, StreamBuilder, type TestRecord, testDevice } from '../../../test/streams.js';
import { ByteWriter } from '../byte-writer.js';
import { openSnapshot, type SnapshotOptions } from '../open-snapshot.js';
import type { Snapshot } from '../snapshot.js';
import { Command, ElementType } from './constants.js';
import { DescribedDevices } from './device-fields.js';
import { buildDeviceTail, deviceStates, inFrontOfPages, pickRamSectionId } from './device-tail.js';
import { StreamReader } from './read.js';
import type { StreamHandler, StreamSummary } from './stream-handler.js';
import { command, footer, sectionHeader, streamEnd, streamMagic } from './write.js';

const open = (bytes: Uint8Array, options: SnapshotOptions = {}): Snapshot =>
  openSnapshot(
    (position, target) => target.set(bytes.subarray(position, position + target.length)),
    bytes.length,
    options,
  );

const content = (snapshot: Snapshot, block = 0): Uint8Array => {
  const { blocks, targetPageSize } = snapshot.setup;
  const bytes = new Uint8Array(blocks[block]!.usedLength);
  snapshot.readPages(block, 0 as never, bytes.length / targetPageSize, bytes);
  return bytes;
};

/** Reads the stream in pieces, as a socket brings it, the rest of each pushed again with the next. */
const readInPieces = (bytes: Uint8Array, pieceBytes: number): StreamSummary => {
  let summary: StreamSummary | undefined;
  const handler: StreamHandler = {
    ramSetup: () => {},
    zeroPage: () => {},
    page: () => {},
    xbzrlePage: () => {},
    end: (read) => {
      summary = read;
    },
  };
  const reader = new StreamReader(handler);
  let start = 0;
  for (let end = pieceBytes; !reader.done && start < bytes.length; end += pieceBytes) {
    start += reader.push(bytes, start, Math.min(end, bytes.length));
    if (end >= bytes.length) {
      reader.end();
    }
  }
  return summary!;
};

const RAM = [{ name: 'ram', usedLength: 8 * 4096 }];
const PAGES: readonly TestRecord[] = [
  { block: 'ram', page: 0, kind: 'normal', content: patternPage(7) },
  { block: 'ram', page: 1, kind: 'zero' },
  { block: 'ram', page: 6, kind: 'normal', content: patternPage(8) },
];

suite('sections of other devices that iterate', () => {
  const DEVICES = [testDevice('timer', 24), testDevice('cpu', 500)];
  const part = (type: number, id: number, body: Uint8Array): Uint8Array =>
    footer(new ByteWriter().u8(type).be32(id).bytes(body), id).copy();
  const start = (id: number, name: string, version: number, body: Uint8Array): Uint8Array =>
    footer(sectionHeader(new ByteWriter(), ElementType.SECTION_START, id, name, 0, version).bytes(body), id).copy();
  const words = (...values: number[]): Uint8Array =>
    values.reduce((out, value) => out.be32(value), new ByteWriter()).copy();

  /** Everything in it passes for the end of section 5 but for what follows, or is the end of another one. */
  const decoys = Buffer.from(`7e00000005${'55'.repeat(9)}7e0000000600067e000000050300000009`, 'hex');
  const entry = Buffer.concat([decoys, new Uint8Array(32 * 16 - decoys.length)]);
  const CASES = [
    {
      name: 'spapr/htab',
      isSized: true,
      sections: [
        start(5, 'spapr/htab', 1, words(24)),
        part(
          ElementType.SECTION_PART,
          5,
          Buffer.concat([words(0, 7, 0x0020_0001), entry, words(90, 0x0000_0003), words(0, 0)]),
        ),
        part(ElementType.SECTION_END, 5, words(0, 0, 0)),
      ],
    },
    { name: 'spapr/htab', isSized: true, sections: [start(5, 'spapr/htab', 1, words(0xffff_ffff))] },
    {
      name: 's390-storage_attributes',
      isSized: true,
      sections: [
        start(5, 's390-storage_attributes', 0, words(0, 1)),
        part(ElementType.SECTION_PART, 5, Buffer.concat([words(0, 0x5002, 0, entry.length), entry, words(0, 1)])),
        part(ElementType.SECTION_PART, 5, words(0, 8, 0, 1)),
        part(ElementType.SECTION_END, 5, words(0, 8)),
      ],
    },
    {
      name: 'x/vfio',
      isSized: false,
      sections: [
        start(5, 'x/vfio', 1, entry),
        part(ElementType.SECTION_PART, 5, new Uint8Array()),
        part(ElementType.SECTION_END, 5, entry.subarray(0, 77)),
      ],
    },
    // Of a version that nobody has seen, and of one that is not what it says.
    { name: 'spapr/htab', isSized: false, sections: [start(5, 'spapr/htab', 2, entry)] },
    {
      name: 's390-storage_attributes',
      isSized: false,
      sections: [start(5, 's390-storage_attributes', 0, words(9, 9, 9))],
    },
    {
      name: 'spapr/htab',
      isSized: false,
      sections: [start(5, 'spapr/htab', 1, words(24)), part(ElementType.SECTION_PART, 5, words(0, 0, 0, 1, 2, 3))],
    },
  ];

  for (const [index, { name, isSized, sections }] of CASES.entries()) {
    const [first, ...rest] = sections;
    const { bytes, memory } = new StreamBuilder()
      .header({ machine: 'pseries-7.2' })
      .ramStart(RAM)
      .raw(first!)
      .part(PAGES)
      .raw(Buffer.concat(rest))
      .end()
      .devices(DEVICES);

    test(`${name}, case ${index}: the pages are read, the bytes kept`, () => {
      const snapshot = open(bytes);
      assert.deepEqual(content(snapshot), memory.get('ram'));
      const { summary } = snapshot;
      const { tail } = summary;
      assert.deepEqual(Buffer.from(tail.iterable!), Buffer.concat(sections));
      assert.deepEqual(Buffer.from(inFrontOfPages(tail)), Buffer.concat(sections));
      assert.deepEqual(deviceStates(tail, summary.devices), DEVICES);
      assert.equal(summary.warnings.length, 1);
      assert.match(summary.warnings[0]!, new RegExp(`^"${name}" iterates as RAM does: its [0-9]+ bytes are kept`));
      assert.equal(/heuristic/.test(summary.warnings[0]!), !isSized);
      // The section goes on with its id: RAM must not take it.
      assert.ok(!new Set([2, 3, 5]).has(pickRamSectionId(tail)));
    });

    test(`${name}, case ${index}: in pieces of any size`, () => {
      const whole = readInPieces(bytes, bytes.length);
      for (const pieceBytes of [1, 7, 64, 1000]) {
        assert.deepEqual(readInPieces(bytes, pieceBytes), whole);
      }
    });
  }

  test('one that was cut is not whole', () => {
    const { bytes } = new StreamBuilder().header({ machine: 'pseries-7.2' }).ramStart(RAM).raw(CASES[0]!.sections[0]!);
    for (const cut of [1, 6, 15]) {
      assert.throws(() => open(bytes.subarray(0, -cut)), { code: 'STREAM_INCOMPLETE' });
    }
  });

  test('are no longer than device state may be', () => {
    const long = start(5, 'x/vfio', 1, new Uint8Array(5000));
    const { bytes } = new StreamBuilder().header().ramStart(RAM).raw(long).part(PAGES).end().devices([]);
    const reader = new StreamReader(
      { ramSetup() {}, zeroPage() {}, page() {}, xbzrlePage() {}, end() {} },
      { deviceTailLimit: 4000 },
    );
    assert.throws(() => reader.push(bytes), { code: 'DEVICE_STATE_TOO_LARGE', value: 4000 });
  });
});

suite('machine types up to 2.3', () => {
  const DEVICES = [
    testDevice('timer', 24),
    testDevice('cpu', 5000),
    testDevice('cpu', 333, 1),
    testDevice('0000:00:02.0/vga', 77),
  ];
  /** Device sections without their footers. */
  const bare = (): Uint8Array =>
    DEVICES.reduce(
      (out, { name, instance, version, body }, index) =>
        sectionHeader(out, ElementType.SECTION_FULL, 2 + index, name, instance, version).bytes(body),
      new ByteWriter(),
    ).copy();
  const { description } = buildDeviceTail(DEVICES);
  const stream = (hasConfiguration: boolean, hasFooters: boolean, end: Uint8Array): StreamBuilder => {
    const builder = new StreamBuilder(1, 4096, hasFooters);
    return (hasConfiguration ? builder.header() : builder.raw(streamMagic()))
      .ramStart(RAM)
      .part(PAGES)
      .end()
      .raw(hasFooters ? buildDeviceTail(DEVICES).sections : bare())
      .raw(end);
  };

  for (const [what, end] of [
    ['with a description (2.3)', streamEnd(description)],
    ['without one (2.2 and older)', Uint8Array.of(ElementType.EOF)],
  ] as const) {
    for (const hasConfiguration of [false, true]) {
      for (const hasFooters of [false, true]) {
        const name = `${what}, ${hasConfiguration ? '' : 'no '}configuration, ${hasFooters ? '' : 'no '}footers`;
        test(`${name}: pages and devices are read`, () => {
          const { bytes, memory } = stream(hasConfiguration, hasFooters, end);
          const snapshot = open(bytes);
          const { summary, configuration } = snapshot;
          assert.deepEqual(content(snapshot), memory.get('ram'));
          assert.deepEqual(deviceStates(summary.tail, summary.devices), DEVICES);
          assert.equal(configuration.isMissing, hasConfiguration ? undefined : true);
          assert.equal(configuration.machine === '', !hasConfiguration);
          assert.equal(summary.tail.lacksFooters, hasFooters ? undefined : true);
          assert.equal(/no configuration/.test(summary.warnings.join()), !hasConfiguration);
          assert.deepEqual(readInPieces(bytes, 7), readInPieces(bytes, bytes.length));
        });
      }
    }
  }

  test('a stream that is cut before its last byte is not whole', () => {
    const { bytes } = stream(false, false, Uint8Array.of(ElementType.EOF));
    // The device's last byte is not zero, which would pass for the end.
    assert.throws(() => open(bytes.subarray(0, -1)), { code: 'STREAM_INCOMPLETE' });
  });

  test('a footer that is missing where the others are is a fault', () => {
    const { bytes } = new StreamBuilder().header().ramStart(RAM).part(PAGES);
    const cut = Buffer.concat([bytes.subarray(0, -5), new StreamBuilder().end().devices([]).bytes]);
    assert.throws(() => open(cut), { code: 'SECTION_FOOTER' });
  });
});

test('a device that is there twice, as of an ISA-only PC: each section is read by its own description', () => {
  const { bytes, memory } = described(4096);
  const snapshot = open(bytes);
  assert.deepEqual(content(snapshot), memory.get('ram'));
  const devices = new DescribedDevices(snapshot.summary);
  const values = devices.named('isa-ide').map((section) => devices.fields(section).fields.bytes('data'));
  assert.deepEqual(values.map(Buffer.from), [Buffer.from('first'), Buffer.from('the second')]);
  assert.deepEqual(snapshot.summary.warnings, [
    'More than one device section has the same name: "isa-ide" (instance 0).',
  ]);
});

test('a section that the description leaves out ends at its footer', () => {
  const { bytes, memory } = described(4096, (text) => text.replaceAll('isa-ide', 'isa-ida'));
  const snapshot = open(bytes);
  assert.deepEqual(content(snapshot), memory.get('ram'));
  assert.equal(snapshot.summary.devices.length, 3);
  assert.match(
    snapshot.summary.warnings.join('\n'),
    /2 sections do not have the described length: "isa-ide", "isa-ide"/,
  );
});

suite('page size', () => {
  const stream = (pageSize: number, machine: string, kinds: readonly ('zero' | 'normal')[], end?: Uint8Array) => {
    const builder = new StreamBuilder(1, pageSize)
      .header({ machine })
      .ramStart([
        { name: 'ram', usedLength: kinds.length * pageSize },
        { name: 'rom', usedLength: 65_536 },
      ])
      .part(
        kinds.map((kind, page) =>
          kind === 'zero'
            ? { block: 'ram', page, kind }
            : { block: 'ram', page, kind, content: patternPage(page, pageSize) },
        ),
      )
      .end(Array.from({ length: 65_536 / pageSize }, (_, page) => ({ block: 'rom', page, kind: 'zero' })));
    return end === undefined ? builder.devices([testDevice('cpu', 99)]) : builder.raw(end);
  };
  const NONE = Uint8Array.of(ElementType.EOF);
  const SIZES = [256, 1024, 2048, 4096, 8192, 16_384, 65_536];
  const ORDERS = [
    ['zero', 'zero', 'normal', 'zero'],
    ['normal', 'zero', 'normal', 'normal'],
    ['zero', 'normal', 'normal', 'zero'],
    ['normal'],
  ] as const;

  test('zero pages that a source leaves out do not make pages seem larger', () => {
    const withZeroPages = (pages: readonly number[]): Uint8Array =>
      new StreamBuilder()
        .header({ machine: 'virt' })
        .ramStart([{ name: 'ram', usedLength: 200 * 4096 }])
        .part(pages.map((page) => ({ block: 'ram', page, kind: 'zero' })))
        .part([{ block: 'ram', page: 190, kind: 'normal', content: patternPage(9) }])
        .end()
        .devices([testDevice('cpu', 40)]).bytes;
    assert.equal(open(withZeroPages([0, 2, 4, 6, 7])).setup.targetPageSize, 4096);
    // Where no two are neighbours the next page tells.
    assert.equal(open(withZeroPages([0, 2, 4, 6])).setup.targetPageSize, 4096);
    // If it comes too late, what was taken for larger pages is never valid.
    const many = Array.from({ length: 64 }, (_, index) => 2 * index);
    assert.throws(() => open(withZeroPages(many)), { kind: 'invalid' });
  });

  test('a source that ends its first sections early, as on a busy machine, has pages of the same size', () => {
    const zero = (page: number, block = 'ram') => ({ block, page, kind: 'zero' }) as const;
    for (const pageSize of [1024, 16_384]) {
      const sections = (...parts: readonly (readonly ReturnType<typeof zero>[])[]): number => {
        const builder = new StreamBuilder(1, pageSize).header({ machine: 'virt' }).ramStart([
          { name: 'ram', usedLength: 16 * pageSize },
          { name: 'rom', usedLength: 65_536 },
        ]);
        for (const part of parts) {
          builder.part(part);
        }
        const { bytes } = builder
          .end([{ block: 'ram', page: 9, kind: 'normal', content: patternPage(9, pageSize) }])
          .devices([testDevice('cpu', 40)]);
        return open(bytes).setup.targetPageSize;
      };
      assert.equal(sections([zero(0)], [zero(1), zero(2)]), pageSize);
      // Each page in a section of its own; the size of the first one with content, where no two are neighbours.
      assert.equal(sections([zero(0)], [zero(1)]), pageSize);
      assert.equal(sections([zero(0)]), pageSize);
      assert.equal(sections([zero(0, 'rom')], []), pageSize);
      // What is as far apart as pages may be, but in different blocks, says nothing.
      assert.equal(sections([zero(0, 'rom')], [zero(4)]), pageSize);
    }
  });

  // spec/qemu-wire-format.md 5.4: a source may switch before it has sent a page.
  test('a command that comes before the first record finds RAM known', () => {
    const events: string[] = [];
    const handler: Partial<StreamHandler> = {
      ramSetup: ({ targetPageSize }) => void events.push(`pages of ${targetPageSize}`),
      command: (number) => void events.push(`command ${number}`),
    };
    const reader = new StreamReader(handler as StreamHandler);
    const { bytes } = new StreamBuilder()
      .header({ machine: 'virt' })
      .ramStart([{ name: 'ram', usedLength: 16 * 4096 }])
      .raw(command(Command.SWITCHOVER_START));
    reader.push(bytes, 0, bytes.length);
    assert.deepEqual(events, ['pages of 4096', 'command 11']);
  });

  for (const pageSize of SIZES) {
    test(`of ${pageSize} bytes is found by the first records`, () => {
      for (const order of ORDERS) {
        const { bytes, memory } = stream(pageSize, 'virt', order);
        const snapshot = open(bytes);
        assert.equal(snapshot.setup.targetPageSize, pageSize);
        assert.deepEqual(content(snapshot), memory.get('ram'));
        assert.equal(snapshot.summary.isPageSizeAssumed, false);
        for (const pieceBytes of [1, 300]) {
          assert.equal(readInPieces(bytes, pieceBytes).isPageSizeAssumed, false);
        }
      }
    });

    test(`of ${pageSize} bytes: a wrong one that is asked for is never valid`, () => {
      for (const wrong of SIZES.filter((size) => size !== pageSize)) {
        for (const order of [...ORDERS, ['zero', 'zero', 'zero', 'zero']] as const) {
          for (const end of [undefined, NONE]) {
            const { bytes } = stream(pageSize, 'virt', order, end);
            const about = `${pageSize} as ${wrong} ${order.join()} ${end}`;
            assert.throws(
              () => open(bytes, { targetPageSize: wrong }),
              (error: { kind?: string; hint?: string }) =>
                error.kind === 'invalid' && /page-size|asked for/.test(error.hint ?? ''),
              about,
            );
          }
        }
      }
    });
  }

  test('that the caller names is taken where nothing else tells', () => {
    const { bytes, memory } = stream(8192, 'unheard-of', ['normal', 'zero'], NONE);
    assert.deepEqual(content(open(bytes, { targetPageSize: 8192 })), memory.get('ram'));
  });

  test('of a machine type is known', () => {
    // Pages that do not follow each other tell nothing.
    const one = new StreamBuilder(1, 8192)
      .header({ machine: 'clipper' })
      .ramStart([{ name: 'ram', usedLength: 4 * 8192 }])
      .part([
        { block: 'ram', page: 1, kind: 'zero' },
        { block: 'ram', page: 3, kind: 'zero' },
      ])
      .end()
      .devices([]);
    assert.equal(open(one.bytes).setup.targetPageSize, 8192);
  });

  test('that the stream carries is not another one', () => {
    const { bytes } = new StreamBuilder(1, 16_384)
      .header({ machine: 'virt-10.0', targetPageBits: 14 })
      .ramStart([{ name: 'ram', usedLength: 16_384 }])
      .end()
      .devices([]);
    assert.throws(() => open(bytes, { targetPageSize: 4096 }), { code: 'PAGE_SIZE', value: 16_384 });
  });

  test('that there is not is wrong usage', () => {
    for (const targetPageSize of [0, 100, 5000, 131_072]) {
      assert.throws(() => open(new Uint8Array(9), { targetPageSize }), { code: 'USAGE_PAGE_SIZE' });
    }
  });

  test('without a page that tells: that of most machines, unless the description says another one', () => {
    const empty = (pageSize: number): Uint8Array =>
      new StreamBuilder(1, pageSize)
        .header({ machine: 'virt' })
        .ramStart([{ name: 'ram', usedLength: 65_536 }])
        .end()
        .devices([]).bytes;
    assert.equal(open(empty(4096)).setup.targetPageSize, 4096);
    assert.throws(() => open(empty(8192)), { code: 'PAGE_SIZE', value: 8192, hint: 'Try --page-size 8192.' });
    assert.equal(open(empty(8192), { targetPageSize: 8192 }).setup.targetPageSize, 8192);
  });
});
