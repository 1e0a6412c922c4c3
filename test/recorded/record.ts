// `npm run record`: saves every machine of test/interop/machines.ts with its QEMU, and keeps what fits into the repository.

import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { constants, gzipSync } from 'node:zlib';
import { Lab } from '../interop/lab.js';
import { canSave, type Machine, type MachineFormat, machines, saveMachine } from '../interop/machines.js';
import { versionText } from '../interop/releases.js';
import { fillToolbox, openToolbox } from '../toolbox/toolbox.js';
import { type RecordedFile, recordedFolder } from './recorded-files.js';

/** A larger file, mostly holes, would have to be unpacked in every run of the tests. */
const MOST_BYTES = 8 * 2 ** 20;

/** What is larger with gzip is packed with zstd, which finds more in the headers of zero pages. */
const MOST_GZIP_BYTES = 6 * 1024;

/** Which level makes such a file smallest is chance: between 24 and 63 KB for 256 MiB of zero pages. */
const ZSTD_LEVELS = [16, 17, 18, 19];

/** The smallest that zstd makes of a file. */
const zstd = (file: string): Buffer =>
  ZSTD_LEVELS.map((level) => execFileSync('zstd', ['-q', '-c', `-${level}`, '--check', file]))
    .sort((a, b) => a.length - b.length)
    .at(0)!;

const PACKED = /\.(?:gz|zst)$/;

/** Packs a file into the folder; returns the name that it has there. */
const keep = (file: string, name: string): string => {
  const gzip = gzipSync(readFileSync(file), { level: constants.Z_BEST_COMPRESSION });
  const isSmall = gzip.length <= MOST_GZIP_BYTES;
  const target = `${name}${isSmall ? '.gz' : '.zst'}`;
  writeFileSync(join(recordedFolder, target), isSmall ? gzip : zstd(file));
  return target;
};

const record = async (lab: Lab, machine: Machine, format: MachineFormat): Promise<RecordedFile | undefined> => {
  const { release = '10' } = machine;
  const { file, machine: type, block, content } = await saveMachine(lab, machine, format, 3);
  const { version } = await lab.qemu(release);
  if (statSync(file).size > MOST_BYTES) {
    return undefined;
  }
  return {
    file: keep(file, `${machine.name}.${format === 'stream' ? 'mig' : 'mapped'}`),
    format,
    qemu: versionText(version),
    machine: type,
    pageSize: machine.pageSize,
    block,
    bytes: content.length,
    sha256: createHash('sha256').update(content).digest('hex'),
  };
};

const toolbox = openToolbox();
const missing = 'missing' in toolbox ? toolbox.missing : fillToolbox(['qemu-10-others']).get('qemu-10-others');
if ('missing' in toolbox || missing !== undefined) {
  process.stderr.write(`Nothing was recorded: ${missing}\n`);
  process.exit(1);
}
for (const name of readdirSync(recordedFolder).filter((candidate) => PACKED.test(candidate))) {
  rmSync(join(recordedFolder, name));
}
const recorded: RecordedFile[] = [];
const lab = new Lab(toolbox);
try {
  for (const machine of machines) {
    for (const format of (['stream', 'mapped-ram'] as const).filter((each) => canSave(machine, each))) {
      const kept = await record(lab, machine, format);
      process.stdout.write(`${machine.name}, ${format}: ${kept === undefined ? 'too large' : kept.file}\n`);
      recorded.push(...(kept === undefined ? [] : [kept]));
    }
  }
} finally {
  await lab.close();
}
writeFileSync(join(recordedFolder, 'recorded-files.json'), `${JSON.stringify(recorded, undefined, 2)}\n`);
