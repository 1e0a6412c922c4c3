// When a source is told that it may switch over (QEMU's capability `switchover-ack`, since 8.1).

import { ElementType } from '../format/stream/constants.js';

/** Ends of machine types that QEMU names after its own version, as in `pc-i440fx-10.0`. */
const VERSION = /-(\d+)\.(\d+)$/;

/** Sections without a page, one after the other, that no source sends that could switch over. */
const EMPTY_SECTIONS = 100;

/**
 * Decides when the destination agrees to the switchover.
 *
 * A source with the capability waits for SWITCHOVER_ACK, for ever if it has to, and nothing in its stream says that it does. One
 * older than 8.1 does not know the message and would fail on it. A machine type of 8.1 or later tells that the source is no older;
 * with any other the destination agrees when the source goes through its memory again and again although nothing is dirty.
 */
export class SwitchoverAck {
  #isKnown = false;
  #isGiven = false;
  #emptySections = 0;
  #pages = 0;

  /** The source has this machine type. */
  configuration(machine: string): void {
    const [, major = 0, minor = 0] = VERSION.exec(machine)?.map(Number) ?? [];
    this.#isKnown = major > 8 || (major === 8 && minor >= 1);
  }

  /** Whether to agree at once, now that the source can be answered. */
  returnPathOpened(): boolean {
    return this.#isKnown && this.#give();
  }

  /** Whether to agree, now that a RAM section has ended and so many pages have come in all. */
  sectionEnded(type: number, pages: number): boolean {
    this.#emptySections = type === ElementType.SECTION_PART && pages === this.#pages ? this.#emptySections + 1 : 0;
    this.#pages = pages;
    return this.#emptySections >= EMPTY_SECTIONS && this.#give();
  }

  #give(): boolean {
    const isFirst = !this.#isGiven;
    this.#isGiven = true;
    return isFirst;
  }
}
