// `ramferry demo --guest qemu`: a Linux in a stock QEMU is saved by QEMU and cloned by us. Every clone goes on where the guest
// was saved, and checks its own memory. Kernel and QEMU are those that the test suite unpacks, or any that are there.
//
//   QEMU ── migrate file:, mapped-ram ──▶ file ──┬── mapped by clones 0, 1, 2, 3: run at once
//                                                └── loaded by one QEMU as QEMU does: runs when it is there

import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { RamferryError } from '../../memory/errors.js';
import { Clones } from '../../migration/clones.js';
import { MapRestore } from '../../migration/map-restore.js';
import { runIncoming } from '../../qemu/incoming.js';
import { QemuProcess } from '../../qemu/qemu-process.js';
import { formatBytes, formatCount, formatDuration, formatTable } from '../format.js';
import type { Invocation, VerbResult } from '../verb.js';
import { type DemoNeeds, demoNeeds } from './needs.js';

const MIB = 2 ** 20;
const CLONES = 4;
const POLL_MS = 10;

/** For one thing that a guest does. Without KVM a Linux boots in two seconds, on a busy machine in ten. */
const STEP_MS = 60_000;

/** Above what any file takes; QEMU's default of 128 MiB/s holds for files too. */
const UNLIMITED = 100 * 2 ** 30;

export interface DemoQemuOptions {
  readonly memory: number;
  readonly workingSet: number;
  readonly rate: number;
}

/** What a guest printed on its serial port. */
class Console {
  readonly file: string;
  #qemu: QemuProcess | undefined;

  constructor(file: string) {
    this.file = file;
  }

  watch(qemu: QemuProcess): void {
    this.#qemu = qemu;
  }

  get text(): string {
    return existsSync(this.file) ? readFileSync(this.file, 'latin1') : '';
  }

  /** Pages that the guest has checked so far, wherever it ran. */
  get checked(): number {
    return Number([...this.text.matchAll(/checked=(\d+)/g)].at(-1)?.[1] ?? 0);
  }

  /** Pages that it found wrong. */
  get bad(): number {
    return Math.max(0, ...[...this.text.matchAll(/bad=(\d+)/g)].map(([, count]) => Number(count)));
  }

  async until(what: string, holds: () => boolean, signal: AbortSignal): Promise<void> {
    const deadline = performance.now() + STEP_MS;
    while (!holds()) {
      signal.throwIfAborted();
      if (this.#qemu?.isRunning === false) {
        throw this.#qemu.exitError();
      }
      if (performance.now() > deadline) {
        throw new RamferryError('failed', 'GUEST_NOT_RESPONDING', `The guest did not ${what} within ${STEP_MS} ms.`, {
          file: this.file,
        });
      }
      await delay(POLL_MS);
    }
  }
}

/** The QEMU command line of the guest; `{i}` in `serial` is the number of the clone. */
const commandLine = (
  { qemu, kernel, initramfs }: DemoNeeds,
  { memory, workingSet, rate }: DemoQemuOptions,
  serial: string,
): readonly string[] => {
  const workload = `churn:${Math.floor(workingSet / MIB)}:${Math.max(1, Math.floor(rate / MIB))}`;
  return [
    ...[
      qemu.program,
      '-accel',
      'tcg',
      '-M',
      'pc',
      '-m',
      `${Math.floor(memory / MIB)}M`,
      '-nodefaults',
      '-no-user-config',
    ],
    ...['-display', 'none', '-device', 'vmgenid,guid=auto', '-kernel', kernel, '-initrd', initramfs],
    ...['-append', `console=ttyS0 quiet panic=-1 tsc=unstable wl=${workload} hb=20`, '-serial', `file:${serial}`],
  ];
};

export async function demoQemu(
  { options, progress, signal }: Invocation<DemoQemuOptions>,
  folder: string,
): Promise<VerbResult> {
  const needs = await demoNeeds();
  const file = join(folder, 'guest.mapped');
  const saveMs = await bootAndSave(needs, { options, progress, signal }, folder, file);

  progress.update({ phase: `${CLONES} clones of the guest` });
  const serial = join(folder, 'clone{i}.log');
  const template = commandLine(needs, options, serial);
  const source = await MapRestore.prepare(file, template, { signal });
  const consoles = Array.from({ length: CLONES }, (_, index) => new Console(serial.replace('{i}', String(index))));
  try {
    const clones = await Clones.start({ source, count: CLONES, template, folder });
    try {
      const pages = Math.floor(options.workingSet / MIB) * 256;
      await Promise.all(
        consoles.map(async (log, index) => {
          log.watch(clones.all[index]!.qemu);
          await log.until('say anything', () => log.checked > 0, signal);
          // Once round all of its memory.
          const end = log.checked + pages;
          progress.update({ phase: `${CLONES} clones run; they check their memory` });
          await log.until('check its memory', () => log.checked >= end, signal);
        }),
      );
      const resumeMs = clones.all.map((clone) => rounded(clone.resumeMs));
      const bad = consoles.map((log) => log.bad);
      await clones.end();
      const loadMs = await loadByQemu(needs, options, folder, file);
      progress.finish();
      return result({
        ...{ qemu: Object.values(needs.qemu.version).join('.'), memory: options.memory, saveMs, loadMs, resumeMs, bad },
        runMs: rounded(clones.runMs),
        checked: consoles.reduce((sum, log) => sum + log.checked, 0),
      });
    } finally {
      await clones.end();
    }
  } finally {
    source.close();
  }
}

/** Resolves with how long QEMU took to save its running guest, in milliseconds. */
async function bootAndSave(
  needs: DemoNeeds,
  { options, progress, signal }: Omit<Invocation<DemoQemuOptions>, 'operands' | 'publish' | 'printPart'>,
  folder: string,
  file: string,
): Promise<number> {
  progress.update({ phase: `a Linux boots in QEMU and fills ${formatBytes(options.workingSet)}` });
  const log = new Console(join(folder, 'guest.log'));
  const qemu = await QemuProcess.start(commandLine(needs, options, log.file));
  try {
    log.watch(qemu);
    await log.until('start to check its memory', () => log.checked > 0, signal);
    progress.update({ phase: 'QEMU saves it' });
    const start = performance.now();
    const { qmp } = qemu;
    await qmp.execute('migrate-set-capabilities', {
      capabilities: ['events', 'mapped-ram'].map((capability) => ({ capability, state: true })),
    });
    await qmp.execute('migrate-set-parameters', { 'max-bandwidth': UNLIMITED });
    const ended = qmp.waitEvent('MIGRATION', {
      where: ({ data }) => ['completed', 'failed', 'cancelled'].includes(String(data['status'])),
    });
    await qmp.execute('migrate', { uri: `file:${file}` });
    const { data } = await ended;
    if (data['status'] !== 'completed') {
      throw new RamferryError('failed', 'SAVE_FAILED', `QEMU could not save its guest: ${qemu.errorOutput.trim()}`);
    }
    return rounded(performance.now() - start);
  } finally {
    await qemu.quit();
  }
}

/** Resolves with how long QEMU takes to load the file by itself, until the guest runs. */
async function loadByQemu(needs: DemoNeeds, options: DemoQemuOptions, folder: string, file: string): Promise<number> {
  const command = commandLine(needs, options, join(folder, 'loaded.log'));
  const qemu = await QemuProcess.start([...command, '-incoming', 'defer']);
  try {
    return rounded(await runIncoming(qemu, `file:${file}`, { capabilities: ['mapped-ram'] }));
  } finally {
    await qemu.quit();
  }
}

interface Figures {
  readonly qemu: string;
  readonly memory: number;
  readonly saveMs: number;
  /** From `migrate-incoming` to a guest that runs, of each clone. */
  readonly resumeMs: readonly number[];
  /** From the moment at which the last clone's QEMU took commands to the moment at which all ran. */
  readonly runMs: number;
  /** The same as `resumeMs` of a QEMU that loads the file by itself. */
  readonly loadMs: number;
  readonly checked: number;
  /** Pages that each clone found wrong. */
  readonly bad: readonly number[];
}

const result = (figures: Figures): VerbResult => {
  const { memory, saveMs, loadMs, resumeMs, runMs, checked, bad } = figures;
  const verified = bad.every((count) => count === 0);
  return {
    document: { ramferry: { clones: { ...figures, verified } } },
    text: formatTable(
      [
        ['guest', `Linux in QEMU ${figures.qemu}, ${formatBytes(memory)}`],
        ['saved by QEMU', formatDuration(saveMs)],
        [
          `${resumeMs.length} clones`,
          `restored in ${resumeMs.map(formatDuration).join(', ')}; all ran after ${formatDuration(runMs)}`,
        ],
        ['loaded by QEMU', `restored in ${formatDuration(loadMs)}`],
        [
          'verifiers of the clones',
          `${verified ? 'good' : 'BAD'}: ${formatCount(checked)} pages checked, ${bad.join(', ')} bad`,
        ],
      ],
      ['left', 'left'],
    ),
    ...(!verified && {
      failure: new RamferryError('failed', 'VERIFICATION_FAILED', `Clones found bad pages: ${bad.join(', ')}.`),
    }),
  };
};

const rounded = (milliseconds: number): number => Math.round(milliseconds * 100) / 100;
