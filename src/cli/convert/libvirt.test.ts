// `convert --to libvirt`: an image as libvirt writes it, byte for byte up to the stream. A real libvirt is not needed.

import assert from 'node:assert/strict';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { after, test } from 'node:test';
import { gzipSync } from 'node:zlib';
import { runCommand } from '../../../test/command.js';
import { libvirtHead } from '../../../test/libvirt-images.js';
import { richMappedRamFile } from '../../../test/mapped-ram-builder.js';
import { richStream } from '../../../test/streams.js';

const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'ramferry-to-libvirt-'));
after(() => fs.rmSync(folder, { recursive: true }));

const save = (name: string, ...parts: Uint8Array[]): string => {
  const file = path.join(folder, name);
  fs.writeFileSync(file, Buffer.concat(parts));
  return file;
};

const XML =
  "<domain type='kvm'>\n<os><type arch='x86_64' machine='pc-i440fx-10.0'>hvm</type></os>\n</domain>\n\0<cookie/>";

/** As libvirt pads it, with the cookie's place in the header. */
const head = (options: { format: number; wasRunning?: boolean; bigEndian?: boolean }, xml = XML): Buffer => {
  const bytes = libvirtHead({ ...options, xmlBytes: 5000 });
  bytes.write(xml.padEnd(5000, '\0'), 92);
  bytes[options.bigEndian ? 'writeUInt32BE' : 'writeUInt32LE'](92, 32);
  return bytes;
};

const { bytes: stream } = richStream();
const guest = save('guest.mig', stream);

const digestsOf = async (file: string): Promise<unknown> => {
  const { status, stdout } = await runCommand('inspect', '--json', '--digest', file);
  assert.equal(status, 0, stdout);
  const { blocks } = JSON.parse(stdout) as { blocks: { name: string; sha256: string }[] };
  return Object.fromEntries(blocks.map(({ name, sha256 }) => [name, sha256]));
};

for (const [name, input, like, wasRunning] of [
  [
    'a stream, like a packed image',
    guest,
    save('gzip.save', head({ format: 1, wasRunning: true }), gzipSync(stream)),
    true,
  ],
  [
    'a stream, like an image of another byte order',
    guest,
    save('be.save', head({ format: 0, bigEndian: true }), stream),
    true,
  ],
  [
    'a mapped-ram file, like an image',
    save('guest.mapped', richMappedRamFile().bytes),
    save('raw.save', head({ format: 0 })),
    true,
  ],
  ['an image of a paused guest, like itself', save('paused.save', head({ format: 0 }), stream), undefined, false],
  ['a packed image of a running guest, like itself', path.join(folder, 'gzip.save'), undefined, true],
] as const) {
  test(`${name}: XML and cookie are the image's, the guest is the input's`, async () => {
    const out = path.join(folder, `${name}.save`);
    const { status, stdout, stderr } = await runCommand(
      ...['convert', '--json', input, out, '--to', 'libvirt', ...(like === undefined ? [] : ['--like', like])],
    );
    assert.equal(status, 0, stdout + stderr);
    const image = fs.readFileSync(out);
    assert.equal((JSON.parse(stdout) as { fileBytes: number }).fileBytes, image.length);
    assert.deepEqual(image.subarray(0, 5092), head({ format: 0, wasRunning }));
    assert.equal(image.toString('latin1', 5092, 5096), 'QEVM');
    assert.deepEqual(await digestsOf(out), await digestsOf(input));
    assert.equal(fs.existsSync(`${out}.digest`), false);
  });
}

const other = save('other.save', head({ format: 0 }, XML.replace('pc-i440fx-10.0', 'pc-q35-9.2')), stream);

for (const [what, args, status, code] of [
  ['no image', [guest], 2, 'LIKE_OPTION'],
  ['an image of another machine', [guest, '--like', other], 2, 'OTHER_MACHINE'],
  ['what is no image', [guest, '--like', guest], 2, 'NOT_LIBVIRT'],
  [
    'an image cut in its XML',
    [guest, '--like', save('cut.save', head({ format: 0 }).subarray(0, 3000))],
    3,
    'LIBVIRT_INCOMPLETE',
  ],
  ['an image that is not there', [guest, '--like', path.join(folder, 'none.save')], 1, 'NOT_FOUND'],
] as const) {
  test(`refused, and no file is left: ${what}`, async () => {
    const out = path.join(folder, 'refused.save');
    const [input, ...options] = args;
    const result = await runCommand('convert', '--json', input, out, '--to', 'libvirt', ...options);
    const { error } = JSON.parse(result.stdout) as { error: { code: string; message: string } };
    assert.deepEqual([result.status, error.code], [status, code], error.message);
    assert.deepEqual(
      fs.readdirSync(folder).filter((name) => name.startsWith('refused')),
      [],
    );
  });
}

test('--like is for libvirt alone, and the image is no output', async () => {
  const image = path.join(folder, 'gzip.save');
  const misplaced = await runCommand(
    'convert',
    '--json',
    guest,
    path.join(folder, 'x'),
    '--to',
    'stream',
    '--like',
    image,
  );
  assert.match(misplaced.stdout, /LIKE_OPTION/);
  const before = fs.readFileSync(image);
  const onto = await runCommand('convert', '--json', guest, image, '--to', 'libvirt', '--like', image);
  assert.match(onto.stdout, /OUTPUT_IS_INPUT/);
  assert.deepEqual(fs.readFileSync(image), before);
});
