// The commands of a switch to postcopy and of its recovery, as a destination reads them, and the package with the devices
// (spec/qemu-wire-format.md 5.1 to 5.3, 5.8).
//
//   off ── ADVISE ──▶ advised ── RAM START, pages, RAM_DISCARD … PACKAGED ──▶ running ── pages, EOF
//                                                                              │  ▲
//                                        a new connection: StreamReader.resume ▼  │ POSTCOPY_RESUME
//                                                                          recovering ── RECV_BITMAP, for each block once
//
//   package := LISTEN { FULL section }* { PING }* RUN

import { be16, be32, be64, latin1 } from '../bytes.js';
import { invalid } from '../invalid.js';
import { Command, ElementType } from './constants.js';
import type { Cursor } from './cursor.js';
import { type SectionWalk, walkSections } from './device-sections.js';
import type { PostcopyHandler, RamSetup, ReadRamBlock } from './stream-handler.js';

const COMMAND_HEAD_BYTES = 5;
const PING_BYTES = COMMAND_HEAD_BYTES + 4;
const RANGE_BYTES = 16;

const COMMANDS = new Set<number>([
  Command.POSTCOPY_RAM_DISCARD,
  Command.PACKAGED,
  Command.RECV_BITMAP,
  Command.POSTCOPY_RESUME,
]);

/** What a package holds. */
export interface PostcopyPackage extends Pick<SectionWalk, 'devices'> {
  /** The FULL sections as they came. */
  readonly sections: Uint8Array;
  /** To be answered once the devices are loaded. */
  readonly pings: readonly number[];
}

export class PostcopyReader {
  readonly #handler: PostcopyHandler;
  readonly #packageLimit: number;
  #state: 'off' | 'advised' | 'running' | 'recovering' = 'off';
  #blocks: ReadonlyMap<string, ReadRamBlock> = new Map();
  /** Pages were discarded that come again only behind the switch. */
  hasDiscarded = false;
  /** Blocks whose bitmap this recovery has not asked for. */
  #unasked = new Set<ReadRamBlock>();

  /** @param packageLimit most bytes of a package */
  constructor(handler: PostcopyHandler, packageLimit: number) {
    this.#handler = handler;
    this.#packageLimit = packageLimit;
  }

  get takesEmptyAdvise(): boolean {
    return this.#handler.takesEmptyAdvise === true;
  }

  switching(): void {
    this.#handler.switching?.();
  }

  reads(command: number): boolean {
    return COMMANDS.has(command);
  }

  advised(cursor: Cursor): void {
    if (this.#state !== 'off' || this.#blocks.size > 0) {
      throw cursor.invalid('POSTCOPY_ORDER', 'Postcopy is announced a second time, or too late', 1);
    }
    this.#state = 'advised';
    this.#handler.advise();
  }

  ramSetup({ blocks }: RamSetup): void {
    this.#blocks = new Map(blocks.map((block) => [block.name, block]));
  }

  /** The commands that follow come over a new connection. */
  recover(): void {
    this.#state = 'recovering';
    this.#unasked = new Set(this.#blocks.values());
  }

  /**
   * Takes the command at the cursor, whose payload of `length` bytes is there.
   * @returns the bytes of the package that follows it; undefined without one
   */
  read(cursor: Cursor, command: number, length: number, pageSize: number): number | undefined {
    const isRecovery = command === Command.RECV_BITMAP || command === Command.POSTCOPY_RESUME;
    if (this.#blocks.size === 0 || this.#state !== (isRecovery ? 'recovering' : 'advised')) {
      throw cursor.invalid('POSTCOPY_ORDER', `Command ${command} comes at a time when it means nothing`, 1, command);
    }
    switch (command) {
      case Command.POSTCOPY_RAM_DISCARD:
        this.#discard(cursor, length, pageSize);
        return undefined;
      case Command.RECV_BITMAP:
        this.#ask(cursor, length);
        return undefined;
      case Command.POSTCOPY_RESUME:
        checkLength(cursor, command, length === 0, length);
        this.#state = 'running';
        this.#handler.resume();
        return undefined;
      default:
        return this.#packageBytes(cursor, length);
    }
  }

  #packageBytes(cursor: Cursor, length: number): number {
    checkLength(cursor, Command.PACKAGED, length === 4, length);
    const bytes = be32(cursor.bytes, cursor.at + COMMAND_HEAD_BYTES);
    if (bytes > this.#packageLimit) {
      const statement = `The package with the devices has ${bytes} bytes, ${this.#packageLimit} are allowed`;
      throw cursor.invalid('DEVICE_STATE_TOO_LARGE', statement, COMMAND_HEAD_BYTES, bytes);
    }
    return bytes;
  }

  /** version, str8 name, zero, then pairs of be64 start and length. */
  #discard(cursor: Cursor, length: number, pageSize: number): void {
    const nameBytes = length < 2 ? 0 : cursor.peek(COMMAND_HEAD_BYTES + 1);
    const head = 3 + nameBytes;
    const isWhole = length >= head + RANGE_BYTES && (length - head) % RANGE_BYTES === 0;
    checkLength(cursor, Command.POSTCOPY_RAM_DISCARD, isWhole, length);
    if (cursor.peek(COMMAND_HEAD_BYTES) !== 0) {
      const version = cursor.peek(COMMAND_HEAD_BYTES);
      throw cursor.invalid('DISCARD_VERSION', `A discard has version ${version}`, COMMAND_HEAD_BYTES, version);
    }
    const block = this.#named(cursor, COMMAND_HEAD_BYTES + 1);
    for (let ahead = COMMAND_HEAD_BYTES + head; ahead < COMMAND_HEAD_BYTES + length; ahead += RANGE_BYTES) {
      const start = be64(cursor.bytes, cursor.at + ahead);
      const bytes = be64(cursor.bytes, cursor.at + ahead + 8);
      // Not `>`: numbers that no number holds are NaN.
      if (!(start % pageSize === 0 && bytes % pageSize === 0 && start + bytes <= block.usedLength)) {
        const statement = `A discard of ${bytes} bytes at ${start} is not of pages of RAM block "${block.name}"`;
        throw cursor.invalid('DISCARD_RANGE', statement, ahead, start);
      }
      this.hasDiscarded = true;
      this.#handler.discard(block, start, bytes);
    }
  }

  #ask(cursor: Cursor, length: number): void {
    const isWhole = length > 1 && length === 1 + cursor.peek(COMMAND_HEAD_BYTES);
    checkLength(cursor, Command.RECV_BITMAP, isWhole, length);
    const block = this.#named(cursor, COMMAND_HEAD_BYTES);
    if (!this.#unasked.delete(block)) {
      // An answer is as long as the bitmap, and there is one for each question.
      const statement = `The source asks twice what of RAM block "${block.name}" has arrived`;
      throw cursor.invalid('POSTCOPY_ORDER', statement, 1, block.name);
    }
    this.#handler.askReceived(block);
  }

  #named(cursor: Cursor, ahead: number): ReadRamBlock {
    const name = latin1(cursor.bytes, cursor.at + ahead + 1, cursor.at + ahead + 1 + cursor.peek(ahead));
    const block = this.#blocks.get(name);
    if (block === undefined) {
      throw cursor.invalid(
        'UNKNOWN_RAM_BLOCK',
        `A command is about RAM block "${name}", which is not listed`,
        ahead,
        name,
      );
    }
    return block;
  }

  /** Takes a package apart. `offset`: of its first byte in the stream. */
  readPackage(bytes: Uint8Array, offset: number): PostcopyPackage {
    let end = bytes.length - COMMAND_HEAD_BYTES;
    if (!isCommand(bytes, 0, Command.POSTCOPY_LISTEN, 0) || !isCommand(bytes, end, Command.POSTCOPY_RUN, 0)) {
      throw invalid('POSTCOPY_PACKAGE', 'The package does not begin with LISTEN and end with RUN', offset);
    }
    const pings: number[] = [];
    // Nothing that a section ends with looks like a PING: its footer has another byte in that place.
    while (isCommand(bytes, end - PING_BYTES, Command.PING, 4)) {
      end -= PING_BYTES;
      pings.unshift(be32(bytes, end + COMMAND_HEAD_BYTES));
    }
    const length = Math.max(0, end - COMMAND_HEAD_BYTES);
    const sections = new Uint8Array(length + 1);
    sections.set(bytes.subarray(COMMAND_HEAD_BYTES, COMMAND_HEAD_BYTES + length));
    sections[length] = ElementType.EOF;
    const { devices } = walkSections(sections, offset + COMMAND_HEAD_BYTES, { knownEnd: length });
    this.#state = 'running';
    return { sections: sections.subarray(0, length), devices, pings };
  }
}

const isCommand = (bytes: Uint8Array, at: number, command: number, length: number): boolean =>
  at >= 0 &&
  at + COMMAND_HEAD_BYTES <= bytes.length &&
  bytes[at] === ElementType.COMMAND &&
  be16(bytes, at + 1) === command &&
  be16(bytes, at + 3) === length;

const checkLength = (cursor: Cursor, command: number, isRight: boolean, length: number): void => {
  if (!isRight) {
    throw cursor.invalid('COMMAND_LENGTH', `Command ${command} cannot have ${length} bytes`, 3, length);
  }
};
