// Saved guests that run at once in stock QEMU: ramferry plays the source of a postcopy migration from the file.

import assert from 'node:assert/strict';
import { corpusDestination, corpusStream } from './corpus.js';
import { interopTest, type Lab, type LabGuest, type QemuRelease } from './lab.js';
import { Ramferry, type RamferryExit } from './ramferry.js';

const releases: readonly QemuRelease[] = ['10', '7.2'];

const POSTCOPY = { capabilities: { 'postcopy-ram': true } };

interface ServeDocument {
  readonly status: string;
  readonly ram: Record<string, number>;
  readonly ramferry: { readonly postcopy: { readonly demands: number; readonly prefetchedPages: number } };
}

/** The JSON of a verb that succeeded; what went wrong otherwise. */
const document = ({ status, signal, stdout, stderr }: RamferryExit): ServeDocument => {
  assert.deepEqual({ status, signal }, { status: 0, signal: null }, `${stdout}\n${stderr}`);
  return JSON.parse(stdout) as ServeDocument;
};

/** Starts serving a file toward a waiting guest. */
const startServing = async (
  lab: Lab,
  file: string,
  destination: LabGuest,
  ...options: readonly string[]
): Promise<Ramferry> => {
  const uri = `unix:${lab.path('incoming')}`;
  const ramferry = Ramferry.start(lab, 'serve', file, uri, '--json', '--retry', '10', ...options);
  await destination.migrateIncoming(uri, POSTCOPY);
  return ramferry;
};

for (const release of releases) {
  interopTest(`serve: a saved guest of QEMU ${release} runs at once, and all of it arrives`, async (lab) => {
    const { file } = await corpusStream(lab, 'busy', release);
    const destination = await corpusDestination(lab, 'busy', release);
    const serving = await startServing(lab, file, destination, '--no-demand');
    await destination.waitSerial(/^HB/m);
    const { status, ram, ramferry } = document(await serving.exited);
    await destination.waitMigration();
    assert.equal(status, 'completed');
    assert.ok(ramferry.postcopy.demands > 0);
    assert.equal(ram['remaining'], 0);
    assert.equal(await destination.verifyAll(), 0);
  });
}
