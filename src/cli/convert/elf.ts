// Any memory file to an ELF core. A block is in the file once, however many addresses it has.

import { physicalSegments, virtualSegments } from '../../format/core-segments.js';
import { debuggerNotes, isCoreOf64Bits } from '../../format/debugger-notes.js';
import { elfCore } from '../../format/elf-core.js';
import { elfNote } from '../../format/elf-note.js';
import { PhysicalMemory } from '../../format/physical-memory.js';
import type { WalkLimits } from '../../format/x86/page-tables.js';
import { virtualMemory } from '../../format/x86/virtual-memory.js';
import { addressedMemory } from './addressed-memory.js';
import type { Conversion, Written } from './conversion.js';
import { coreDetails } from './core-details.js';
import { type OneFile, writeOneFile } from './one-file.js';

/** Our own note, which says what machine it was. QEMU keeps the names of machine types below 256 bytes. */
const NOTE_NAME = 'ramferry';
const NOTE_TYPE = 0x4d52; // 'RM'
const NAME_LIMIT = 256;

export const writeElf = async (conversion: Conversion): Promise<Written> => {
  const { file, written } = await planElf(conversion);
  return { ...written, fileBytes: await writeOneFile(conversion, file) };
};

/**
 * All but the content of memory.
 * @param limits of what the vCPUs may have mapped, `virtualMemory(…)`
 */
export const planElf = async (
  conversion: Conversion,
  limits?: WalkLimits,
): Promise<{ readonly file: OneFile; readonly written: Omit<Written, 'fileBytes'> }> => {
  const { snapshot } = conversion;
  const { map, ranges, blocks, written } = addressedMemory(conversion);
  const memory = new PhysicalMemory(snapshot, map);
  const { cpus, problem, kernel, vmcoreinfo, written: core } = await coreDetails(conversion, memory);
  if (conversion.virtual && problem !== undefined) {
    throw problem.with({ file: conversion.file });
  }
  const starts = new Map<number, number>();
  let ramBytes = 0;
  for (const { index, usedLength } of blocks) {
    starts.set(index, ramBytes);
    ramBytes += usedLength;
  }
  const offsetOf = (block: number, offset: number): number => starts.get(block)! + offset;
  const { segments, ...virtual } = conversion.virtual
    ? virtualSegments(ranges, virtualMemory(memory, cpus, kernel?.tables, limits).mappings, offsetOf)
    : { segments: physicalSegments(ranges, offsetOf) };
  const { head, ramOffset } = elfCore({
    is64Bit: isCoreOf64Bits(cpus),
    notes: Buffer.concat([debuggerNotes(cpus, vmcoreinfo), machineNote(snapshot.configuration.machine)]),
    segments,
  });
  const parts = blocks.map(({ index, usedLength }) => ({
    position: ramOffset + starts.get(index)!,
    block: index,
    offset: 0,
    bytes: usedLength,
  }));
  return {
    file: { heads: [{ position: 0, content: head }], memory: parts },
    written: { ...written, core: { ...core, ...('mappings' in virtual && { virtual }) } },
  };
};

const machineNote = (machine: string): Uint8Array =>
  elfNote(NOTE_NAME, NOTE_TYPE, new TextEncoder().encode(`machine=${machine.slice(0, NAME_LIMIT)}`));
