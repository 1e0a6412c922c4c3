// The machine's own Debian sources, for another release of Debian: mirrors, proxies' rewrites, keys and options stay
// as the administrator set them, only the suite changes. Both forms of sources.list(5) are understood.

import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';

/** Sources in both forms, ready to be written to `*.sources` and `*.list`. */
export interface AptSources {
  readonly deb822: string;
  readonly oneLine: string;
}

/** The release that a suite such as `trixie-backports` adds to. */
export const releaseOf = (suite: string): string => suite.replace(/-backports$/, '');

/**
 * `bookworm-updates` to `trixie-updates`; nothing for a suite that is not plainly of Debian's `from` release. Backports lie in
 * the archive of the release itself, so where `to` is `trixie-backports`, `bookworm` becomes `trixie` and `trixie-backports`.
 */
const mapSuite = (suite: string, from: string, to: string): string[] => {
  const [release = '', pocket] = suite.split(/-(?=updates$|security$)/);
  if (![from, 'stable', 'oldstable'].includes(release)) {
    return [];
  }
  return pocket === undefined ? [...new Set([releaseOf(to), to])] : [`${releaseOf(to)}-${pocket}`];
};

const mapSuites = (suites: string, from: string, to: string): string =>
  [...new Set(suites.split(/\s+/).flatMap((suite) => mapSuite(suite, from, to)))].join(' ');

/** Rewrites the stanzas of a deb822 file that are Debian's `main`; drops the others. */
export const mapDeb822 = (text: string, from: string, to: string): string =>
  text
    .split(/\n\s*\n/)
    .flatMap((stanza) => {
      const lines = stanza.split('\n').filter((line) => !line.startsWith('#') && line.trim() !== '');
      const fields = new Map<string, string>();
      for (const field of lines.join('\n').split(/\n(?!\s)/)) {
        const colon = field.indexOf(':');
        fields.set(field.slice(0, colon).toLowerCase(), field.slice(colon + 1).trim());
      }
      const words = (name: string): string[] => (fields.get(name) ?? '').split(/\s+/);
      const suites = mapSuites(fields.get('suites') ?? '', from, to);
      if (
        !words('types').includes('deb') ||
        !words('components').includes('main') ||
        /^no$/i.test(fields.get('enabled') ?? '') ||
        suites === ''
      ) {
        return [];
      }
      fields.set('types', 'deb').set('suites', suites).set('components', 'main');
      // A continuation line keeps the blank that makes it one (an inlined key in Signed-By).
      return [[...fields].map(([name, value]) => `${name}: ${value}\n`).join('')];
    })
    .join('\n');

/** Rewrites the lines of a one-line-style file that are Debian's `main`; drops the others. */
export const mapOneLine = (text: string, from: string, to: string): string =>
  text
    .split('\n')
    .flatMap((line) => {
      const match = /^\s*deb\s+(\[[^\]]*\]\s+)?(\S+)\s+(\S+)\s+([^#]*)/.exec(line);
      return match === null || !match[4]!.split(/\s+/).includes('main')
        ? []
        : mapSuite(match[3]!, from, to).map((suite) => `deb ${match[1] ?? ''}${match[2]} ${suite} main\n`);
    })
    .join('');

/** Reads the machine's sources and maps them from its own release to another, or to another's backports as well. */
export const mapMachineSources = (from: string, to: string, etc = '/etc/apt'): AptSources => {
  const parts = join(etc, 'sources.list.d');
  const files = [
    join(etc, 'sources.list'),
    ...(existsSync(parts) ? readdirSync(parts).map((name) => join(parts, name)) : []),
  ].filter((file) => existsSync(file));
  const texts = (suffix: string): string[] =>
    files.filter((file) => file.endsWith(suffix)).map((file) => readFileSync(file, 'utf8'));
  return {
    deb822: texts('.sources')
      .map((text) => mapDeb822(text, from, to))
      .filter((text) => text !== '')
      .join('\n'),
    oneLine: texts('.list')
      .map((text) => mapOneLine(text, from, to))
      .join(''),
  };
};
