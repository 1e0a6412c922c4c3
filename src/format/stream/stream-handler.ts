// What a consumer of a stream implements, and what it is told (read.ts calls it).

import type { RamferryError } from '../../memory/errors.js';
import type { PageIndex } from '../../memory/units.js';
import type { MappedRamLayout } from '../mapped-ram/layout.js';
import type { StreamConfiguration } from './configuration.js';
import type { DeviceSection } from './device-sections.js';
import type { DeviceTail } from './device-tail.js';

/** A RAM block that the stream lists. The same object comes with every page. */
export interface ReadRamBlock {
  /** Position in the setup record, from 0. */
  readonly index: number;
  readonly name: string;
  /** Bytes, a positive multiple of the target page size. */
  readonly usedLength: number;
  /** Guest physical address; only with capability `x-ignore-shared`. */
  readonly address: number | undefined;
  /** Stream offset at which its length stands, for whoever cannot take it. */
  readonly lengthOffset: number;
  /** Where bitmap and pages are in the file; only of a mapped-ram file. */
  readonly mapped?: MappedRamLayout | undefined;
}

/** The RAM START section. */
export interface RamSetup {
  readonly sectionId: number;
  readonly targetPageSize: number;
  readonly totalBytes: number;
  readonly blocks: readonly ReadRamBlock[];
}

/** What is known at the end of the stream. */
/** A section that iterates as RAM does, whose content only its device understands. */
export interface IterableSection {
  /** Section id. */
  readonly section: number;
  readonly name: string;
  /** Where its first body starts, from the start of the stream. */
  readonly offset: number;
}

export interface StreamSummary {
  /** Bytes of the stream, from its header on. */
  readonly bytes: number;
  readonly tail: DeviceTail;
  /** Every device section, early ones first. */
  readonly devices: readonly DeviceSection[];
  /** The sections besides RAM that iterate, of which `tail` has the bytes; none if it is not there. */
  readonly iterable?: readonly IterableSection[];
  /** RAM had no END section, as in a background snapshot (1.10 item 7). */
  readonly backgroundSnapshot: boolean;
  /** False if the VM description that ends the stream is cut. All state is there nevertheless. */
  readonly complete: boolean;
  /** Set if the VM description is damaged: what is wrong with it. All state is there nevertheless. */
  readonly descriptionDamage?: RamferryError;
  /** Sentences. */
  readonly warnings: readonly string[];
  /** Nothing in the stream gives its page size: it is what the caller said, or 4096. */
  readonly isPageSizeAssumed?: boolean;
}

/** What the destination of a postcopy is told besides (postcopy-reader.ts). */
export interface PostcopyHandler {
  /** Takes an ADVISE without page sizes as well: the source may switch over dirty bitmaps, and its RAM comes before. */
  readonly takesEmptyAdvise?: boolean;
  /** The source switches, whatever becomes of that here. */
  switching?(): void;
  /** Before RAM: nothing of what the blocks hold counts. */
  advise(): void;
  /** `length` bytes from byte `start` of a block are stale, or were never sent. */
  discard(block: ReadRamBlock, start: number, length: number): void;
  /** The guest's devices have come, and it is to run here; `pings` are answered once they are loaded. Its other pages follow. */
  run(summary: StreamSummary, pings: readonly number[]): void;
  /** A recovery: which pages of the block have arrived? */
  askReceived(block: ReadRamBlock): void;
  /** The recovery is over, pages follow. */
  resume(): void;
}

/**
 * Consumer of a stream. `bytes` is the buffer that was pushed and valid only during the call; `offset` counts from the
 * start of the stream. What a method throws ends the reader and comes out of `push`.
 */
export interface StreamHandler {
  configuration?(configuration: StreamConfiguration): void;

  ramSetup(setup: RamSetup): void;

  /** A device section before the first page, complete; told after `ramSetup`, wherever it stood. `body` is valid only during the call. */
  earlySection?(section: DeviceSection, body: Uint8Array): void;

  /**
   * Bulk path, tried whenever a record with CONTINUE is next: takes any number of whole records from the start of
   * [start, end), all zero or normal pages with CONTINUE that lie inside `block`, and returns their bytes. The reader
   * gives the rest, record by record, to the methods below; returning 0 leaves everything to them.
   */
  records?(block: ReadRamBlock, bytes: Uint8Array, start: number, end: number, offset: number): number;

  zeroPage(block: ReadRamBlock, page: PageIndex): void;

  /** The page's content starts at `bytes[at]`, which is byte `offset` of the stream. */
  page(block: ReadRamBlock, page: PageIndex, bytes: Uint8Array, at: number, offset: number): void;

  /** `length` bytes of XBZRLE data start at `bytes[at]`; they are not checked yet (xbzrle.ts). */
  xbzrlePage(block: ReadRamBlock, page: PageIndex, bytes: Uint8Array, at: number, length: number, offset: number): void;

  /** A RAM section of this type (constants.ts `ElementType`) ended, its footer included. */
  ramSectionEnd?(type: number): void;

  /** A command whose length was checked. `payload` is valid only during the call. */
  command?(command: number, payload: Uint8Array): void;

  /** The bytes [start, end) of the buffer mean something on a connection, as those of a switch to postcopy, and have no place in a saved stream. */
  notSaved?(bytes: Uint8Array, start: number, end: number): void;

  /** Makes a switch to postcopy acceptable. */
  readonly postcopy?: PostcopyHandler;

  /** Everything arrived. */
  end(summary: StreamSummary): void;
}
