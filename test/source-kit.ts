// A guest, a sink and a channel for tests of the source engine: the guest's stores are made by the test itself, through
// the real store barrier; the sink keeps what the destination would hold.

import type { ByteChannel, ChannelReader, WriteDone, WriteVector } from '../src/channel/channel.js';
import type { DirtyLog } from '../src/dirty-log/dirty-log.js';
import { allocateStoreBarrier } from '../src/dirty-log/store-barrier.js';
import { StoreBarrierLog } from '../src/dirty-log/store-barrier-log.js';
import { attachStoreBarrier } from '../src/dirty-log/store-barrier-writer.js';
import { BitmapMemory } from '../src/memory/bitmap-memory.js';
import type { Extent, RamBlock } from '../src/memory/ram-block.js';
import { RamBlockList } from '../src/memory/ram-block-list.js';
import type { HintedRange, HintSource, HintStatus, SourceGuest } from '../src/source/guest.js';
import type { PageBatch, PageSink } from '../src/source/page-sink.js';

export const PAGE = 4096;

/** A guest whose one thread is the test. */
export class ScriptedGuest implements SourceGuest {
  readonly machine = 'test';
  readonly uuid = undefined;
  readonly ramSectionId = 1;
  readonly blocks: RamBlockList;
  readonly log: DirtyLog;
  hints?: HintSource;
  running = true;
  stops = 0;
  resumes = 0;
  /** Called when the engine orders the guest to stop, before it has. */
  beforeStop: () => void = () => {};
  /** Whether it has left, and where to: to a destination that runs it, or into a file. */
  left: 'moved' | 'saved' | undefined;
  readonly #writer;
  /** Whether it ran when the engine stopped it. */
  #ran = false;

  /** `pages`: the size of each block. */
  constructor(pages: readonly number[], segmentBytes = 2 ** 22, hostPageSize = PAGE) {
    this.blocks = RamBlockList.create({ bitmaps: BitmapMemory.create(2 ** 24), segmentBytes });
    pages.forEach((count, index) => {
      this.blocks.add({ name: `block${index}`, usedLength: count * PAGE, hostPageSize });
    });
    const shared = allocateStoreBarrier('unconditional', 1);
    this.#writer = attachStoreBarrier(shared, 0, this.blocks.bitmaps);
    this.log = new StoreBarrierLog(shared, this.blocks);
  }

  /** A store of one byte at the start of a page, and its mark. */
  store(block: RamBlock, page: number, value: number): void {
    this.#writer.unpark();
    const extent = block.extentOf(page);
    extent.segment.bytes[extent.address + (page - extent.firstPage) * PAGE] = value;
    this.#writer.mark(block, page);
    this.#writer.park();
  }

  /** Marks what others have stored to the guest's memory. */
  mark(block: RamBlock, firstPage: number, pageCount: number): void {
    this.#writer.unpark();
    this.#writer.markRange(block, firstPage, pageCount);
    this.#writer.park();
  }

  load(block: RamBlock, page: number): number {
    return block.read(page * PAGE, 1)[0]!;
  }

  /** What the engine orders, if a test wants to know. */
  throttle?: (percentage: number) => void;

  isRunning(): boolean {
    return this.running;
  }

  async stop(): Promise<void> {
    this.beforeStop();
    this.stops += 1;
    this.#ran = this.running;
    this.running = false;
  }

  async resume(): Promise<void> {
    this.resumes += 1;
    this.running = this.#ran;
  }

  /** Its owner pauses it, whatever the engine does. */
  pause(): void {
    this.#ran = false;
    this.running = false;
  }

  leave(hasMoved: boolean): void {
    this.left = hasMoved ? 'moved' : 'saved';
  }

  saveDevices(): { early: Uint8Array; sections: Uint8Array; description: string } {
    return { early: new Uint8Array(), sections: new Uint8Array(), description: '' };
  }
}

/** A balloon device and its guest's driver in one: the test says what is hinted, and when. */
export class ScriptedHints implements HintSource {
  acknowledged = false;
  status: HintStatus = 'stop';
  stale = 0;
  outside = 0;
  isBroken = false;
  /** The current id; counts the requests. */
  id = 0;
  /** What the engine ordered, in order. */
  readonly calls: string[] = [];
  /** The guest answers, or does not. */
  onRequest: () => void = () => {};
  onAcknowledge: () => void = () => {};
  readonly #ring: (HintedRange & { readonly id: number })[] = [];

  /** Puts a hint into the ring, by default one under the current id. */
  hint(block: { readonly id: number }, firstPage: number, pageCount: number, id = this.id): void {
    this.#ring.push({ blockId: block.id, firstPage, pageCount, id });
    if (this.status === 'requested' && id === this.id) {
      this.status = 'start';
    }
  }

  /** The guest's end marker. */
  end(): void {
    this.status = 'stop';
  }

  request(): void {
    this.calls.push('request');
    this.id += 1;
    this.status = 'requested';
    this.onRequest();
  }

  stop(): void {
    this.calls.push('stop');
    this.status = 'stop';
  }

  done(): void {
    this.calls.push('done');
    this.status = 'done';
  }

  next(range: HintedRange): boolean {
    for (let hint = this.#ring.shift(); hint !== undefined; hint = this.#ring.shift()) {
      if (hint.id === this.id) {
        Object.assign(range, hint);
        return true;
      }
      this.stale += 1;
    }
    return false;
  }

  acknowledge(): void {
    this.onAcknowledge();
  }
}

/** Keeps the first byte of every page it was given, and counts. */
export class RecordingSink implements PageSink {
  transferred = 0;
  queued = 0;
  movesGuest = true;
  ready = true;
  /** `block:page` to the value last delivered. */
  readonly delivered = new Map<string, number>();
  readonly timesSent = new Map<string, number>();
  readonly calls: string[] = [];
  limit = 256;
  /** Called before a batch is read: what happens between the clear and the read. */
  beforeRead: (batch: PageBatch) => void = () => {};
  afterRead: (batch: PageBatch) => void = () => {};
  /** Waits that never end by themselves. */
  hangIn: 'start' | 'ready' | 'flush' | 'finish' | undefined;
  failIn: 'start' | 'write' | 'flush' | 'devices' | 'finish' | undefined;
  #broken: Error | undefined;
  #wake: (() => void)[] = [];

  start(): void {
    this.#note('start');
  }

  batchLimit(_extent: Extent): number {
    return this.limit;
  }

  beginIteration(last: boolean): void {
    this.calls.push(last ? 'begin last' : 'begin');
  }

  writePages(batch: PageBatch): number {
    this.#fail('write');
    this.beforeRead(batch);
    let zeroPages = 0;
    for (const page of batch.pages.subarray(0, batch.count)) {
      const key = `${batch.block.name}:${page}`;
      const { segment, address, firstPage } = batch.extent;
      const value = segment.bytes[address + (page - firstPage) * PAGE]!;
      this.delivered.set(key, value);
      this.timesSent.set(key, (this.timesSent.get(key) ?? 0) + 1);
      zeroPages += value === 0 ? 1 : 0;
    }
    const bytes = zeroPages * 9 + (batch.count - zeroPages) * (8 + PAGE);
    this.queued += bytes;
    this.transferred += bytes;
    this.afterRead(batch);
    if (this.hangIn === 'ready') {
      this.ready = false;
    }
    return zeroPages;
  }

  async whenReady(): Promise<void> {
    await this.#hang();
  }

  endIteration(): void {
    this.calls.push('end');
  }

  async flush(): Promise<void> {
    this.#note('flush');
    if (this.hangIn === 'flush') {
      await this.#hang();
    }
  }

  writeDevices(): void {
    this.#note('devices');
  }

  async finish(): Promise<void> {
    this.#note('finish');
    if (this.hangIn === 'finish') {
      await this.#hang();
    }
  }

  abort(reason: Error): void {
    this.#broken ??= reason;
    for (const wake of this.#wake) {
      wake();
    }
  }

  #note(call: 'start' | 'flush' | 'devices' | 'finish'): void {
    this.calls.push(call);
    this.#fail(call);
  }

  #fail(call: 'start' | 'write' | 'flush' | 'devices' | 'finish'): void {
    if (this.#broken !== undefined) {
      throw this.#broken;
    }
    if (this.failIn === call) {
      throw new Error(`${call} failed`);
    }
  }

  async #hang(): Promise<void> {
    if (this.#broken === undefined) {
      await new Promise<void>((resolve) => this.#wake.push(resolve));
    }
    throw this.#broken;
  }
}

/** A channel into an array; each write completes in a later turn, and is copied only then, as a kernel would. */
export class MemoryChannel implements ByteChannel {
  readonly peer = 'test:peer';
  readonly chunks: Uint8Array[] = [];
  readonly closed = new Promise<void>(() => {});
  reader: ChannelReader | undefined;
  ended = false;
  destroyed = false;
  /** Bytes after which writes fail. */
  capacity = Number.POSITIVE_INFINITY;
  #written = 0;

  write(bytes: Uint8Array, done: (error: Error | undefined) => void): void {
    setImmediate(() => {
      this.#written += bytes.length;
      if (this.#written > this.capacity || this.destroyed) {
        done(new Error('broken pipe'));
        return;
      }
      this.chunks.push(bytes.slice());
      done(undefined);
    });
  }

  read(reader: ChannelReader): void {
    this.reader = reader;
  }

  pause(): void {}
  resume(): void {}

  async end(): Promise<void> {
    this.ended = true;
  }

  destroy(): void {
    this.destroyed = true;
  }

  answer(bytes: Uint8Array): void {
    for (const byte of bytes) {
      this.reader!.buffer()[0] = byte;
      this.reader!.received(1);
    }
  }
}

/** What a system call would read of a vector at this moment. */
export const gather = ({ memory, base, entries, byteCount }: WriteVector): Uint8Array => {
  const words = new BigUint64Array(entries.slice().buffer);
  const pieces: Uint8Array[] = [];
  for (let index = 0; index < words.length; index += 2) {
    const offset = Number(words[index]) - base;
    pieces.push(memory.slice(offset, offset + Number(words[index + 1])));
  }
  const bytes = Buffer.concat(pieces);
  if (bytes.length !== byteCount) {
    throw new Error(`the pieces have ${bytes.length} bytes, the vector says ${byteCount}`);
  }
  return bytes;
};

/** A channel that takes pieces of memory as well, and reads them as late as it may. */
export class GatheringChannel extends MemoryChannel {
  static readonly base = 2 ** 40 - 4096;
  vectors = 0;

  addressOf(): number {
    return GatheringChannel.base;
  }

  writeVector(vector: WriteVector, done: WriteDone): void {
    this.vectors += 1;
    setImmediate(() => this.write(gather(vector), done));
  }
}
