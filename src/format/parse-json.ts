/** An escape of JSON: of a whole surrogate pair, of half of one, or any other. */
const ESCAPE = /\\(?:u[dD][89abAB][\da-fA-F]{2}\\u[dD][c-fC-F][\da-fA-F]{2}|u[dD][89a-fA-F][\da-fA-F]{2}|.)/g;

const HALF_LENGTH = '\\ud800'.length;

/**
 * `JSON.parse` of a text from outside. Halves of surrogate pairs, which UTF-8 cannot hold but JSON can write as escapes, become
 * U+FFFD in values and names: whoever shows or stores such a string may rely on it being text.
 * @throws SyntaxError
 */
export const parseJson = (text: string): unknown =>
  JSON.parse(text.replace(ESCAPE, (written) => (written.length === HALF_LENGTH ? '\\ufffd' : written)));
