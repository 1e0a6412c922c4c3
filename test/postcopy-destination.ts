// A destination of postcopy for tests: reads the stream as QEMU does, places pages, asks for them, and notes every step
// that QEMU would refuse or die of (spec/qemu-wire-format.md 5.7, 7.9). Of a page it keeps the first byte.

import type { ByteChannel, ChannelReader } from '../src/channel/channel.js';
import { be16, be32, be64, latin1 } from '../src/format/bytes.js';
import { Command, ElementType, RecordFlag } from '../src/format/stream/constants.js';
import {
  pong,
  receivedBitmap,
  receivedBitmapBytes,
  requestPages,
  resumeAck,
  shut,
} from '../src/format/stream/return-path.js';
import type { RamBlock } from '../src/memory/ram-block.js';
import { GatheringChannel, gather } from './source-kit.js';

const PAGE = 4096;

interface PlacedBlock {
  readonly block: RamBlock;
  /** First byte of each page; -1: missing. */
  readonly content: Int16Array;
  /** Pages placed since LISTEN, over all connections. */
  readonly placed: Uint8Array;
  readonly received: Uint8Array;
}

/** Where a link breaks: after this many bytes in the direction to the destination, or to the source. */
export interface Cut {
  readonly toDestination?: number;
  readonly toSource?: number;
}

export class PostcopyDestination {
  /** Steps in order: commands by name, discards, `page block:n`. */
  readonly steps: string[] = [];
  /** What QEMU would not have survived. */
  readonly violations: string[] = [];
  isListening = false;
  isRunning = false;
  hasEnded = false;
  /** Answer the PING behind the devices; tests hold it back. */
  answersLoaded = true;
  /** What of a recovery is answered. */
  answersInRecovery: 'all' | 'bitmaps' | 'nothing' = 'all';
  /** Take no more of what the source writes over the main connection: how much of it waits then is `unread`. */
  isDeaf = false;
  /** Read pages where they lie, as late as a system may. */
  isGathering = false;
  /** A section of the package that needs a page when it is loaded, and waits for it if it `asks`. */
  gate: { readonly section: Uint8Array; readonly blockName: string; readonly page: number; asks: boolean } | undefined;
  /** Take a second connection as the preempt channel. */
  acceptsPreempt = true;
  /** Pages that came over it. */
  preemptPages = 0;
  unread = 0;
  /** How often the source stopped reading what we say. */
  pauses = 0;
  onListen: () => void = () => {};
  /** Called with every page record, of precopy too. */
  onRecord: (page: number) => void = () => {};
  /** Called with every page placed after LISTEN. */
  onPage: (blockName: string, page: number) => void = () => {};
  bytesIn = 0;
  /** Requested and not there yet. */
  readonly #outstanding = new Set<string>();
  readonly #requested = new Set<string>();
  /** What is behind the gate, while it waits. */
  #behindGate: (() => void) | undefined;
  readonly #blocks: ReadonlyMap<string, PlacedBlock>;
  #link: Link | undefined;
  #preempt: Link | undefined;

  constructor(blocks: readonly RamBlock[]) {
    this.#blocks = new Map(
      blocks.map((block) => [
        block.name,
        {
          block,
          content: new Int16Array(block.usedPages).fill(-1),
          placed: new Uint8Array(block.usedPages),
          received: new Uint8Array(receivedBitmapBytes(block.usedPages)),
        },
      ]),
    );
  }

  /** A new connection to this destination; the one before is forgotten. */
  connect(cut: Cut = {}): ByteChannel {
    this.#link = new Link(this, cut, this.isRunning ? 'recovery' : 'main');
    return this.#link.channel;
  }

  /** A further connection, for pages that were asked for. */
  connectPreempt(): ByteChannel {
    const preempt = new Link(this, {}, 'preempt');
    if (this.acceptsPreempt) {
      this.#preempt = preempt;
    } else {
      preempt.end();
    }
    return preempt.channel;
  }

  /** As QEMU does at its end, whatever is still asked for. */
  closePreempt(): void {
    this.#preempt?.end();
    this.#preempt = undefined;
  }

  /** A guest thread that needs a page. */
  request(blockName: string, page: number, hostPageSize = PAGE): void {
    this.#outstanding.add(`${blockName}:${page}`);
    this.#requested.add(`${blockName}:${page}`);
    this.#link?.answer(requestPages(page * PAGE, hostPageSize, blockName));
  }

  /** Bytes of the return path as they are. */
  say(bytes: Uint8Array): void {
    this.#link?.answer(bytes);
  }

  breakLink(): void {
    this.#link?.break(new Error('the test cut the link'));
  }

  placed(blockName: string): PlacedBlock {
    const placed = this.#blocks.get(blockName);
    if (placed === undefined) {
      throw new Error(`unknown RAM block "${blockName}"`);
    }
    return placed;
  }

  /** What the guest reads: missing pages are zero once it is over. */
  value(blockName: string, page: number): number {
    return Math.max(0, this.placed(blockName).content[page]);
  }

  step(text: string): void {
    this.steps.push(text);
  }

  ping(value: number): void {
    this.step(`ping ${value}`);
    if (value !== 3 || this.answersLoaded) {
      this.say(pong(value));
    }
  }

  /** The answer that was held back. */
  load(): void {
    this.answersLoaded = true;
    this.say(pong(3));
  }

  discard(name: string, start: number, length: number): void {
    const { block, content, received } = this.placed(name);
    if (start % block.hostPageSize !== 0 || length % block.hostPageSize !== 0 || start + length > block.maxLength) {
      this.violations.push(`discard of ${length} bytes at ${start} of ${name}`);
    }
    if (this.isListening) {
      this.violations.push(`discard of ${name} after LISTEN`);
    }
    this.step(`discard ${name} ${start / PAGE} ${length / PAGE}`);
    for (let page = start / PAGE; page < (start + length) / PAGE; page += 1) {
      content[page] = -1;
      received[page >>> 3] &= ~(1 << (page & 7));
    }
  }

  page(name: string, offset: number, value: number, link: Link): void {
    const { block, content, placed, received } = this.placed(name);
    const page = offset / PAGE;
    if (page >= block.usedPages) {
      this.violations.push(`page ${page} of ${name}`);
      return;
    }
    this.onRecord(page);
    if (!this.isListening) {
      content[page] = value;
      received[page >>> 3] |= 1 << (page & 7);
      return;
    }
    const pages = block.hostPageSize / PAGE;
    const first = page - (page % pages);
    if (link === this.#preempt) {
      this.preemptPages += 1;
      if (!this.#requested.has(`${name}:${first}`)) {
        this.violations.push(`page ${page} of ${name} comes over the preempt channel and was not asked for`);
      }
    }
    link.hostPage ??= { name, first, count: 0, values: [] };
    const { hostPage } = link;
    if (hostPage.name !== name || hostPage.first !== first) {
      this.violations.push(`page ${page} of ${name} amid host page ${hostPage.first} of ${hostPage.name}`);
    }
    hostPage.count += 1;
    hostPage.values[page - first] = value;
    if (hostPage.count < pages) {
      return;
    }
    const { values } = hostPage;
    link.hostPage = undefined;
    for (let index = 0; index < pages; index += 1) {
      if (content[first + index] >= 0) {
        this.violations.push(`page ${first + index} of ${name} is there already`);
      }
      content[first + index] = values[index];
      placed[first + index] += 1;
      received[(first + index) >>> 3] |= 1 << ((first + index) & 7);
      this.#outstanding.delete(`${name}:${first + index}`);
      this.step(`page ${name}:${first + index}`);
      this.onPage(name, first + index);
    }
    this.#confirm();
    const { gate } = this;
    if (gate?.blockName === name && gate.page >= first && gate.page < first + pages) {
      const goOn = this.#behindGate;
      this.#behindGate = undefined;
      goOn?.();
    }
  }

  /** Loads the gate: `goOn` comes behind it. */
  passGate({ blockName, page, asks }: NonNullable<PostcopyDestination['gate']>, goOn: () => void): void {
    this.step('gate');
    if (asks) {
      this.#behindGate = goOn;
      this.request(blockName, page);
    } else {
      goOn();
    }
  }

  command(number: number, payload: Uint8Array): void {
    switch (number) {
      case Command.PING:
        this.ping(be32(payload, 0));
        break;
      case Command.POSTCOPY_ADVISE:
        this.step(`advise ${be64(payload, 0)} ${be64(payload, 8)}`);
        break;
      case Command.POSTCOPY_RAM_DISCARD: {
        const name = latin1(payload, 2, 2 + payload[1]);
        for (let at = 3 + payload[1]; at < payload.length; at += 16) {
          this.discard(name, be64(payload, at), be64(payload, at + 8));
        }
        this.step(`discarded ${name}`);
        break;
      }
      case Command.POSTCOPY_LISTEN:
        if (!this.steps.some((step) => step.startsWith('discard '))) {
          this.violations.push('LISTEN without a discard');
        }
        this.isListening = true;
        this.onListen();
        this.step('listen');
        break;
      case Command.POSTCOPY_RUN:
        this.isRunning = true;
        this.step('run');
        break;
      case Command.RECV_BITMAP:
        if (this.answersInRecovery !== 'nothing') {
          const name = latin1(payload, 1, payload.length);
          this.say(receivedBitmap(name, this.placed(name).received));
        }
        break;
      case Command.POSTCOPY_RESUME:
        this.step('resume');
        if (this.answersInRecovery !== 'all') {
          break;
        }
        this.say(resumeAck());
        for (const key of this.#outstanding) {
          const [name, page] = key.split(':') as [string, string];
          this.say(requestPages(Number(page) * PAGE, this.placed(name).block.hostPageSize, name));
        }
        break;
      default:
        this.step(`command ${number}`);
    }
  }

  end(): void {
    if (this.isListening && !this.answersLoaded) {
      this.violations.push('the stream ended while devices load');
    }
    if (this.#link?.hostPage !== undefined) {
      this.violations.push('the stream ended within a host page');
    }
    this.hasEnded = true;
    this.step('end');
    this.#confirm();
  }

  /** As QEMU, not before what was asked for is there, if there is a channel on which it can still come. */
  #confirm(): void {
    if (this.hasEnded && (this.#preempt === undefined || this.#outstanding.size === 0)) {
      this.#preempt?.end();
      this.say(shut(0));
    }
  }
}

interface HostPage {
  readonly name: string;
  readonly first: number;
  count: number;
  readonly values: number[];
}

/** One connection: a parser that takes bytes as they come, and the channel that the source writes to. */
class Link {
  readonly channel: ByteChannel;
  /** The host page that is being collected: first page, and how many of it are there. */
  hostPage: HostPage | undefined;
  readonly #destination: PostcopyDestination;
  readonly #cut: Cut;
  readonly #steps: Generator<number, void, Uint8Array>;
  #need: number;
  /** Block of the last record. */
  #blockName = '';
  #held = Buffer.alloc(0);
  #reader: ChannelReader | undefined;
  #answers: Uint8Array[] = [];
  #answered = 0;
  #broken: Error | undefined;
  #written = 0;

  constructor(destination: PostcopyDestination, cut: Cut, kind: 'main' | 'recovery' | 'preempt') {
    this.#destination = destination;
    this.#cut = cut;
    this.#steps = kind === 'preempt' ? this.#records() : this.#parse(kind === 'recovery');
    this.#need = this.#steps.next().value as number;
    let isPaused = false;
    this.channel = {
      peer: 'test:destination',
      closed: new Promise<void>(() => {}),
      write: (bytes, done) => {
        if (destination.isDeaf && kind !== 'preempt') {
          destination.unread += bytes.length;
        } else {
          setImmediate(() => done(this.#write(bytes)));
        }
      },
      addressOf: () => (destination.isGathering ? GatheringChannel.base : undefined),
      writeVector: (vector, done) => {
        setImmediate(() => this.channel.write(gather(vector), done));
      },
      read: (reader) => {
        this.#reader = reader;
        this.#deliver();
      },
      pause: () => {
        destination.pauses += 1;
        isPaused = true;
      },
      resume: () => {
        isPaused = false;
        this.#deliver();
      },
      end: async () => {},
      destroy: () => {
        this.#broken ??= new Error('destroyed');
      },
    };
    this.#isPaused = () => isPaused;
  }

  readonly #isPaused: () => boolean;

  answer(bytes: Uint8Array): void {
    this.#answers.push(bytes.slice());
    setImmediate(() => this.#deliver());
  }

  #deliver(): void {
    while (this.#reader !== undefined && !this.#isPaused() && this.#broken === undefined) {
      const bytes = this.#answers.shift();
      if (bytes === undefined) {
        return;
      }
      for (let at = 0; at < bytes.length; ) {
        const left = (this.#cut.toSource ?? Number.POSITIVE_INFINITY) - this.#answered;
        const space = this.#reader.buffer();
        const count = Math.min(space.length, bytes.length - at, left);
        space.set(bytes.subarray(at, at + count));
        this.#reader.received(count);
        at += count;
        this.#answered += count;
        if (count === left) {
          this.break(new Error('the test cut the return path'));
          return;
        }
      }
    }
  }

  /** Ends our direction. */
  end(): void {
    setImmediate(() => this.#reader?.ended());
  }

  break(error: Error): void {
    if (this.#broken === undefined) {
      this.#broken = error;
      const reader = this.#reader;
      setImmediate(() => reader?.failed(error));
    }
  }

  #write(bytes: Uint8Array): Error | undefined {
    if (this.#broken !== undefined) {
      return this.#broken;
    }
    const left = (this.#cut.toDestination ?? Number.POSITIVE_INFINITY) - this.#written;
    this.#written += bytes.length;
    this.#destination.bytesIn += Math.min(bytes.length, left);
    this.#held = Buffer.concat([this.#held, bytes.subarray(0, Math.min(bytes.length, left))]);
    let at = 0;
    while (this.#need > 0 && this.#held.length - at >= this.#need) {
      const piece = this.#held.subarray(at, at + this.#need);
      at += this.#need;
      this.#need = (this.#steps.next(piece).value as number | undefined) ?? 0;
    }
    this.#held = this.#held.subarray(at);
    // Without a switch the VM description follows.
    if (this.#need === 0 && this.#held.length > 0 && this.#destination.isListening) {
      this.#destination.violations.push(`${this.#held.length} bytes behind the end`);
    }
    if (bytes.length >= left) {
      this.break(new Error('the test cut the link'));
      return this.#broken;
    }
    return undefined;
  }

  /** Yields how many bytes it needs next, and gets them. */
  *#parse(isRecovery: boolean): Generator<number, void, Uint8Array> {
    const destination = this.#destination;
    if (!isRecovery) {
      yield 8;
      const length = be32(yield 5, 1);
      yield length;
    }
    yield* this.#elements(destination);
  }

  /** Page records up to EOS, which on a preempt channel never comes. */
  *#records(): Generator<number, void, Uint8Array> {
    for (;;) {
      const head = be64(yield 8, 0);
      const flags = head % PAGE;
      if (flags === RecordFlag.EOS) {
        return;
      }
      if ((flags & RecordFlag.CONTINUE) === 0) {
        const [length] = yield 1;
        this.#blockName = latin1(yield length, 0, length);
      }
      const [value] = yield (flags & RecordFlag.ZERO) !== 0 ? 1 : PAGE;
      this.#destination.page(this.#blockName, head - flags, value, this);
    }
  }

  *#elements(destination: PostcopyDestination): Generator<number, void, Uint8Array> {
    for (;;) {
      const [type] = yield 1;
      switch (type) {
        case ElementType.SECTION_START: {
          yield 16;
          yield 8;
          for (;;) {
            const [length] = yield 1;
            // EOS begins with a zero byte, which no name has as its length.
            if (length === 0) {
              yield 7;
              break;
            }
            const block = latin1(yield length, 0, length);
            yield 8;
            if (destination.placed(block).block.hostPageSize !== PAGE) {
              destination.step(`page size ${block} ${be64(yield 8, 0)}`);
            }
          }
          yield 5;
          break;
        }
        case ElementType.SECTION_PART:
        case ElementType.SECTION_END: {
          yield 4;
          yield* this.#records();
          yield 5;
          break;
        }
        case ElementType.COMMAND: {
          const head = yield 4;
          const length = be16(head, 2);
          const payload = (length === 0 ? new Uint8Array() : yield length).slice();
          if (be16(head, 0) === Command.PACKAGED) {
            const blob = (yield be32(payload, 0)).slice();
            this.#package(blob);
          } else {
            destination.command(be16(head, 0), payload);
          }
          break;
        }
        case ElementType.EOF:
          destination.end();
          return;
        default:
          destination.violations.push(`element ${type}`);
          return;
      }
    }
  }

  #package(blob: Uint8Array): void {
    this.#destination.step('package');
    this.#load(blob);
  }

  #load(blob: Uint8Array): void {
    const { gate } = this.#destination;
    for (let at = 0; at < blob.length; ) {
      if (gate !== undefined && Buffer.compare(blob.subarray(at, at + gate.section.length), gate.section) === 0) {
        const rest = blob.subarray(at + gate.section.length);
        this.#destination.passGate(gate, () => this.#load(rest));
        return;
      }
      if (blob[at] !== ElementType.COMMAND) {
        this.#destination.violations.push(`element ${blob[at]} in the package`);
        return;
      }
      const length = be16(blob, at + 3);
      this.#destination.command(be16(blob, at + 1), blob.subarray(at + 5, at + 5 + length));
      at += 5 + length;
    }
  }
}
