// Text on its way to a terminal. File names, device names, QEMU's words and what a peer says come from outside: a terminal
// obeys the control characters in them, which may rename its window, hide lines or type commands. So everything printed goes
// through here, at the three places that print (Progress, failures, the text of a verb), and nobody else needs to think of it.
// Colours of ours are marks until then.

/**
 * What a terminal acts on, or that shows characters in another order than they have: control characters, marks of text
 * direction, separators of lines, halves of surrogate pairs.
 */
const UNSAFE = /[\p{Cc}\p{Cs}\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]/gu;

/** The codes (SGR) that begin and end each style. */
export const styles = {
  bold: [1, 22],
  dim: [2, 22],
  red: [31, 39],
  green: [32, 39],
  yellow: [33, 39],
  cyan: [36, 39],
} as const;

const CODES: ReadonlySet<number> = new Set(Object.values(styles).flat());

/**
 * Colour codes stand in a text as halves of surrogate pairs. From outside these come only in a text that was cut in the middle of
 * a pair, or as escapes in JSON, which `parseJson` replaces. So what is all from outside has none (`oneLine`, `messageText`);
 * what is put together from such and from ours may have the codes of our styles, of which none hides anything.
 */
const MARK_BASE = 0xdc00;

/** The mark of a colour code (SGR). */
export const colorMark = (code: number): string => String.fromCharCode(MARK_BASE + code);

const codeOf = (character: string): number | undefined => {
  const code = character.charCodeAt(0) - MARK_BASE;
  return character.length === 1 && CODES.has(code) ? code : undefined;
};

const names: Readonly<Record<string, string>> = { '\n': '\\n', '\r': '\\r', '\t': '\\t' };

const visible = (character: string): string => {
  const hexadecimal = character.charCodeAt(0).toString(16);
  return names[character] ?? (hexadecimal.length > 2 ? `\\u{${hexadecimal}}` : `\\x${hexadecimal.padStart(2, '0')}`);
};

/** A text from outside within one line, everything unsafe as an escape that can be read. */
export const oneLine = (text: string): string => text.replace(UNSAFE, visible);

/** The same of a text of which parts have a style already: marks of colours stay. */
export const styledLine = (text: string): string =>
  text.replace(UNSAFE, (character) => (codeOf(character) === undefined ? visible(character) : character));

/** How many columns it takes. */
export const textWidth = (text: string): number => [...text].filter((each) => codeOf(each) === undefined).length;

const linesOf = (text: string): string[] => text.replaceAll('\r\n', '\n').split('\n');

/** Long texts mostly have nothing else in them. */
const isPlain = (text: string): boolean => /^[\n\x20-\x7e]*$/.test(text);

/** A text of several lines, as it goes to a terminal. */
export const terminalText = (text: string): string => (isPlain(text) ? text : shownLines(text));

const shownLines = (text: string): string =>
  linesOf(text)
    .map((line) => styledLine(line).replace(/\p{Cs}/gu, (mark) => `\x1b[${codeOf(mark)}m`))
    .join('\n');

/** A message as it goes to a terminal: what follows a line break is indented, so that it cannot pass for a message of its own. */
export const messageText = (message: string): string => linesOf(message.trimEnd()).map(oneLine).join('\n  ');

/** JSON whose strings are exact: what a terminal could act on stands as the escapes that JSON has for it. */
const safeJson = (json: string): string =>
  json.replace(UNSAFE, (character) =>
    character === '\n' ? character : `\\u${character.charCodeAt(0).toString(16).padStart(4, '0')}`,
  );

/** A JSON document. */
export const jsonText = (document: object): string => `${safeJson(JSON.stringify(document, null, 2))}\n`;

/** A part of a JSON document, on one line. */
export const jsonLine = (value: unknown): string => safeJson(JSON.stringify(value));
