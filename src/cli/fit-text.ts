// Help texts on a terminal of any width. They are written as paragraphs, lists of terms and command lines; what is wider than
// the terminal is broken here, so that nobody who writes one needs to count columns.

/** A piece of a help text that is filled by itself. */
interface Item {
  /** What stands in front of the first line: an indent, or a term with the space behind it. */
  readonly head: string;
  /** Columns that the other lines are indented by. */
  readonly hang: number;
  readonly isCommand: boolean;
  text: string;
}

const parseItem = (line: string): Item => {
  const indent = /^ */.exec(line)![0];
  const rest = line.slice(indent.length);
  const term = /^(\S+(?: \S+)* {2,})(\S.*)$/.exec(rest);
  if (rest.startsWith('$ ')) {
    return { head: `${indent}$ `, hang: indent.length + 4, isCommand: true, text: rest.slice(2) };
  }
  if (term !== null) {
    const head = indent + term[1]!;
    return { head, hang: head.length, isCommand: false, text: term[2]! };
  }
  return { head: indent, hang: indent.length, isCommand: false, text: rest };
};

const parseItems = (block: string): Item[] => {
  const items: Item[] = [];
  for (const item of block.split('\n').map(parseItem)) {
    const last = items.at(-1);
    const isOpen = last !== undefined && !last.isCommand && !/[.:]$/.test(last.text);
    if (isOpen && !item.isCommand && item.head === ' '.repeat(last.hang)) {
      last.text += ` ${item.text}`;
    } else {
      items.push(item);
    }
  }
  return items;
};

/** The words of a command line; what is quoted stays together. */
const shellWords = (text: string): string[] => text.match(/(?:'[^']*'|"[^"]*"|\\.|\S)+/g) ?? [];

const fillItem = ({ head, hang, isCommand, text }: Item, columns: number): string => {
  const ending = isCommand ? ' \\' : '';
  const indent = ' '.repeat(hang <= columns / 2 ? hang : Math.min(hang, /^ */.exec(head)![0].length + 4));
  const lines: string[] = [];
  let line = head;
  let isEmpty = true;
  const words = isCommand ? shellWords(text) : text.split(/ +/);
  for (const [index, word] of words.entries()) {
    const behind = index === words.length - 1 ? 0 : ending.length;
    if (!isEmpty && line.length + 1 + word.length + behind > columns) {
      lines.push(line + ending);
      line = indent;
      isEmpty = true;
    }
    line += isEmpty ? word : ` ${word}`;
    isEmpty = false;
  }
  return [...lines, line].join('\n');
};

/**
 * The text with no line longer than `columns`, as far as words allow. Paragraphs and lists that fit are left as they
 * are; the others are filled anew. A command line (`$ …`) goes on behind a backslash, so that it can still be pasted.
 */
export const fitText = (text: string, columns: number): string => {
  const body = text.replace(/\n+$/, '');
  return fitBlocks(body, columns) + text.slice(body.length);
};

const fitBlocks = (text: string, columns: number): string =>
  text
    .split('\n\n')
    .map((block) =>
      block.split('\n').every((line) => line.length <= columns)
        ? block
        : parseItems(block)
            .map((item) => fillItem(item, columns))
            .join('\n'),
    )
    .join('\n\n');
