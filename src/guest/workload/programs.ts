// What workload writers do. A program is a function that does about one page's work a call and keeps all it has to
// remember in registers and guest RAM, so that it can be stopped, moved and continued between any two calls.

import type { BlockLists } from './block-lists.js';
import { Register, WorkloadKind } from './registers.js';
import type { WorkloadWriter } from './writer.js';

/** Does one step; false if there is nothing to do at present. */
type Program = (writer: WorkloadWriter) => boolean;

/** Table entries changed or looked at in one step: those of one table page. */
const BATCH = 1024;

/** Fills free memory with garbage if it is to be full of it, once; false when that is done. */
const scribble: Program = (writer) => {
  const { registers, frameCount } = writer;
  if (!writer.wantsGarbage || registers[Register.scribbled]! >= frameCount) {
    return false;
  }
  const isBuild = registers[Register.kind] === WorkloadKind.build;
  let frame = registers[Register.scribbled]!;
  // A build has taken nothing yet of memory that is new.
  for (const end = Math.min(frame + BATCH, frameCount); frame < end; frame += 1) {
    if (isBuild || !writer.isWorking(frame)) {
      writer.scribble(frame);
      frame += 1;
      break;
    }
  }
  registers[Register.scribbled] = frame;
  return true;
};

/** Writes every page of the working set once; false when that is done. */
const fill: Program = (writer) => {
  const { registers } = writer;
  const position = registers[Register.position]!;
  if (position < writer.pageCount) {
    writer.write(writer.frameOf(position));
    registers[Register.position] = position + 1;
    return true;
  }
  if (scribble(writer)) {
    return true;
  }
  registers[Register.ready] = 1;
  return false;
};

/** Has content, and leaves it alone. */
const idle: Program = fill;

/** Rewrites random pages of its working set. */
const churn: Program = (writer) => {
  if (fill(writer)) {
    return true;
  }
  if (writer.pageCount === 0) {
    return false;
  }
  writer.write(writer.frameOf(writer.random(writer.pageCount)));
  return true;
};

/** Fills its pages and frees them: the memory holds garbage that nobody needs. New memory is filled and freed as well. */
const fillfree: Program = (writer) => {
  const { registers } = writer;
  const freed = registers[Register.phase]!;
  registers[Register.ready] = 0;
  if (fill(writer)) {
    return true;
  }
  const end = Math.min(freed + BATCH, writer.pageCount);
  for (let ordinal = freed; ordinal < end; ordinal += 1) {
    writer.free(writer.frameOf(ordinal), 1);
  }
  registers[Register.phase] = end;
  registers[Register.ready] = end === writer.pageCount ? 1 : 0;
  return end > freed;
};

//   prepare ─▶ readSources ─▶ ┌─▶ compile ─▶ writeObject ─▶ exit ─▶ every 40th time: clean ─┐
//                             └─────────────────────────────────────────────────────────────┘
const BuildPhase = { prepare: 0, readSources: 1, compile: 2, writeObject: 3, exit: 4, clean: 5 } as const;

/** The file cache may have this part of the working set. */
const CACHE_PART = 1 / 4;
/** It takes memory in blocks of 32 KiB. */
const CACHE_ORDER = 3;
const CACHE_BLOCK_PAGES = 2 ** CACHE_ORDER;

/** Orders of the blocks in which compilers, in turn, take their memory: the last one has huge pages. */
const PROCESS_ORDERS = [3, 4, 3, 9] as const;

/** After so many jobs half of the file cache is thrown away. */
const JOBS_UNTIL_CLEAN = 40;

/** What a compiler needs: 4 to 17 MiB. */
const jobPages = (writer: WorkloadWriter): number => (4 + (writer.registers[Register.jobNumber]! % 14)) * 256;

const cacheBlocksMax = (writer: WorkloadWriter, capacity = Number.POSITIVE_INFINITY): number =>
  Math.min(capacity, Math.floor((writer.pageCount * CACHE_PART) / CACHE_BLOCK_PAGES));

/** Frees the oldest block of the file cache; false if there is none. */
const evict = (writer: WorkloadWriter, lists: BlockLists): boolean => {
  if (lists.cacheLength === 0) {
    return false;
  }
  const { frame, order } = lists.takeCache();
  writer.free(frame, 2 ** order);
  return true;
};

/** Writes a page to the file cache; false when all pages that are to be written are. `position`: pages in the newest block. */
const writeFile = (writer: WorkloadWriter, lists: BlockLists): boolean => {
  const { registers } = writer;
  const position = registers[Register.position]!;
  if (registers[Register.pagesLeft] === 0) {
    return false;
  }
  if (position < CACHE_BLOCK_PAGES) {
    writer.write(lists.cached(lists.cacheLength - 1).frame + position);
    registers[Register.position] = position + 1;
    registers[Register.pagesLeft]! -= 1;
    return true;
  }
  const full = lists.cacheLength >= cacheBlocksMax(writer, lists.capacity);
  const frame = full ? undefined : writer.allocate(CACHE_ORDER);
  if (frame !== undefined) {
    lists.appendCache({ frame, order: CACHE_ORDER });
    registers[Register.position] = 0;
  } else if (!evict(writer, lists)) {
    registers[Register.pagesLeft] = 0;
  }
  return true;
};

/** Writes a page of the compiler's memory; false when it has all that it needs, or can get. `position`: pages in the newest block. */
const compile = (writer: WorkloadWriter, lists: BlockLists): boolean => {
  const { registers } = writer;
  const position = registers[Register.position]!;
  const newest = lists.processLength > 0 ? lists.lastOfProcess() : undefined;
  if (newest !== undefined && position < 2 ** newest.order) {
    writer.write(newest.frame + position);
    registers[Register.position] = position + 1;
    registers[Register.pagesLeft]! -= 1;
    // A compiler reads what others have written.
    if (lists.cacheLength > 0) {
      const { frame } = lists.cached(writer.random(lists.cacheLength));
      writer.check(frame + writer.random(CACHE_BLOCK_PAGES));
    }
    return true;
  }
  const pagesLeft = registers[Register.pagesLeft]!;
  if (pagesLeft === 0 || lists.processLength === lists.capacity) {
    return false;
  }
  const wanted = PROCESS_ORDERS[registers[Register.jobNumber]! % PROCESS_ORDERS.length]!;
  const order = Math.min(wanted, Math.floor(Math.log2(pagesLeft)));
  // Where there is no block of that size there may be small ones.
  const smallOrder = Math.min(order, CACHE_ORDER);
  const large = writer.allocate(order);
  const frame = large ?? writer.allocate(smallOrder);
  if (frame !== undefined) {
    lists.pushProcess({ frame, order: large === undefined ? smallOrder : order });
    registers[Register.position] = 0;
  } else if (!evict(writer, lists)) {
    registers[Register.pagesLeft] = 0;
  }
  return true;
};

/**
 * A build: one compiler after the other takes 4 to 17 MiB, fills it, writes an eighth as much into an object file, and exits.
 * The file cache grows with the object files, and shrinks when memory is short.
 */
const build: Program = (writer) => {
  const { registers } = writer;
  if (scribble(writer)) {
    return true;
  }
  const enter = (phase: number, pagesLeft = 0): true => {
    registers[Register.phase] = phase;
    registers[Register.pagesLeft] = pagesLeft;
    // The newest block, if there is one, is not this phase's.
    registers[Register.position] = CACHE_BLOCK_PAGES;
    return true;
  };
  const lists = writer.lists;
  if (lists === undefined) {
    // Nothing can be done in a working set that is too small even for lists.
    registers[Register.ready] = writer.createLists(cacheBlocksMax(writer)) ? 0 : 1;
    return registers[Register.ready] === 0 && enter(BuildPhase.readSources, cacheBlocksMax(writer) * CACHE_BLOCK_PAGES);
  }
  switch (registers[Register.phase]) {
    case BuildPhase.readSources:
      if (writeFile(writer, lists)) {
        return true;
      }
      registers[Register.ready] = 1;
      return enter(BuildPhase.compile, jobPages(writer));
    case BuildPhase.compile:
      return (
        compile(writer, lists) ||
        enter(BuildPhase.writeObject, Math.floor(jobPages(writer) / 8 / CACHE_BLOCK_PAGES) * CACHE_BLOCK_PAGES)
      );
    case BuildPhase.writeObject:
      return writeFile(writer, lists) || enter(BuildPhase.exit);
    case BuildPhase.exit: {
      if (lists.processLength > 0) {
        const { frame, order } = lists.popProcess();
        writer.free(frame, 2 ** order);
        return true;
      }
      registers[Register.jobNumber]! += 1;
      return registers[Register.jobNumber]! % JOBS_UNTIL_CLEAN === 0
        ? enter(BuildPhase.clean)
        : enter(BuildPhase.compile, jobPages(writer));
    }
    default:
      return (
        (lists.cacheLength > cacheBlocksMax(writer) / 2 && evict(writer, lists)) ||
        enter(BuildPhase.compile, jobPages(writer))
      );
  }
};

/** By `kind` register. */
const programs: readonly Program[] = [idle, churn, fillfree, build];

/** Runs a writer's program until it has written a page or done work of that size. False if there is nothing to do at present. */
export const runStep: Program = (writer) => programs[writer.registers[Register.kind]!]!(writer);
