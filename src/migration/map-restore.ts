// Map restore: guests that run at once because nothing is loaded (spec/qemu-lab.md G1).
//
//   guest.mapped ──┬── RAM pages ──▶ memory-backend-file of QEMU 0, 1, …: the same page cache for all, a private copy of
//                  │                 a page only where a guest writes
//                  └── the rest: machine, small blocks, devices ──▶ a stream of a few hundred KiB ──▶ migrate-incoming

import fs from 'node:fs';
import path from 'node:path';
import { openPath, openUnnamedFile, reopen } from '../channel/unnamed-file-node.js';
import type { LibvirtImage } from '../format/libvirt/save-image.js';
import { MappedRamSnapshot } from '../format/mapped-ram/snapshot.js';
import type { ReadRamBlock } from '../format/stream/stream-handler.js';
import { RamferryError } from '../memory/errors.js';
import { shellCommand } from '../memory/shell-command.js';
import { withDigest } from '../memory-file/checked-snapshot.js';
import { FileGuard } from '../memory-file/file-guard-node.js';
import { memoryFile, type OpenedSnapshotFile, openSnapshotFile } from '../memory-file/open-snapshot-file-node.js';
import { decideRun, type RunDecision } from '../memory-file/run-decision.js';
import { inTurns, type Slices } from '../memory-file/slices-node.js';
import type { PageRange } from '../memory-file/snapshot-guest.js';
import { copySparsely } from '../memory-file/sparse-copy-node.js';
import { type FileRange, findStalePages, punchStalePages } from '../memory-file/stale-pages-node.js';
import {
  droppedByMapping,
  type MappingPlan,
  optionArguments,
  planMapping,
  withMappedRam,
} from '../qemu/command-line.js';
import { isAtLeast, qemuVersion } from '../qemu/find-qemu.js';
import { type RestoredGuest, type RunIncomingOptions, runIncoming } from '../qemu/incoming.js';
import { FIRST_LENT_DESCRIPTOR, QemuProcess } from '../qemu/qemu-process.js';
import type { QemuVersion } from '../qemu/qmp-client.js';
import type { GuestSource } from './clones.js';
import { writeRestoreStream } from './restore-stream.js';

/** Since 8.2, QEMU maps a file that it must not write into as writable memory (`rom=off`); at an offset, since 8.1. */
const mapsInPlace = (version: QemuVersion): boolean => isAtLeast(version, 8, 2);

/** QEMU opens a file by its name since 8.2, and since 11.0 takes no descriptor of one any more. */
const opensFiles = (version: QemuVersion): boolean => isAtLeast(version, 8, 2);

/** Each clone has a page of its own for each: 64 MiB at most. A live save leaves some thousand (spec/qemu-lab.md G1). */
const MOST_ZERO_RECORDS = 16_384;

export interface MapRestoreOptions {
  readonly signal?: AbortSignal;
  /**
   * What to do about stale bytes in the file: have each guest make its own page zero (the default; a copy, where they are
   * too many for that), make them holes in the file, or copy.
   */
  readonly stale?: 'zero' | 'punch' | 'copy';
  /** The guests are to run, also if they were saved while paused. Default false. */
  readonly run?: boolean;
  /** Compare the file with its digest first, where it has one: QEMU reads the pages itself. Default true. */
  readonly checksDigest?: boolean;
  /** Does long work in slices; by default, with a turn for others after each. */
  readonly inSlices?: Slices;
}

/** How the guests' memory comes to be what is in the file. */
export type RamSource =
  /** The file itself is mapped; stale pages of it are made zero in each guest. */
  | 'file'
  /** The file itself, after stale bytes in it were made holes, as its user wanted. */
  | 'punched'
  /** A copy without a name, made for these guests. */
  | 'copy';

/** A block in a file that QEMU can map. */
interface MappableBlock {
  readonly block: ReadRamBlock;
  readonly descriptor: number;
  /** Undefined for 0, in a file that may be opened for writing. */
  readonly offset: number | undefined;
}

/** A saved guest of which any number of QEMUs can be started. */
export class MapRestore implements GuestSource {
  /** Names of the blocks that are mapped. */
  readonly mapped: readonly string[];
  readonly source: RamSource;
  /** Pages of the file that held bytes although they count as zero. */
  readonly stalePages: number;
  /** Sentences about blocks that come with the stream although they are memory that one would expect to be mapped. */
  readonly obstacles: readonly string[];
  /** Bytes that each guest loads. */
  readonly streamBytes: number;
  /** Section names of the guest's devices. */
  readonly devices: readonly string[];
  readonly decision: RunDecision;
  readonly warnings: readonly string[];

  #isClosed = false;
  readonly #version: QemuVersion;
  readonly #ram: readonly MappableBlock[];
  readonly #stream: number;
  readonly #guard: FileGuard | undefined;

  private constructor(
    facts: Pick<MapRestore, 'source' | 'stalePages' | 'obstacles' | 'devices' | 'decision' | 'warnings'>,
    version: QemuVersion,
    ram: readonly MappableBlock[],
    stream: number,
    guard: FileGuard | undefined,
  ) {
    this.source = facts.source;
    this.stalePages = facts.stalePages;
    this.obstacles = facts.obstacles;
    this.devices = facts.devices;
    this.decision = facts.decision;
    this.warnings = facts.warnings;
    this.#version = version;
    this.mapped = ram.map(({ block }) => block.name);
    this.streamBytes = fs.fstatSync(stream).size;
    this.#ram = ram;
    this.#stream = stream;
    this.#guard = guard;
  }

  /**
   * Makes a file ready to be mapped by what `command` starts.
   * @param operand a path, or `file:PATH,offset=N`
   * @throws RamferryError NOT_MAPPABLE if it cannot be, with the reason
   */
  static async prepare(
    operand: string,
    command: readonly string[],
    options: MapRestoreOptions = {},
  ): Promise<MapRestore> {
    refuseLockedMemory(command);
    const version = await qemuVersion(command);
    const inSlices = options.inSlices ?? inTurns(options.signal);
    let file = await MappableFile.open(operand, command, options, inSlices);
    const descriptors: number[] = [];
    try {
      let { stalePages } = file;
      const { warnings } = file;
      let source: RamSource = 'file';
      if (mapsInPlace(version) && stalePages > 0 && options.stale === 'punch') {
        source = file.punch() ? 'punched' : 'file';
        file = await MappableFile.open(operand, command, { ...options, checksDigest: false }, inSlices);
      }
      const mayStay = options.stale === 'copy' ? 0 : MOST_ZERO_RECORDS;
      if (!mapsInPlace(version) || file.stalePages > mayStay) {
        source = 'copy';
      }
      stalePages = Math.max(stalePages, file.stalePages);
      const { snapshot, plan, path: name } = file;
      let ram: MappableBlock[];
      if (source === 'copy') {
        ram = plan.mapped.map((block) => ({ block, descriptor: openUnnamedFile(copyFolder(name)), offset: undefined }));
        descriptors.push(...ram.map(({ descriptor }) => descriptor));
        const copies = ram.map(({ block, descriptor }) => ({
          block: block.index,
          offset: 0,
          bytes: block.usedLength,
          descriptor,
          file: name,
          position: 0,
        }));
        await copySparsely(snapshot, copies, inSlices);
      } else {
        const { descriptor } = file.guard;
        ram = plan.mapped.map((block) => ({ block, descriptor, offset: block.mapped!.pagesOffset }));
      }
      const decision = decideRun(snapshot.summary, file.libvirt, options.run === true);
      const held = new Map(plan.mapped.map((block) => [block.name, source === 'copy' ? [] : file.staleIn(block)]));
      const stream = await writeRestoreStream(snapshot, name, { held, runState: decision.rewritten }, options.signal);
      file.close({ keepGuard: source !== 'copy' });
      const devices = snapshot.summary.devices.map((section) => section.name);
      const obstacles = [...plan.obstacles, ...droppedByMapping(command, plan.mapped)];
      const facts = { source, stalePages, obstacles, devices, decision, warnings };
      return new MapRestore(facts, version, ram, stream, source === 'copy' ? undefined : file.guard);
    } catch (error) {
      file.close({ keepGuard: false });
      for (const descriptor of descriptors) {
        fs.closeSync(descriptor);
      }
      throw error;
    }
  }

  /** Calls `listener` if the file changes, or is about to, while guests have it mapped: their memory is not theirs any more. */
  onChange(listener: (reason: RamferryError) => void): void {
    this.#guard?.onChange(listener);
  }

  /**
   * Starts a QEMU and its guest. `command` is what `prepare` was given, or differs from it in what the guest does not see.
   * @throws RamferryError with QEMU's words; no QEMU is left behind then
   */
  async start(command: readonly string[], options: RunIncomingOptions = {}): Promise<RestoredGuest> {
    const startedAt = performance.now();
    const mappings = this.#ram.map(({ block, offset }, index) => {
      const { name, usedLength } = block;
      return { name, usedLength, offset, path: openPath(FIRST_LENT_DESCRIPTOR + index) };
    });
    // Before files had names, each had to read the stream from a descriptor with a position of its own.
    const stream = opensFiles(this.#version) ? this.#stream : reopen(this.#stream);
    const lent = FIRST_LENT_DESCRIPTOR + mappings.length;
    const uri = opensFiles(this.#version) ? `file:${openPath(lent)}` : `fd:${lent}`;
    const lend = [...this.#ram.map(({ descriptor }) => descriptor), stream];
    const { signal } = options;
    const qemu = await QemuProcess.start(withMappedRam(command, mappings), {
      ...{ lend, version: this.#version, signal },
    }).finally(() => stream !== this.#stream && fs.closeSync(stream));
    const acceptedAt = performance.now();
    try {
      const resumeMs = await runIncoming(qemu, uri, options);
      return { qemu, startedAt, acceptedAt, resumeMs, runsAt: performance.now() };
    } catch (error) {
      qemu.kill();
      await qemu.exited;
      throw error;
    }
  }

  /** Lets the file go. QEMUs that were started keep what they have mapped, so end them first. */
  close(): void {
    if (this.#isClosed) {
      return;
    }
    this.#isClosed = true;
    fs.closeSync(this.#stream);
    if (this.#guard === undefined) {
      for (const { descriptor } of this.#ram) {
        fs.closeSync(descriptor);
      }
    }
    this.#guard?.release();
  }
}

/** @throws RamferryError `usage`, if QEMU would lock all memory: that makes a copy of every page, for each clone */
const refuseLockedMemory = (command: readonly string[]): void => {
  for (const { index, values } of optionArguments(command, ['overcommit'], 'mem-lock')) {
    if (values.get('mem-lock') === 'on') {
      throw new RamferryError(
        'usage',
        'QEMU_COMMAND',
        `-overcommit ${command[index]} locks all memory, so that each clone would have a copy of all of it.`,
        { value: command[index]!, hint: 'Leave it out, or write mem-lock=on-fault (QEMU 10.0 and later).' },
      );
    }
  }
};

/** The file under guard, with what is known of it. */
class MappableFile {
  readonly path: string;
  readonly guard: FileGuard;
  readonly snapshot: MappedRamSnapshot;
  readonly plan: MappingPlan<ReadRamBlock>;
  readonly warnings: readonly string[];
  readonly #stale: readonly FileRange[];
  readonly #opened: OpenedSnapshotFile;
  #isOpen = true;

  private constructor(
    guard: FileGuard,
    opened: OpenedSnapshotFile,
    snapshot: MappedRamSnapshot,
    plan: MappingPlan<ReadRamBlock>,
    stale: readonly FileRange[],
    warnings: readonly string[],
  ) {
    this.warnings = warnings;
    this.path = guard.file;
    this.guard = guard;
    this.#opened = opened;
    this.snapshot = snapshot;
    this.plan = plan;
    this.#stale = stale;
  }

  static async open(
    operand: string,
    command: readonly string[],
    options: MapRestoreOptions,
    inSlices: Slices,
  ): Promise<MappableFile> {
    const { path: file } = memoryFile(operand);
    // First of all: what is read from here on stays true.
    const guard = FileGuard.take(file);
    let opened: OpenedSnapshotFile | undefined;
    try {
      opened = await openSnapshotFile(operand, options);
      const { snapshot, container } = opened;
      if (!(snapshot instanceof MappedRamSnapshot)) {
        const hint = `Make a file of which it can: ${shellCommand`ramferry convert ${operand} ${file}.mapped --to mapped-ram`}`;
        throw notMappable(file, 'it is a stream, in which pages lie anywhere.', hint);
      }
      if (container.libvirt !== undefined && !['raw', 'sparse'].includes(container.libvirt.format)) {
        throw notMappable(file, `it is packed by ${container.libvirt.format}.`);
      }
      const wrapping = container.wrappings.find((name) => name !== 'libvirt');
      if (wrapping !== undefined) {
        throw notMappable(file, wrapping === 'qcow2' ? 'it is a snapshot in a disk.' : `it is packed by ${wrapping}.`);
      }
      const plan = planMapping(command, snapshot.setup.blocks);
      if (plan.mapped.length === 0) {
        throw notMappable(file, plan.obstacles.join(' '));
      }
      const blocks = plan.mapped.map(({ index }) => index);
      let warnings: readonly string[] = [];
      if (options.checksDigest !== false) {
        const { checked, notChecked } = withDigest(snapshot, opened.container);
        await checked?.checkAll(inSlices);
        warnings = notChecked === undefined ? [] : [notChecked];
      }
      const stale = await findStalePages(guard.descriptor, snapshot, blocks, inSlices);
      return new MappableFile(guard, opened, snapshot, plan, stale, warnings);
    } catch (error) {
      opened?.close();
      guard.release();
      throw error;
    }
  }

  get stalePages(): number {
    const { targetPageSize: pageSize } = this.snapshot.setup;
    return this.#stale.reduce((sum, { bytes }) => sum + bytes / pageSize, 0);
  }

  get libvirt(): LibvirtImage | undefined {
    return this.#opened.container.libvirt;
  }

  /** Pages of a block that have to become zero in the guest. */
  staleIn({ mapped, usedLength }: ReadRamBlock): PageRange[] {
    const { targetPageSize: pageSize } = this.snapshot.setup;
    const { pagesOffset } = mapped!;
    return this.#stale
      .filter(({ offset }) => offset >= pagesOffset && offset < pagesOffset + usedLength)
      .map(({ offset, bytes }) => ({ firstPage: (offset - pagesOffset) / pageSize, pageCount: bytes / pageSize }));
  }

  /** Gives the stale pages back, if that is possible. Closes the file: nobody may have it open meanwhile, not even we. */
  punch(): boolean {
    const { identity } = this.guard;
    this.close({ keepGuard: false });
    return punchStalePages(this.path, identity, this.#stale);
  }

  close({ keepGuard }: { readonly keepGuard: boolean }): void {
    if (this.#isOpen) {
      this.#isOpen = false;
      this.#opened.close();
    }
    if (!keepGuard) {
      this.guard.release();
    }
  }
}

const notMappable = (file: string, reason: string, hint?: string): RamferryError =>
  new RamferryError('invalid', 'NOT_MAPPABLE', `${file} cannot be mapped: ${reason}`, {
    file,
    ...(hint === undefined ? {} : { hint }),
  });

/** Where there was room for the file there may be room for a copy; else where the system wants its temporary files. */
const copyFolder = (file: string): string | undefined => {
  const folder = path.dirname(file);
  try {
    fs.accessSync(folder, fs.constants.W_OK);
    return folder;
  } catch {
    return undefined;
  }
};
