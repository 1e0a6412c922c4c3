// All answers about a saved guest's Linux kernel, with what is missing and why.

import { RamferryError } from '../../memory/errors.js';
import { physicalMap } from '../physical-map.js';
import { PhysicalMemory } from '../physical-memory.js';
import type { Snapshot } from '../snapshot.js';
import { type X86Registers, x86Registers } from '../x86/registers.js';
import {
  bannerAmong,
  bannerOf,
  bootIdOf,
  commandLineIn,
  commandLineOf,
  type KernelLog,
  kernelOfDevice,
  kernelOfScan,
  logOf,
  type OpenedKernel,
} from './linux-kernel.js';
import { LinuxScan } from './memory-scan.js';

/** All that is known of a guest's kernel. Addresses are left out where they are not known. */
export interface KernelAnswer {
  readonly release: string;
  readonly banner: string | undefined;
  readonly commandLine: string | undefined;
  readonly bootId: string | undefined;
  readonly kernel: OpenedKernel | undefined;
  readonly log: KernelLog | undefined;
  /** Banners of other kernels in memory, or all of them if none could be opened. */
  readonly otherBanners: readonly string[];
  /** Why something is missing, sentences. */
  readonly problems: readonly string[];
}

/** Guest-physical memory; where the file does not say where memory is, why. */
const physicalMemory = (snapshot: Snapshot): PhysicalMemory | RamferryError => {
  try {
    return new PhysicalMemory(snapshot, physicalMap(snapshot));
  } catch (error) {
    if (error instanceof RamferryError) {
      return error;
    }
    throw error;
  }
};

/** The vCPUs as far as the file describes them: the kernel is found without them. */
export const vcpusOf = ({ summary, configuration }: Snapshot): X86Registers[] => {
  try {
    return x86Registers(summary, configuration.machine);
  } catch (error) {
    if (error instanceof RamferryError) {
      return [];
    }
    throw error;
  }
};

/**
 * What the memory of an opened file says about its Linux kernel.
 * @param search goes through the whole scan: calls `advance` until it returns 0, in between with room for others
 * @throws RamferryError `failed`, `NO_LINUX`, if there is no Linux in it
 */
export const kernelAnswer = async (
  snapshot: Snapshot,
  search: (scan: LinuxScan) => Promise<void>,
): Promise<KernelAnswer> => {
  const memory = physicalMemory(snapshot);
  const vcpus = vcpusOf(snapshot);
  const isKnown = memory instanceof PhysicalMemory;
  let found = isKnown ? kernelOfDevice(snapshot, memory, vcpus) : undefined;
  let banner = found && bannerOf(found);
  const scan = new LinuxScan(snapshot);
  if (found === undefined || banner === undefined) {
    await search(scan);
    found ??= isKnown ? kernelOfScan(scan.vmcoreinfos, memory, vcpus) : undefined;
    banner ??= found && (bannerOf(found) ?? bannerAmong(found, scan.banners));
  }
  const log = found && logOf(found);
  const release = found?.uname.release ?? scan.vmcoreinfos[0]?.info.release ?? releaseIn(scan.banners[0]?.text);
  if (release === undefined) {
    throw noLinux(snapshot);
  }
  banner ??= found === undefined ? scan.banners.find(({ text }) => releaseIn(text) === release)?.text : undefined;
  return {
    release,
    banner,
    commandLine:
      found === undefined ? scan.commandLines[0]?.text : (commandLineOf(found) ?? commandLineIn(log?.records ?? [])),
    bootId: found && bootIdOf(found),
    kernel: found,
    log,
    otherBanners: scan.banners
      .map(({ text }) => text)
      .filter((text) => (found === undefined ? text !== banner : releaseIn(text) !== release)),
    problems: problemsOf(memory, scan, found, log),
  };
};

const releaseIn = (banner: string | undefined): string | undefined => banner?.split(' ')[2];

const noLinux = ({ elsewhere, setup }: Snapshot): RamferryError => {
  const missing = [...elsewhere].map((block) => `"${setup.blocks[block]!.name}"`);
  return new RamferryError(
    'failed',
    'NO_LINUX',
    missing.length === 0
      ? 'No Linux kernel is in the memory of this guest: it has neither a banner nor VMCOREINFO.'
      : `No Linux kernel was found: the file leaves out the content of ${missing.join(', ')}.`,
  );
};

const problemsOf = (
  memory: PhysicalMemory | RamferryError,
  scan: LinuxScan,
  found: OpenedKernel | undefined,
  log: KernelLog | undefined,
): string[] => {
  if (found !== undefined) {
    return log === undefined ? ['The kernel does not say where its log is.'] : log.damage ? [log.damage.message] : [];
  }
  if (memory instanceof RamferryError) {
    return [`Where the kernel is and its log are not known: ${memory.message}`];
  }
  return [
    scan.vmcoreinfos.length === 0
      ? 'Where the kernel is and its log are not known: there is no VMCOREINFO in memory.'
      : `The VMCOREINFO in memory is of no kernel that is there as well: its kernel is no x86-64 one, or not all of it is in the file.`,
  ];
};
