// How far an incoming migration is, for whoever shows its progress.

import type { StreamConfiguration } from '../format/stream/configuration.js';
import type { DeviceTail } from '../format/stream/device-tail.js';
import type { RamSetup, ReadRamBlock } from '../format/stream/stream-handler.js';
import type { PageIndex } from '../memory/units.js';
import type { MigrationTarget, PageCounts, ReceiveArea } from './target.js';

/**
 * Knows how far the source is in its pass over memory. The stream does not say; but a source goes through its blocks in
 * the order in which it listed them, and so where the pages go backwards a new pass begins.
 */
export class PassTarget implements MigrationTarget {
  machine = '';
  passes = 0;
  readonly refusesIterable: boolean;
  readonly #target: MigrationTarget;
  /** Of each block, in the memory of all of them. */
  #offsets: number[] = [];
  #targetPageSize = 0;
  #position = 0;

  constructor(target: MigrationTarget, { refusesIterable = false }: Pick<MigrationTarget, 'refusesIterable'> = {}) {
    this.#target = target;
    this.refusesIterable = refusesIterable;
  }

  /** Bytes of guest memory that the pass has left behind. */
  get position(): number {
    return this.#position;
  }

  get pages(): Readonly<PageCounts> {
    return this.#target.pages;
  }

  get warnings(): readonly string[] {
    return this.#target.warnings;
  }

  get ready(): boolean {
    return this.#target.ready;
  }

  whenReady(): Promise<void> {
    return this.#target.whenReady();
  }

  area(): ReceiveArea {
    return this.#target.area();
  }

  consumed(end: number): void {
    this.#target.consumed(end);
  }

  finish(): Promise<void> {
    return this.#target.finish();
  }

  configuration(configuration: StreamConfiguration): void {
    this.machine = configuration.machine;
    this.#target.configuration?.(configuration);
  }

  ramSetup(setup: RamSetup): void {
    this.#target.ramSetup(setup);
    let offset = 0;
    this.#offsets = setup.blocks.map(({ usedLength }) => (offset += usedLength) - usedLength);
    this.#position = offset;
    this.#targetPageSize = setup.targetPageSize;
  }

  zeroPage(block: ReadRamBlock, page: PageIndex): void {
    this.#target.zeroPage(block, page);
    this.#reached(block, page);
  }

  page(block: ReadRamBlock, page: PageIndex, bytes: Uint8Array, at: number, offset: number): void {
    this.#target.page(block, page, bytes, at, offset);
    this.#reached(block, page);
  }

  xbzrlePage(
    block: ReadRamBlock,
    page: PageIndex,
    bytes: Uint8Array,
    at: number,
    length: number,
    offset: number,
  ): void {
    this.#target.xbzrlePage(block, page, bytes, at, length, offset);
  }

  command(command: number, payload: Uint8Array): void {
    this.#target.command?.(command, payload);
  }

  notSaved(bytes: Uint8Array, start: number, end: number): void {
    this.#target.notSaved?.(bytes, start, end);
  }

  lateDevices(tail: DeviceTail): void {
    this.#target.lateDevices?.(tail);
  }

  #reached({ index }: ReadRamBlock, page: number): void {
    const position = this.#offsets[index]! + page * this.#targetPageSize;
    this.passes += position < this.#position ? 1 : 0;
    this.#position = position;
  }
}
