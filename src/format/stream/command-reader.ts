// Reads command elements, and refuses those that turn a precopy stream into what its consumer does not want
// (spec/qemu-wire-format.md 5.1, 5.2).

import { be16, be64, be64Exact } from '../bytes.js';
import { hex } from '../invalid.js';
import { Command } from './constants.js';
import type { Cursor } from './cursor.js';
import type { PostcopyReader } from './postcopy-reader.js';
import type { StreamHandler } from './stream-handler.js';

export class CommandReader {
  readonly #handler: StreamHandler;
  readonly #postcopy: PostcopyReader | undefined;
  #returnPathOpen = false;
  /** Bytes of the package behind the command that was read last. */
  packageBytes: number | undefined;

  constructor(handler: StreamHandler, postcopy: PostcopyReader | undefined) {
    this.#handler = handler;
    this.#postcopy = postcopy;
  }

  /** Reads one command; false while more bytes are needed. */
  read(cursor: Cursor, pageSize: number): boolean {
    if (!cursor.has(5)) {
      return false;
    }
    const command = be16(cursor.bytes, cursor.at + 1);
    const length = be16(cursor.bytes, cursor.at + 3);
    if (this.#postcopy?.reads(command) === true) {
      return this.#readPostcopy(this.#postcopy, cursor, command, length, pageSize);
    }
    const expected = payloadBytes(cursor, command);
    // The empty ADVISE announces dirty bitmaps, not postcopy, and contradicts a destination that waits for that.
    const isEmptyAdvise =
      command === Command.POSTCOPY_ADVISE && length === 0 && this.#postcopy?.takesEmptyAdvise !== false;
    if (length !== expected && !isEmptyAdvise) {
      throw cursor.invalid(
        'COMMAND_LENGTH',
        `Command ${command} has ${length} bytes instead of ${expected}`,
        3,
        length,
      );
    }
    if (!cursor.has(5 + length)) {
      return false;
    }
    if (command === Command.OPEN_RETURN_PATH) {
      this.#returnPathOpen = true;
    } else if (command === Command.PING && !this.#returnPathOpen) {
      throw cursor.invalid(
        'PING_WITHOUT_RETURN_PATH',
        'The source asks for an answer without a return path',
        0,
        command,
      );
    } else if (command === Command.POSTCOPY_ADVISE) {
      if (length > 0) {
        checkAdvise(cursor, pageSize);
      }
      this.#postcopy?.advised(cursor);
    }
    this.#handler.command?.(command, cursor.bytes.subarray(cursor.at + 5, cursor.at + 5 + length));
    cursor.at += 5 + length;
    return true;
  }

  #readPostcopy(postcopy: PostcopyReader, cursor: Cursor, command: number, length: number, pageSize: number): boolean {
    if (!cursor.has(5 + length)) {
      return false;
    }
    if (command === Command.PACKAGED && !this.#returnPathOpen) {
      const statement = 'The source switches to postcopy without a return path, over which pages are asked for';
      throw cursor.invalid('POSTCOPY_WITHOUT_RETURN_PATH', statement, 0, command);
    }
    if (command === Command.POSTCOPY_RAM_DISCARD || command === Command.PACKAGED) {
      postcopy.switching();
    }
    this.#handler.notSaved?.(cursor.bytes, cursor.at, cursor.at + 5 + length);
    this.packageBytes = postcopy.read(cursor, command, length, pageSize);
    cursor.at += 5 + length;
    return true;
  }
}

/** Payload bytes of a command that a precopy stream may hold. */
const payloadBytes = (cursor: Cursor, command: number): number => {
  switch (command) {
    case Command.OPEN_RETURN_PATH:
    case Command.SWITCHOVER_START:
      return 0;
    case Command.PING:
      return 4;
    case Command.POSTCOPY_ADVISE:
      return 16;
    case Command.POSTCOPY_LISTEN:
    case Command.POSTCOPY_RUN:
    case Command.POSTCOPY_RAM_DISCARD:
    case Command.PACKAGED:
    case Command.POSTCOPY_RESUME:
    case Command.RECV_BITMAP:
      throw cursor.invalid('POSTCOPY_STREAM', `The source switches to postcopy with command ${command}`, 1, command);
    case Command.ENABLE_COLO:
      throw cursor.invalid('COLO_STREAM', 'The stream is one of COLO, which never ends', 1, command);
    default:
      throw cursor.invalid('UNKNOWN_COMMAND', `The stream has an unknown command ${command}`, 1, command);
  }
};

/**
 * With postcopy-ram on, blocks of other page sizes than the usual have one more field in the setup record, and nothing
 * in the stream says which blocks do (2.3). The summary of ADVISE, the OR of all page sizes, tells when none does.
 */
const checkAdvise = (cursor: Cursor, pageSize: number): void => {
  const summary = be64(cursor.bytes, cursor.at + 5);
  if (summary !== pageSize || be64(cursor.bytes, cursor.at + 13) !== pageSize) {
    const value = be64Exact(cursor.bytes, cursor.at + 5);
    const statement = `The source announces postcopy with page sizes ${hex(value)}`;
    const hint = 'Turn the capability "postcopy-ram" off at the source.';
    throw cursor.invalid('POSTCOPY_PAGE_SIZES', statement, 5, value, hint);
  }
};
