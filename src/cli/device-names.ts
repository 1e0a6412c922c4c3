// Which device sections somebody means: by name, with an instance, by wildcards, by the end of a name.

import type { DeviceSection } from '../format/stream/device-sections.js';
import { RamferryError } from '../memory/errors.js';

/** Names that are suggested instead of one that is not there. */
const SUGGESTIONS = 5;

/** Only as many names are compared letter by letter, and of each only as many letters. */
const MOST_COMPARED = 2000;
const COMPARED_LETTERS = 64;

/**
 * The sections that `wanted` names: one name with all of its instances, unless wildcards take more.
 * @throws RamferryError `usage` if it names none, or the end of several names
 */
export const findSections = (sections: readonly DeviceSection[], wanted: string): DeviceSection[] => {
  // A name may end with a number of its own: it comes before what would be an instance of a shorter one.
  const readings: [name: string, instance?: number][] = [[wanted]];
  const [, name, instance] = /^(.+)\/(\d{1,10})$/.exec(wanted) ?? [];
  if (name !== undefined) {
    readings.push([name, Number(instance)]);
  }
  for (const matches of [exactly, byWildcards, byEnd]) {
    for (const [text, only] of readings) {
      const found = sections.filter(
        (section) => (only === undefined || section.instance === only) && matches(section.name, text),
      );
      const names = [...new Set(found.map((section) => section.name))];
      if (names.length > 1 && matches === byEnd) {
        throw new RamferryError(
          'usage',
          'DEVICE_AMBIGUOUS',
          `"${wanted}" is the end of ${names.length} device names.`,
          {
            value: wanted,
            hint: `it may be ${someOf(names)}; with a * in front of it, it is all of them`,
          },
        );
      }
      if (found.length > 0) {
        return found;
      }
    }
  }
  throw new RamferryError('usage', 'NO_SUCH_DEVICE', `The file has no device "${wanted}".`, {
    value: wanted,
    hint: `near it: ${someOf(nearNames(sections, name ?? wanted))}`,
  });
};

const exactly = (name: string, wanted: string): boolean => name === wanted;

const byEnd = (name: string, wanted: string): boolean => name.endsWith(wanted);

/** `*` stands for any letters, `?` for one. Goes back at most to the last star, so that no pattern takes long. */
const byWildcards = (name: string, pattern: string): boolean => {
  let at = 0;
  let inPattern = 0;
  let star = -1;
  let starAt = 0;
  while (at < name.length) {
    if (pattern[inPattern] === '*') {
      star = inPattern;
      starAt = at;
      inPattern += 1;
    } else if (pattern[inPattern] === '?' || pattern[inPattern] === name[at]) {
      at += 1;
      inPattern += 1;
    } else if (star >= 0) {
      starAt += 1;
      at = starAt;
      inPattern = star + 1;
    } else {
      return false;
    }
  }
  while (pattern[inPattern] === '*') {
    inPattern += 1;
  }
  return inPattern === pattern.length;
};

const someOf = (names: readonly string[]): string =>
  [...names.slice(0, SUGGESTIONS), ...(names.length > SUGGESTIONS ? ['…'] : [])].join(', ');

/** Names most like what was typed: those that hold it, then those with the fewest letters to change. */
const nearNames = (sections: readonly DeviceSection[], wanted: string): string[] => {
  const text = wanted.toLowerCase().replace(/[*?]/g, '');
  const distance = (name: string): number => {
    const lower = name.toLowerCase();
    const lastPart = lower.slice(lower.lastIndexOf('/') + 1);
    return lower.includes(text) ? -1 : Math.min(...[lower, lastPart].map((part) => lettersToChange(part, text)));
  };
  return [...new Set(sections.map(({ name }) => name))]
    .slice(0, MOST_COMPARED)
    .map((name) => ({ name, distance: distance(name) }))
    .sort((a, b) => a.distance - b.distance)
    .slice(0, SUGGESTIONS)
    .map(({ name }) => name);
};

/** Letters to add, leave out or replace, counted row by row of the usual table. */
const lettersToChange = (from: string, to: string): number => {
  const target = to.slice(0, COMPARED_LETTERS);
  let row = Array.from({ length: target.length + 1 }, (_, index) => index);
  for (const letter of from.slice(0, COMPARED_LETTERS)) {
    const next = [row[0]! + 1];
    for (let index = 1; index <= target.length; index += 1) {
      const replaced = row[index - 1]! + (letter === target[index - 1] ? 0 : 1);
      next.push(Math.min(row[index]! + 1, next[index - 1]! + 1, replaced));
    }
    row = next;
  }
  return row[target.length]!;
};
