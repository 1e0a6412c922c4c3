// The commands of postcopy and of its recovery, as bytes (spec/qemu-wire-format.md 5.1, 5.2, 5.8).
//
//   ADVISE      before RAM START: "every block will be discarded; these are my page sizes"
//   RAM_DISCARD before the package: "what you have of these ranges is stale"; at least one is mandatory, see there
//   PACKAGED    LISTEN, device state, PING, RUN as one blob, so that pages can flow while devices load
//   RECV_BITMAP, POSTCOPY_RESUME   after a reconnect

import { ByteWriter } from '../byte-writer.js';
import { Command } from './constants.js';
import { command, ping, type StreamRamBlock } from './write.js';

/**
 * Values of the PINGs, as QEMU numbers them; PONG DEVICES_LOADED says that all of the package has been digested. GATE is ours: all
 * devices are loaded but the last, which waits for memory.
 */
export const PostcopyPing = { RETURN_PATH: 1, DISCARDED: 2, DEVICES_LOADED: 3, RUNNING: 4, GATE: 5 } as const;

/** `summary` is the OR of the host page sizes of all blocks; the destination compares it with its own. */
export const postcopyAdvise = (blocks: readonly StreamRamBlock[], targetPageSize: number): Uint8Array => {
  // Sizes are powers of two up to 2^40, too large for `|`: the sum over distinct ones is the same.
  const sizes = new Set(blocks.map(({ hostPageSize = targetPageSize }) => hostPageSize));
  const summary = [...sizes].reduce((sum, size) => sum + size, 0);
  return command(Command.POSTCOPY_ADVISE, new ByteWriter(16).be64(summary).be64(targetPageSize).copy());
};

/** As many as QEMU puts into one command (PC-20). */
const RANGES_PER_DISCARD = 12;

/** Collects ranges of one block into RAM_DISCARD commands. */
export class DiscardWriter {
  readonly #blockName: string;
  readonly #commands = new ByteWriter();
  readonly #ranges = new ByteWriter(RANGES_PER_DISCARD * 16);

  constructor(blockName: string) {
    this.#blockName = blockName;
  }

  /** Bytes from the start of the block; ranges must be host pages. */
  add(start: number, length: number): void {
    this.#ranges.be64(start).be64(length);
    if (this.#ranges.length === RANGES_PER_DISCARD * 16) {
      this.#command();
    }
  }

  /** All commands; empty if there were no ranges. */
  finish(): Uint8Array {
    if (this.#ranges.length > 0) {
      this.#command();
    }
    return this.#commands.view;
  }

  #command(): void {
    const version = 0;
    const terminator = 0;
    const payload = new ByteWriter().u8(version).str8(this.#blockName).u8(terminator).bytes(this.#ranges.view);
    this.#commands.bytes(command(Command.POSTCOPY_RAM_DISCARD, payload.view));
    this.#ranges.truncate(0);
  }
}

/**
 * Nothing but FULL sections may be in `sections`: an EOF there would end the destination's loop before RUN. `gate` is a section
 * that comes behind them and is told apart.
 */
export const postcopyPackage = (sections: Uint8Array, gate?: Uint8Array): Uint8Array => {
  const content = new ByteWriter(sections.length + (gate?.length ?? 0) + 64)
    .bytes(command(Command.POSTCOPY_LISTEN))
    .bytes(sections);
  if (gate !== undefined) {
    content.bytes(ping(PostcopyPing.GATE)).bytes(gate);
  }
  content.bytes(ping(PostcopyPing.DEVICES_LOADED)).bytes(command(Command.POSTCOPY_RUN));
  const length = new ByteWriter(4).be32(content.length).copy();
  return new ByteWriter(content.length + 16).bytes(command(Command.PACKAGED, length)).bytes(content.view).copy();
};

/** Asks which pages of a block have arrived. */
export const askReceivedBitmap = (blockName: string): Uint8Array =>
  command(Command.RECV_BITMAP, new ByteWriter().str8(blockName).view);

export const postcopyResume = (): Uint8Array => command(Command.POSTCOPY_RESUME);
