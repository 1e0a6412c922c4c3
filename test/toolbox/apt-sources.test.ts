import assert from 'node:assert/strict';
import { test } from 'node:test';
import { mapDeb822, mapOneLine } from './apt-sources.js';

test('deb822 sources keep mirror, key and options, and change the suite', () => {
  const text = `# The archive
Types: deb deb-src
URIs: http://mirror.example/debian
# a comment inside
Suites: bookworm bookworm-updates bookworm-backports
Components: main contrib
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 AAAA

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Enabled: no
Types: deb
URIs: http://mirror.example/off
Suites: bookworm
Components: main

Types: deb
URIs: https://other.example/node
Suites: nodistro
Components: main

Types: deb-src
URIs: http://mirror.example/debian
Suites: bookworm
Components: main
`;
  assert.equal(
    mapDeb822(text, 'bookworm', 'trixie'),
    `types: deb
uris: http://mirror.example/debian
suites: trixie trixie-updates
components: main
signed-by: -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 AAAA

types: deb
uris: http://mirror.example/debian-security
suites: trixie-security
components: main
signed-by: /usr/share/keyrings/debian-archive-keyring.gpg
`,
  );
});

test('one-line sources do the same', () => {
  const text = `# deb http://mirror.example/debian bookworm main
deb [arch=amd64 signed-by=/k.gpg] http://mirror.example/debian bookworm main contrib # archive
deb-src http://mirror.example/debian bookworm main
deb http://mirror.example/debian stable-updates main
deb http://other.example/docker bookworm stable
deb http://other.example/pgdg bookworm-pgdg main
`;
  assert.equal(
    mapOneLine(text, 'bookworm', 'trixie'),
    `deb [arch=amd64 signed-by=/k.gpg] http://mirror.example/debian trixie main
deb http://mirror.example/debian trixie-updates main
`,
  );
});

test('backports come from the archive of the release itself, whether the machine has them or not', () => {
  const stanza = (suites: string): string => `types: deb
uris: http://mirror.example/debian
suites: ${suites}
components: main
`;
  assert.equal(
    mapDeb822(stanza('bookworm bookworm-updates'), 'bookworm', 'trixie-backports'),
    stanza('trixie trixie-backports trixie-updates'),
  );
  assert.equal(
    mapDeb822(stanza('trixie trixie-backports'), 'trixie', 'trixie-backports'),
    stanza('trixie trixie-backports'),
  );
  assert.equal(
    mapOneLine(
      `deb http://mirror.example/debian bookworm main
deb http://mirror.example/debian-security bookworm-security main
`,
      'bookworm',
      'trixie-backports',
    ),
    `deb http://mirror.example/debian trixie main
deb http://mirror.example/debian trixie-backports main
deb http://mirror.example/debian-security trixie-security main
`,
  );
});
