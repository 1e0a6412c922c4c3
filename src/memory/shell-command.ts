// Command lines in hints. They are there to be typed as they stand, so what is put into them is quoted for the shell.

const PLAIN = /^[\w@%+=:,./-]+$/;
const CONTROL = /[\p{Cc}\p{Cs}]/u;

const escaped = (character: string): string => {
  if (character === "'" || character === '\\') {
    return `\\${character}`;
  }
  return CONTROL.test(character) ? `\\x${character.charCodeAt(0).toString(16).padStart(2, '0')}` : character;
};

/** A word as a shell reads it back; control characters as escapes, which take bash or zsh. */
export const shellWord = (text: string): string => {
  if (PLAIN.test(text)) {
    return text;
  }
  return CONTROL.test(text) ? `$'${[...text].map(escaped).join('')}'` : `'${text.replaceAll("'", "'\\''")}'`;
};

/**
 * A command line for a hint, in a template whose values become words of it, or parts of words; a list becomes several words. A test finds every use of
 * this, and types what comes of it (test/hints.test.ts).
 */
export const shellCommand = (
  parts: TemplateStringsArray,
  ...values: readonly (string | number | readonly string[])[]
): string =>
  parts
    .map((part, index) => {
      const value = values[index] ?? [];
      const words = typeof value === 'object' ? value : [String(value)];
      return part + words.map(shellWord).join(' ');
    })
    .join('');
