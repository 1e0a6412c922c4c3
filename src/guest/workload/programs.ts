// What workload writers do. A program is a function that does about one page's work a call and keeps all it has to
// remember in registers, so that it can be stopped, moved and continued between any two calls.

import { allocate } from './page-allocator.js';
import { Register } from './registers.js';
import type { WorkloadWriter } from './writer.js';

/** Does one step; false if there is nothing to do at present. */
export type Program = (writer: WorkloadWriter) => boolean;

/** The workloads by name; the number is what a writer's `kind` register holds. */
export const WorkloadKind = { idle: 0, churn: 1, fillfree: 2, build: 3 } as const;
export type WorkloadKind = keyof typeof WorkloadKind;

/** Table entries changed in one step: those of one table page. */
const FREE_BATCH = 1024;

/** Writes every page once; false when that is done. */
const fill: Program = (writer) => {
  const { registers } = writer;
  const position = registers[Register.position]!;
  if (position >= writer.pageCount) {
    registers[Register.ready] = 1;
    return false;
  }
  writer.write(position);
  registers[Register.position] = position + 1;
  return true;
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
  writer.write(writer.random(writer.pageCount));
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
  const end = Math.min(freed + FREE_BATCH, writer.pageCount);
  for (let ordinal = freed; ordinal < end; ordinal += 1) {
    writer.free(ordinal);
  }
  registers[Register.phase] = end;
  registers[Register.ready] = end === writer.pageCount ? 1 : 0;
  return end > freed;
};

const BuildPhase = { allocate: 0, compile: 1, writeObject: 2, free: 3 } as const;

/** Object files that stay in the file cache. */
const OBJECT_FILES = 40;

/**
 * A build: one compiler after the other allocates 4 to 17 MiB, fills it, writes an eighth as much into its object file, and
 * gives the memory back. The object files live in the first quarter of the pages, as a file cache does.
 */
const build: Program = (writer) => {
  const { registers } = writer;
  const cachePages = Math.floor(writer.pageCount / 4);
  const objectPages = Math.floor(cachePages / OBJECT_FILES);
  const position = registers[Register.position]!;
  registers[Register.ready] = 1;
  const enter = (phase: number): void => {
    registers[Register.phase] = phase;
    registers[Register.position] = 0;
  };
  switch (registers[Register.phase]) {
    case BuildPhase.allocate: {
      const wanted = (4 + (registers[Register.jobNumber]! % 14)) * 256;
      const pages = Math.min(wanted, writer.pageCount - cachePages);
      const first = allocate(writer, cachePages, pages);
      if (first === undefined || pages === 0) {
        return false;
      }
      registers[Register.jobFirst] = first;
      registers[Register.jobPages] = pages;
      enter(BuildPhase.compile);
      return true;
    }
    case BuildPhase.compile:
      if (position < registers[Register.jobPages]!) {
        writer.write(registers[Register.jobFirst]! + position);
        // A compiler reads what others have written.
        if (cachePages > 0) {
          writer.check(writer.random(cachePages));
        }
        registers[Register.position] = position + 1;
      } else {
        enter(BuildPhase.writeObject);
      }
      return true;
    case BuildPhase.writeObject:
      if (position < Math.min(objectPages, registers[Register.jobPages]! / 8)) {
        writer.write((registers[Register.jobNumber]! % OBJECT_FILES) * objectPages + position);
        registers[Register.position] = position + 1;
      } else {
        enter(BuildPhase.free);
      }
      return true;
    default: {
      const end = Math.min(position + FREE_BATCH, registers[Register.jobPages]!);
      for (let i = position; i < end; i += 1) {
        writer.free(registers[Register.jobFirst]! + i);
      }
      registers[Register.position] = end;
      if (end === registers[Register.jobPages]) {
        registers[Register.jobNumber]! += 1;
        enter(BuildPhase.allocate);
      }
      return true;
    }
  }
};

/** By `kind` register. */
export const programs: readonly Program[] = [idle, churn, fillfree, build];
