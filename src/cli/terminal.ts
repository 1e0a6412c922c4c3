// What the terminal at the other end of a stream can show.

import { colorMark, styledLine, styles } from './safe-text.js';

export type Colors = Readonly<Record<keyof typeof styles, (text: string) => string>>;

/** Styles for a piece of one line; they only keep it one where no colours are wanted. */
export const createColors = (enabled: boolean): Colors => {
  const style =
    (name: keyof typeof styles) =>
    (text: string): string => {
      const [begin, end] = styles[name];
      return enabled ? `${colorMark(begin)}${styledLine(text)}${colorMark(end)}` : styledLine(text);
    };
  return {
    bold: style('bold'),
    dim: style('dim'),
    red: style('red'),
    green: style('green'),
    yellow: style('yellow'),
    cyan: style('cyan'),
  };
};

/** Whether a line can be erased and written anew: a terminal that is not `dumb` knows escape codes. */
export const canRedraw = (stream: NodeJS.WriteStream): boolean => {
  const { TERM } = process.env;
  return stream.isTTY === true && TERM !== 'dumb';
};

/** Colours that do nothing where none are wanted. */
export const terminalColors = (stream: NodeJS.WriteStream): Colors => {
  const { NO_COLOR } = process.env;
  return createColors(canRedraw(stream) && !NO_COLOR);
};

const DEFAULT_COLUMNS = 80;

/** Where nobody says how wide it is, as in a pipe: what any terminal has. */
export const terminalColumns = (stream: NodeJS.WriteStream): number => stream.columns || DEFAULT_COLUMNS;

/** Whether the locale says that characters beyond ASCII come out right. */
export const hasUnicode = (): boolean => {
  const { LC_ALL, LC_CTYPE, LANG, TERM } = process.env;
  return /utf-?8/i.test(LC_ALL || LC_CTYPE || LANG || '') && TERM !== 'dumb';
};
