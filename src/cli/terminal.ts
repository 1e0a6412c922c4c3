// What the terminal at the other end of a stream can show.

import picocolors from 'picocolors';

export type Colors = ReturnType<typeof picocolors.createColors>;

/** Colours that do nothing where none are wanted. */
export const terminalColors = (stream: NodeJS.WriteStream): Colors => {
  const { NO_COLOR, TERM } = process.env;
  return picocolors.createColors(stream.isTTY === true && !NO_COLOR && TERM !== 'dumb');
};

const DEFAULT_COLUMNS = 80;

/** Where nobody says how wide it is, as in a pipe: what any terminal has. */
export const terminalColumns = (stream: NodeJS.WriteStream): number => stream.columns || DEFAULT_COLUMNS;

/** Whether the locale says that characters beyond ASCII come out right. */
export const hasUnicode = (): boolean => {
  const { LC_ALL, LC_CTYPE, LANG, TERM } = process.env;
  return /utf-?8/i.test(LC_ALL || LC_CTYPE || LANG || '') && TERM !== 'dumb';
};
