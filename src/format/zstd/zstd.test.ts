// zstd as it is unpacked where Node does not: frames of the zstd command and frames made by hand.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ZstdDecoder } from './decoder.js';
import { Xxh64 } from './xxh64.js';

/** What the zstd command put at the end of frames with so many bytes of `pattern`. */
const CHECKSUMS: readonly (readonly [number, number])[] = [
  [0, 0x51d8_e999],
  [1, 0xbc1f_4bb6],
  [3, 0x52e5_64c9],
  [4, 0x66ee_9fda],
  [7, 0x59ce_60d8],
  [8, 0xc6f9_0092],
  [12, 0x33af_5133],
  [31, 0xcc4a_6119],
  [32, 0xf790_fd97],
  [33, 0xba58_8784],
  [63, 0x31c7_493c],
  [64, 0xf6ee_b01f],
  [71, 0x7001_41a7],
  [100, 0x170f_e531],
  [1000, 0xc8af_9f71],
  [70001, 0x2584_66d7],
];

const pattern = (length: number): Uint8Array =>
  Uint8Array.from({ length }, (_, index) => (index * 7 + (index >> 8) * 31 + 3) & 0xff);

/** 60,000 bytes of text, by `zstd -19 --check`. */
const TEXT_FRAME = Buffer.from(
  [
    'KLUv/QRoLYMA6rDRLxpwS0EhB8jrO/q/vU3//+tAOzcl5Tx49//vBQkD8QL5AhKhaWFIRR6KTJMYSoQS0jDBv8aBvRkXBwk2ZXXQ9GLmEGSfYVpC',
    'yTAd7t0snRiXUhuirOLrSK0YpSRwCsNzp2rhOyavcqZkxIynRLpB/WGVZsJ+IZeFkEe2u5zbtImrLTxGK4ihI3OuxURTWxKmCjJKk8kPUs3Q9BAO',
    'E3cf2kiE5uDdmAYGy8V1hUgRDB2EfQZh4RuEiewOkzaEh8GyhWBRmEfYG0Y+Mwp+HJcp5VndmQPnw41iNNHFjCVcoTnn/w1yCfS76f/xIb6LSF9I',
    'fBKE4RE3XKaKjMeysRJ+Sr3JxCUfhbgSPNM4gu9fzNoe64ZpeZj5yqEhPDc0GKZm36AgndUVhTasrBbWYdUyROcG2mEY0/NCyuZa1ibDjAwRVwVD',
    'JIyxmfdvn2zCvZVd+HBlt5GgfY5tgmYyYtB1XiRBq57qK7VJbMlUiEFCyDcxnIdXicqx8SDmaxB731IRCxHTHEKnCRJ/oCghhHEIuYETg/WFkQqz',
    'ECHUYXbN9P8oKhP0DKWjj8OZTcyaYMX8D491bvnDiHxIXyT0QcL32yeCfnFcW5CRGSF9iZiIdCyXKxFEWWcSZMkEhYgnONDjbvfMiH/bktXDQJMy',
    'BymHhR8PDXVq6Q3h0gm70toQge1kVamGRMcP1HQosTMUhIFixlkyRFozzhYVFhTD5s8e+rWTxYOnvevLhW2jBG17jNMg6UbSZV/U2XJYNULFZnqw',
    'JGdIVogrTCz+CFOJ+RySRuAwSlmIVQQXIQZpRiTnKuMcWnI4lVmqziKEgiNM8L8tMvS1hjmZhSAaOiacYdtcrjASvRXctgxhE0tWnJ4g+mj8aeWi',
    'Z1QJqbAIVxAJCTuQnRHvmDR4EmoPw98rkjr8NoQ59j6R6A4O3Yefr3FxEm0dLp0FPogyncPVSXwnCYoIQXVC5xP2y0U8sdwNMzudWkU0JmHoOGF2',
    '8cSbJahBxFbTJIVCmlCZ0AvFs6iBnSSAAwoUQOCBQQwIULAggYIDEgwAUABBAwEkYGCwIMECCQwwKGCBQQwUGICAgZspyJXRR9fERfWs/1UYqfFM',
    'UyU3hB4OQZlYyENEEiHu+NfohiGBizcoOEdcoRDGMiG6B8VI+NBBHBpWM5RacFxBwQjyCSPvzPwTLDKWecTTESlHvqGIJnwx8glv6Fyk/7qcpS8N',
    '/dx8aLs2+l2HINNHal78IKKJJcgqEoYy9WQxiTkhEhpMa7zwW1zxJlvk9Vk6hOaQy8KGK4Xqn9J9T0kjxpVpOxf7zqpaPRcVhcBJhhXPkVBxU6Jl',
    'kMiJGTeLwwWFIYyWmc8vBNliPKG7kHFBwsa4FtjYr6CGGQnliqFIJks8lUIomtNDUnRCEhxizImYHpKR+MQhgQ2LGFVYzIii0gjpQtgmaP5gsQSZ',
    'DoFqkAgME2RhoQoziyAThjIzFvkEqYw/D6cTH85GNhKqmRgTVLgX5u5/y0Og762/eZHZI64LHfcZpNqI+PKPCHeL74pWCr/JJ0lICLEmeC7jqO9G',
    'xfHZpuqh75nFyw8Jexpq4fTdK0p6uZ5p97MVWcdW60ZtBs4b1jrHQjWY7pTBJ3UZPRYVDloNC+RMss8jmSQvsJMGbj7bNNr0MY8EyWQ04muyaFzL',
    '0UpMaoLTZNJoIV8hhJqY8JhIzBx+aLCBYYVFmFFYJsKdELiZ4JiHMJfg36HyBvoM7hcCr2A+QsOQnzH/CbyMe0/9Tin3vwlzjWNiuglnZ26ZP8zI',
    'reC3oecDP9sn+oR4qSByjYx2mUxkgpaaFYlSxp1Mlow4pJNgGRlPf08jno8tDXUgLWn2SJYsXDI0qFOFX4+lurj129Bh1bCO1VrReoEzh3XPsYUV',
    'MfuXmyGvUZT4LlhhmKezh3ziZfd47Ybi4tsa1aKO9RI0mlFIuD6J+FldK90U9+kfSRyqFqLnhNCPiEuIjKNufGOEwAVvRegj+oUQgpow8UFCJWzE',
    'IT4NHAZ/CwxSBVokAieMzMzMPguVmSAeidAJFEfmxmKN5jFc+Lp5pf+MyKvgU9Q7kP9kl4weU5xmkAkeic7lERIKiYQjWCL4StymhAwncU0S4ZCY',
    'THCEIOMY+o5wimObHZc6FIaO6OdQsBxtwxHCQkOsaVhv0CMN0d3QuA2xcXGNGakhiQYVAiPChxFEzghbGGTNGLEMx8hoGGMSxLAnGOGHxSuzkPqL',
    't7II0wt7XUzEhT5YyGGw0Gew0DwoGh8FJ1e0FsWlViywiiBSMd0U4ZJiUijeQYQkDCIUoc4gQvNBhPZBhC6DCEXoHkRoHkSo0xDUTojog4QSOjqE',
    'WYN4DN4WJEghiCK0CqNpJkIfjUzFE9oRcryNSBNiGq55/JLXD72I93ahHhqvBNGMROiiSaSVJYgqEkTxNhFPEmYhHYMlHEf0Vivu1A5zLTftySwX',
    'hT3ceag604jwSoL0dSe14WKnW4OoLjB6aWDrISdn48LPzX3K4EDq40SivWCYYW9nUn+vyML37OkmgWvYHNNGjJENCnsURK4IF1HBklQzoi5O00oa',
    'h0QPQc+E9RBLIoQ52jYUzIh+oTCKS0TYFkI4Jwz9EIJImIxDuOEagwwXbisEH2EihHFoprOPpTJT8Qynw3LGbbhqRBIzmnBxHtwvVl6KP5w+CD/f',
    'Hqb64vFRCHJrRM7Lg0ViYxmpOIzSeWJfIoVIFzzT8YwSxGGz+9ba6XiY28kPDY8fOk4V9s6WWuMy1MbJBsoaCqrEopoGjj8MOVUKOzEnQhk0csJj',
    'CBctBUMNe3wW9gUpI8Ubhm5k3O9tZrRusUAHiWc0QVeQRetYEVRdpqQzRUwiHRqZELNNXPyYCBL9HEHSEAmMIRdhRGGJmFhD+D8hWA8xS+CMg76G',
    'oTAEFxRV6B9hV5hQz8zCZ6SMdQ+nTsicEGZDUSPxmE7hmuex8LeUv/d99Rvz1e5VH05cviAMMmLqIrbILF8rp0hwcl7CoJBPgmfGn++RIC5r/1OH',
    'kp7weZ/sPcxYaIhMV70MkYZxb7ctS3m9GtPoHQLtDstwDivUghnWUhTIWcegIJoNniEs3Flo+PjK5MF7uCs51tuvRXAEEgYqhDKDafGYmt/UxFxn',
    's9KaM0KzCjMlkunAMD8JpWSmjOmlTCkn2GV0Wj7EkuZKhaiUJ0qZAhnDIYVysmGE/GUysCUZJxkkjJRMZNBBLiaMIczo86MsMpLB43AdN3OcmI2S',
    'NIZojIoHcVTxoiQiTsHiuYqqKb4zUZfEmYYYMSF4aoJ0H9QvwUoOCttgyBkMoQXFKnh5BDeFMHEnbOEPkyVhDHWYOQ1bjGFTL0zCKCzIIkyTMPPD',
    'zGp+Nl1mDp7d7UwbzkLbTLdm0xAzluG7Pp9I/xQqXz/+wtePIvz2fZLqC098lgVZsIxMv0yvyORjmYKVOU5ZqclUSzaHkH0YPMWMF929sYinkD3O',
    '9d5ATwLndSPvX3ghHjoRTbeQdxLpGHbnhnZT2Y1nnUZ14Y+uXuAmPtxH51wRbiZzEVzuJ8d6nCiu4eDkIWx8ZwsN3yRbMHgz2y0ocJt1myhoC2ts',
    'WgjasKOV4Zpc0exgLabVTo3yNFVa7dDChBhDJrbqsRCRGGOOeW9sH2MTvphKxcInYmVD0EiYoM8P0kjQTBzEoAadZ5AEF1SPgr5G0MJI7BmZ+ohB',
    'ZCSfR8PpyCtH1UYba+QrRu/D1XKuWPilWa5OviTeiyKvEGZXyLo4xWU9iEaOaBYuCrWIdlnUvyJFKQpONBSJ9IWIM8GKeaxg3fovVqy2LLXCCK0h',
    'Z4kEWUESVr9QTYSpLn6lTaqRcUW6VcRYSWfVZVURFNU6gQryUBN0SjxCie5WamZI/R4lmahhCIqUMAU5U9inx2UK1ZOlTiGc04Q3SdMUIsTUSZBU',
    'jhRyaXyRNLUksUqhQClQJsUpiaGQrAmh2RNS2EOihOY79NCG2jEUDwtpV6hvhMIWQlDChNj+EJxKCOkcQmoI+wzReSEcphAjESI2YeLBMyHnJ2TJ',
    'xBU8sXgnwpQT821CoonAiYlSwkPsPIL7Q5SHNH6IpA+ufIzbQ9WDnHhMJUhYOhKdPYqbqDQgA7D73v8CQ37jEhIAFCAAAdaAPoCAByDA/oC+AVGH',
    'AL2j9jPd5DzZZZmfg9x1mKRNZMjHCDfxlOza7F6UiYaV5dH/IZ1W88twCJpivGJxkZaxjxGtrM+IDnXLvoky8lm57Oqvu0hHcETpsi5Sn0iyaJqc',
    'uSrTTt9G5sHR5ZJaL2xiJxA9IGMNugkhbdMRzzC9FKp1mpe7/SYgp+WiZ42lJ7fjG3OhhWWjKM9shM3e2GoLDLEes0FT5hTWeSLQvD3jFXZ0O01R',
    '0fDmV75fXFDpP7PtaJ0D78l8xIiKafRDt5l1bcIM1qW9UV3mF1WBcE2Ec15lTEnLvyvlWK4MJEzPcAWR5vzBi+ln9bjYcSQo9wG9tkBghl92iHCM',
    'R5HjO7evSAqkTTjQvXC5+B8R/4sySPognI+D9xHwP/z+v5QQ+qC3H/GuG6C4nw/HZTiEl9ob/RNZG4s4VcJr2fTlMCPhyWhnI24I2bFTp/x2FEQp',
    'd9w/khRtUY6emU0rQlJpDQk+H6KwD7DOmIvmpGO4LASJOTXaiqfRoOzkAremanUWQMEJVshC0vyYtFVvIrDqWJJ2cVUo4ZU3CHeRBs26Wq6eibYB',
    'M+fXnGOpqCypS6wWYvY8+wsJMP6OOAboX5F4RqhPQVQ3V1TzKNNvcGwQ1Y3ztzTU3toePV+y4g3eNT4UDRmjK5zj5ZMZAd912xsWM62Ch+jGnhBa',
    'xtEjkQ2V4QYdoSqsMHszFuODJq8l/QgJ7Co8K1Oaql4OYfgZDoREf4LGEg20B0Dc5jfJMotn2UbvrA3yLkcBfXkYGtgMOznN3ceEJLxBAxhZ6obt',
    'BKQAmyRciefSh0qyJjuGzfrYaCuCPjbgCznuOUAN8q5ZlMboEasFU7o0dEdKCc4girgl7ZYhOMLhUSaAUSXcmNmbWZw4RgU4zj4/xHXFAASX8oFk',
    'ZZG6YHA+MMR1Ekk5gGA3ieYbyElNOT2REWvWXfYFG9rkiiIUx4yed/4zJghH3qMDom+WW6gco7NXuirRhVZbafReEWodQTik4jbGTzrSRID1T5/9',
    'hD8tZnDxOIDwaby0MXXHaeUIDo7gWgpwSokMf4c5olFHaUFi6VGhtZqaxoYmMeUaQ5H/9WAHlYBNsxyvZJtMopm+owoB/ZB1ZgfBbTxrt1wVgZj/',
    'kpBg+XwAiH2p4DubblMhya5QQjJ8+HiBeNXTfiQkWhofEE12XVnpW+2mKQHD3zx4XcIUzonGEM1KxI+fELzGp3bGFdBrnHcBoiAr5UM552LOe0jQ',
    '+RgXwChDItrx36MuYDdNbUROC1lhKRYDGyjLLJoenf4qgbjYUFZyhzueRuDrVSqbzkZMSLtOx0PgXd/l4fr1ANHr4A7MwBis3Od99mF0EK8jWgWc',
    'ruciyrPQqEd44IG9FN+LHmysF6rygqWYZ0Mj2KyXsbGYV3/Hck7hUXdAgDi53cxrfdYLqnqszut+l7Cuq5x/W30WoToRjlDER3Vi2iFYZH4ng35H',
    '1bD+d/0PdqpZMA==',
  ].join(''),
  'base64',
);

const text = (): Buffer => {
  let lines = '';
  for (let page = 0; lines.length < 60_000; page += 1) {
    lines += `page ${page} of block pc.ram, checked ${(page * page) % 977} times;`;
  }
  return Buffer.from(lines.slice(0, 60_000));
};

const unpacked = (packed: Uint8Array, pieceBytes = packed.length, endsAnywhere = false): Buffer => {
  const decoder = new ZstdDecoder({ endsAnywhere });
  const pieces: Uint8Array[] = [];
  for (let at = 0; at < packed.length; at += pieceBytes) {
    pieces.push(...decoder.push(packed.subarray(at, at + pieceBytes)));
  }
  decoder.finish();
  return Buffer.concat(pieces);
};

const le = (value: number, bytes: number): Buffer => {
  const buffer = Buffer.alloc(bytes);
  buffer.writeUIntLE(value, 0, bytes);
  return buffer;
};

const MAGIC = 0xfd2fb528;

/** A frame with a window of 2^windowLog bytes, of blocks as they are, or of one byte so many times. */
const frame = (blocks: readonly (Uint8Array | readonly [byte: number, count: number])[], windowLog = 17): Buffer =>
  Buffer.concat([
    le(MAGIC, 4),
    Buffer.from([0, (windowLog - 10) << 3]),
    ...blocks.flatMap((block, index) => {
      const isLast = Number(index === blocks.length - 1);
      return block instanceof Uint8Array
        ? [le(block.length * 8 + isLast, 3), block]
        : [le(block[1] * 8 + 2 + isLast, 3), Buffer.from([block[0]])];
    }),
  ]);

test('checksums are those of the zstd command, however the bytes come', () => {
  for (const [length, expected] of CHECKSUMS) {
    for (const pieceBytes of [1, 13, 32, 70_001]) {
      const hash = new Xxh64();
      const bytes = pattern(length);
      for (let at = 0; at < length; at += pieceBytes) {
        hash.update(bytes.subarray(at, at + pieceBytes));
      }
      assert.equal(hash.low32(), expected, `${length} bytes in pieces of ${pieceBytes}`);
    }
  }
});

test('a file of the zstd command is unpacked, in pieces of any size', () => {
  for (const pieceBytes of [TEXT_FRAME.length, 1, 2, 3, 17, 4096]) {
    assert.deepEqual(unpacked(TEXT_FRAME, pieceBytes), text(), `pieces of ${pieceBytes}`);
  }
});

test('frames follow each other, empty ones and ones to be skipped among them', () => {
  const skipped = Buffer.concat([le(0x184d2a53, 4), le(5, 4), Buffer.from('magic')]);
  const empty = frame([new Uint8Array()]);
  const packed = Buffer.concat([skipped, TEXT_FRAME, empty, frame([pattern(1000), [7, 100_000], pattern(9)]), skipped]);
  const expected = Buffer.concat([text(), pattern(1000), Buffer.alloc(100_000, 7), pattern(9)]);
  for (const pieceBytes of [packed.length, 1, 1000]) {
    assert.deepEqual(unpacked(packed, pieceBytes), expected);
  }
});

test('what follows the last frame on a device is no part of it', () => {
  assert.deepEqual(unpacked(Buffer.concat([TEXT_FRAME, Buffer.alloc(5000)]), 700, true), text());
});

const changed = (at: number, value: number): Buffer => {
  const copy = Buffer.from(TEXT_FRAME);
  copy[at < 0 ? copy.length + at : at] = value;
  return copy;
};

for (const [what, packed, message] of [
  ['nothing', Buffer.alloc(0), /end inside a frame/],
  ['a cut frame', TEXT_FRAME.subarray(0, 3000), /end inside a frame/],
  ['a frame without its checksum', TEXT_FRAME.subarray(0, -4), /end inside a frame/],
  ['a wrong checksum', changed(-1, TEXT_FRAME.at(-1)! ^ 1), /has checksum 0x/],
  ['no frame', Buffer.from('not zstd'), /begins with 0x/],
  ['something behind the last frame', Buffer.concat([TEXT_FRAME, Buffer.alloc(9)]), /begins with 0x0/],
  ['a window of 2 GiB', frame([[0, 100]], 31), /window of 2147483648 bytes/],
  ['a block of 2 MiB', frame([[0, 2 ** 21 - 1]], 25), /type 1 and 2097151 bytes/],
  ['a block of a type that is none', Buffer.concat([frame([]), le(7, 3)]), /type 3/],
  ['a dictionary', Buffer.concat([le(MAGIC, 4), Buffer.from([1, 0, 9]), le(1, 3)]), /dictionary/],
  [
    'another length than it says',
    Buffer.concat([le(MAGIC, 4), Buffer.from([0x20, 9]), le(3 * 8 + 1, 3), Buffer.from('abc')]),
    /has 3 bytes and says 9/,
  ],
] as const) {
  test(`refused: ${what}`, () => {
    assert.throws(() => unpacked(packed), { code: 'COMPRESSED_DATA', kind: 'invalid', message });
  });
}

test('no changed byte of a frame with a checksum goes unnoticed', () => {
  for (let at = 0; at < TEXT_FRAME.length; at += 29) {
    assert.throws(
      () => unpacked(changed(at, TEXT_FRAME[at]! ^ (1 << (at % 8)))),
      { code: 'COMPRESSED_DATA' },
      `byte ${at}`,
    );
  }
});

test('a bomb is unpacked a block at a time, and none is kept', () => {
  // 4 bytes become 128 KiB: 8 GiB in all.
  const decoder = new ZstdDecoder();
  const bomb = frame(Array.from({ length: 65_536 }, () => [0, 2 ** 17] as const));
  const before = process.memoryUsage().arrayBuffers;
  let blocks = 0;
  let most = 0;
  for (const _ of decoder.push(bomb)) {
    blocks += 1;
    most = Math.max(most, process.memoryUsage().arrayBuffers - before);
    if (blocks === 2000) {
      break;
    }
  }
  assert.equal(blocks, 2000);
  assert.ok(most < 128 * 2 ** 20, `${most} bytes`);
});
