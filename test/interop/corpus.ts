// Stream files written by real QEMU, each with the truth about the guest it came from. Made when first asked for, kept
// in the toolbox, so that every test reads the same files.

import assert from 'node:assert/strict';
import { existsSync, mkdirSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import type { MigrationInfo } from '../../src/qemu/qmp-commands.js';
import type { GuestOptions, Lab, LabGuest } from './lab.js';
import { readReference, sha256 } from './reference-reader.js';
import { type QemuRelease, versionText } from './releases.js';

/**
 * `plain`: a stopped Linux guest. `busy`: the same with 300 MB of churn. `xbzrle`: a live one, several rounds with deltas.
 * `tiny`: a 16 MiB machine that never ran. `devices`: a q35 that never ran, with many devices, two large RAM blocks and virtio-mem's early section.
 */
export type CorpusKind = 'plain' | 'busy' | 'xbzrle' | 'tiny' | 'devices';

export interface CorpusBlock {
  readonly name: string;
  readonly usedLength: number;
  /** Over the whole used length, absent pages as zero bytes. */
  readonly sha256: string;
}

/** What QEMU itself says about the guest, by ways that do not read the stream file. */
export interface CorpusTruth {
  readonly qemu: string;
  readonly machine: string;
  /** Every block as a second QEMU holds it after loading the file. */
  readonly blocks: readonly CorpusBlock[];
  /**
   * pc.ram of the stopped source, read from its backing file. Absent for a QEMU 7.2 that was saved live: before 9.0, a sync
   * of the dirty log did not reset TCG's TLB, so guest writes after the last sync can go unseen and the stream is not what the source
   * held (measured here: 0 to 15 pages of the kernel differ; none with QEMU 10). `blocks` is the truth then.
   */
  readonly ramSha256?: string;
  /** The source's last `query-migrate`. */
  readonly migration: MigrationInfo;
}

/** `extraArguments` come on top: a device that the file does not know stays as after a reset. */
export type CorpusChanges = Pick<GuestOptions, 'ramFile' | 'stopped' | 'extraArguments'>;

export interface CorpusStream {
  readonly file: string;
  readonly truth: CorpusTruth;
}

/** Part of the cached name: raise it when the way the files are made changes. */
const CORPUS_VERSION = 2;

/** The command line that wrote a file, and so the one that loads it. */
const options: Readonly<Record<CorpusKind, GuestOptions>> = {
  plain: { memory: 256, workload: 'churn:60:20', heartbeatMs: 100 },
  busy: { memory: 512, workload: 'churn:300:40', heartbeatMs: 50 },
  xbzrle: { memory: 256, workload: 'delta:40:20', heartbeatMs: 20 },
  tiny: { memory: 16 },
  devices: {
    machine: 'q35',
    memory: 64,
    extraArguments: [
      ...['-m', '64M,maxmem=1G', '-smp', '2', '-device', 'VGA', '-device', 'virtio-rng-pci', '-device', 'e1000e'],
      ...['-device', 'virtio-balloon-pci', '-device', 'qemu-xhci', '-device', 'usb-tablet'],
      ...['-blockdev', 'null-co,node-name=disk0,size=1048576', '-device', 'virtio-blk-pci,drive=disk0'],
      ...['-object', 'memory-backend-ram,id=vmem0,size=256M'],
      ...['-device', 'virtio-mem-pci,memdev=vmem0,requested-size=128M'],
    ],
  },
};

export const corpusWorkload = (kind: CorpusKind): string => options[kind].workload ?? '';

/**
 * The part of conventional memory where the guest sees ROM or nothing instead of RAM, so that pmemsave does not show
 * the RAM block.
 */
const HOLE_START = 0xa0000;
const HOLE_END = 0x100000;

/** Rounds and deltas enough to have pages that are deltas of deltas. */
const XBZRLE_ROUNDS = 5;
const XBZRLE_PAGES = 1000;

const saveLive = async (guest: LabGuest, file: string): Promise<MigrationInfo> => {
  const saving = guest.saveStream(file, {
    capabilities: { xbzrle: true },
    // Slow enough to have rounds; the cache holds all of the guest, so that a page sent twice is a delta the third time.
    parameters: { 'max-bandwidth': 60e6, 'downtime-limit': 1, 'xbzrle-cache-size': 256 * 2 ** 20 },
  });
  const enough = async (): Promise<boolean> => {
    const info = await guest.qmp.execute('query-migrate');
    return (info['xbzrle-cache']?.pages ?? 0) >= XBZRLE_PAGES && (info.ram?.['dirty-sync-count'] ?? 0) >= XBZRLE_ROUNDS;
  };
  let done = false;
  const ended = saving.finally(() => {
    done = true;
  });
  ended.catch(() => {});
  while (!done && !(await enough())) {
    await delay(20);
  }
  await guest.qmp.execute('migrate-set-parameters', { 'max-bandwidth': 10e9, 'downtime-limit': 2000 });
  return ended;
};

const make = async (lab: Lab, kind: CorpusKind, release: QemuRelease, folder: string): Promise<void> => {
  const file = join(folder, 'stream.mig');
  const ramFile = lab.path('corpus.ram');
  const source = await lab.startGuest({ ...options[kind], release, ramFile });
  let migration: MigrationInfo;
  if (kind === 'xbzrle') {
    await source.waitReady();
    migration = await saveLive(source, file);
    assert.ok((migration['xbzrle-cache']?.pages ?? 0) >= XBZRLE_PAGES, 'the stream has XBZRLE pages');
    assert.equal(source.bad(), 0);
  } else {
    if (source.hasWorkload) {
      await source.waitReady();
      await source.stop();
    }
    migration = await source.saveStream(file);
  }
  // The source is stopped for good now: stopped before, or postmigrate.
  const ram = readFileSync(ramFile);
  const seen = lab.path('pmemsave');
  await source.pmemsave(seen, ram.length);
  const physical = readFileSync(seen);
  assert.ok(physical.subarray(0, HOLE_START).equals(ram.subarray(0, HOLE_START)), 'pmemsave, low memory');
  assert.ok(physical.subarray(HOLE_END).equals(ram.subarray(HOLE_END)), 'pmemsave, the rest');
  rmSync(seen);
  const machines = (await source.qmp.execute('query-machines')) as { name: string; alias?: string }[];
  const alias = options[kind].machine ?? 'pc';
  const machine = machines.find((entry) => entry.alias === alias)?.name ?? alias;
  await source.qemu.quit();
  rmSync(ramFile);

  // A second QEMU's copy: loaded, and saved as mapped-ram, where every block lies flat in the file. 7.2 has no mapped-ram,
  // but the machine type makes QEMU 10 accept its state.
  const reader = release === '7.2' ? '10' : release;
  const copy = await lab.startGuest({ ...options[kind], release: reader, machine, incoming: 'defer' });
  // Loading a running guest's state must not run it: it would dirty the copy.
  await copy.stop();
  await copy.loadStream(file);
  assert.notEqual(await copy.status(), 'running');
  const mapped = lab.path('copy.mapped');
  await copy.saveStream(mapped, { capabilities: { 'mapped-ram': true } });
  const blocks = [...readReference(mapped).blocks.values()].map(({ name, usedLength, bytes }) => ({
    name,
    usedLength,
    sha256: sha256(bytes),
  }));
  rmSync(mapped);
  await copy.qemu.quit();

  const exact = kind !== 'xbzrle' || release !== '7.2';
  const truth: CorpusTruth = {
    qemu: versionText(source.qmp.version),
    machine,
    blocks,
    ...(exact ? { ramSha256: sha256(ram) } : {}),
    migration,
  };
  writeFileSync(join(folder, 'truth.json'), `${JSON.stringify(truth, undefined, 2)}\n`);
};

/** The stream file of a kind written by a release, and its truth; made with `lab`'s QEMUs if the toolbox has none. */
export const corpusStream = async (
  lab: Lab,
  kind: CorpusKind,
  release: QemuRelease = lab.release,
): Promise<CorpusStream> => {
  // Another version of QEMU writes other files: they are named after the one that made them.
  const version = versionText((await lab.qemu(release)).version);
  const folder = join(lab.toolbox.folder, 'corpus', `${kind}-${version}-v${CORPUS_VERSION}`);
  const file = join(folder, 'stream.mig');
  if (!existsSync(folder)) {
    const made = `${folder}.new-${process.pid}`;
    mkdirSync(made, { recursive: true });
    try {
      await make(lab, kind, release, made);
      renameSync(made, folder);
    } catch (error) {
      rmSync(made, { recursive: true, force: true });
      // Another test process may have been quicker: its files are as good.
      if (!existsSync(folder)) {
        throw error;
      }
    }
  }
  assert.ok(statSync(file).size > 0);
  const truth = JSON.parse(readFileSync(join(folder, 'truth.json'), 'utf8')) as CorpusTruth;
  assert.equal(truth.qemu, version);
  return { file, truth };
};

/** A QEMU that waits for a guest of this kind, saved by `release`, to arrive: one of `release` as well, or another one with its machine type. */
export const corpusDestination = async (
  lab: Lab,
  kind: CorpusKind,
  release: QemuRelease = lab.release,
  { loadedBy = release, ...more }: CorpusChanges & { readonly loadedBy?: QemuRelease } = {},
): Promise<LabGuest> => {
  const { truth } = await corpusStream(lab, kind, release);
  const { machine } = truth;
  const extraArguments = [...(options[kind].extraArguments ?? []), ...(more.extraArguments ?? [])];
  return lab.startGuest({ ...options[kind], ...more, extraArguments, release: loadedBy, machine, incoming: 'defer' });
};

/** The guest of a stream file, loaded by QEMU itself and running: quicker than a boot. */
export const startFromCorpus = async (
  lab: Lab,
  kind: CorpusKind,
  release: QemuRelease = lab.release,
  more: CorpusChanges = {},
): Promise<LabGuest> => {
  const { file } = await corpusStream(lab, kind, release);
  const guest = await corpusDestination(lab, kind, release, more);
  await guest.loadStream(file);
  await guest.resume();
  return guest;
};
