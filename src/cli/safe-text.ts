// Text on its way to a terminal. File names, device names, QEMU's words and what a peer says come from outside: a terminal
// obeys the control characters in them, which may rename its window, hide lines or type commands. So everything printed goes
// through here, at the three places that print (Progress, failures, the text of a verb), and nobody else needs to think of it.
// Colours of ours are marks until then.

/**
 * What a terminal acts on, or that shows characters in another order than they have: control characters, marks of text
 * direction, separators of lines, halves of surrogate pairs.
 */
const UNSAFE = /[\p{Cc}\p{Cs}\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]/gu;

/**
 * Colour codes stand in a text as halves of surrogate pairs, which nothing from outside can hold: in UTF-8 there are none.
 */
const MARK_BASE = 0xdc00;
const HIGHEST_CODE = 49;

/** The mark of a colour code (SGR). */
export const colorMark = (code: number): string => String.fromCharCode(MARK_BASE + code);

const codeOf = (character: string): number | undefined => {
  const code = character.charCodeAt(0) - MARK_BASE;
  return character.length === 1 && code >= 0 && code <= HIGHEST_CODE ? code : undefined;
};

const names: Readonly<Record<string, string>> = { '\n': '\\n', '\r': '\\r', '\t': '\\t' };

const visible = (character: string): string => {
  const hexadecimal = character.charCodeAt(0).toString(16);
  return names[character] ?? (hexadecimal.length > 2 ? `\\u{${hexadecimal}}` : `\\x${hexadecimal.padStart(2, '0')}`);
};

/** The text within one line, everything unsafe as an escape that can be read. Marks of colours stay. */
export const oneLine = (text: string): string =>
  text.replace(UNSAFE, (character) => (codeOf(character) === undefined ? visible(character) : character));

/** How many columns it takes. */
export const textWidth = (text: string): number => [...text].filter((each) => codeOf(each) === undefined).length;

/** A text of several lines, as it goes to a terminal. */
export const terminalText = (text: string): string =>
  text
    .replaceAll('\r\n', '\n')
    .split('\n')
    .map((line) => oneLine(line).replace(/\p{Cs}/gu, (mark) => `\x1b[${codeOf(mark)}m`))
    .join('\n');

/** The same of a message: what follows a line break in it is indented, so that it cannot pass for a message of its own. */
export const messageText = (message: string): string => terminalText(message.trimEnd()).replaceAll('\n', '\n  ');

/** A JSON document. Its strings are exact: what a terminal could act on stands as the escapes that JSON has for it. */
export const jsonText = (document: object): string =>
  `${JSON.stringify(document, null, 2).replace(UNSAFE, (character) =>
    character === '\n' ? character : `\\u${character.charCodeAt(0).toString(16).padStart(4, '0')}`,
  )}\n`;
