// When a source is told that it may switch over (QEMU's capability `switchover-ack`, 8.1 to 11.0).

import { ElementType } from '../format/stream/constants.js';

/** Ends of machine types that QEMU names after its own version, as in `pc-i440fx-10.0`. */
const VERSION = /-(\d+)\.(\d+)$/;

/** Machine types whose QEMU takes SWITCHOVER_ACK whether it waits for one or not, from and to: major * 100 + minor. */
const KNOWS_FROM = 801;
const KNOWS_TO = 1100;

/** Sections without a page, one after the other, that no source sends that could switch over. */
const EMPTY_SECTIONS = 100;

/**
 * Decides when the destination agrees to the switchover.
 *
 * A source with the capability waits for SWITCHOVER_ACK, for ever if it has to, and nothing in its stream says that it does. One
 * older than 8.1 does not know the message and fails on it; so does QEMU 11.1 with a machine type of its own, which counts who has
 * to agree and waits for nobody here. A machine type in between tells that the source takes it, whichever version it is; with one
 * that tells nothing the destination agrees when the source goes through its memory again and again although nothing is dirty.
 */
export class SwitchoverAck {
  /** By the machine type; undefined if it tells nothing. */
  #isWanted: boolean | undefined;
  #isGiven = false;
  #emptySections = 0;
  #pages = 0;

  /** The source has this machine type. */
  configuration(machine: string): void {
    const match = VERSION.exec(machine);
    const version = match === null ? 0 : Number(match[1]) * 100 + Number(match[2]);
    this.#isWanted = version < KNOWS_FROM ? undefined : version <= KNOWS_TO;
  }

  /** Whether to agree at once, now that the source can be answered. */
  returnPathOpened(): boolean {
    return this.#isWanted === true && this.#give();
  }

  /** Whether to agree, now that a RAM section has ended and so many pages have come in all. */
  sectionEnded(type: number, pages: number): boolean {
    this.#emptySections = type === ElementType.SECTION_PART && pages === this.#pages ? this.#emptySections + 1 : 0;
    this.#pages = pages;
    return this.#isWanted === undefined && this.#emptySections >= EMPTY_SECTIONS && this.#give();
  }

  #give(): boolean {
    const isFirst = !this.#isGiven;
    this.#isGiven = true;
    return isFirst;
  }
}
