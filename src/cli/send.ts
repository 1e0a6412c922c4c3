// `ramferry send FILE URI`: a saved guest as the source of a migration.

import { existsSync } from 'node:fs';
import type { Command } from 'commander';
import { parseUri } from '../channel/uri.js';
import { RamferryError } from '../memory/errors.js';
import { sidecarPath } from '../memory-file/digest-sidecar-node.js';
import { memoryFile } from '../memory-file/open-snapshot-file-node.js';
import { Migration } from '../migration/migration.js';
import { parseInteger } from './arguments.js';
import { Destination, QMP_OPTION } from './destination.js';
import { checkDigest } from './digest-sidecar.js';
import { pathsOfUri } from './files-of-run.js';
import { addSendingOptions, type MigrationVerbOptions, parametersOf, traceOf } from './migration-options.js';
import { parameterTable, progressOf, totalsTable } from './migration-report.js';
import { readWholeMemoryFile, type Surroundings } from './read-memory-file.js';
import type { Verb } from './verb.js';

interface SendOptions extends MigrationVerbOptions {
  readonly returnPath: boolean;
  readonly retry: number;
  readonly digest: boolean;
  readonly run?: boolean;
  readonly qmp?: string;
}

export const send: Verb<SendOptions> = {
  configure: (command: Command) => {
    addSendingOptions(command, { maxBandwidth: 0 })
      .option('--no-return-path', 'do not have the destination confirm; always so for exec:')
      .option(
        '--retry <seconds>',
        'wait this long for a destination that does not listen yet',
        parseInteger(0, 86_400),
        0,
      )
      .option('--run', 'the guest is to run there, also if it was saved while paused')
      .option(...QMP_OPTION)
      .option('--no-digest', 'do not check the file against FILE.digest first, where that is there');
  },
  examples: [
    ['guest.mig tcp:host2:4444', 'into a QEMU started with -incoming tcp:0:4444'],
    ['guest.mig unix:/run/in.sock --retry 10', 'and wait up to 10 s for it to listen'],
    ['guest.mig tcp:host2:4444 --max-bandwidth 100M --json', 'with at most 100 MiB/s, and a JSON report'],
    ['guest.mig \'exec:ssh host2 "cat > guest.mig"\'', 'as a file on another host'],
  ],

  files: ([file, uri]) => ({ reads: [memoryFile(file!).path], writes: pathsOfUri(uri!, 'write') }),

  async run({ operands, options, signal, progress }) {
    const [file, uri] = operands as [string, string];
    const { kind } = parseUri(uri);
    if (kind === 'file' || kind === 'stdio') {
      throw new RamferryError(
        'usage',
        'NOT_A_DESTINATION',
        `${uri} is not a destination that a guest can be sent to.`,
        {
          value: uri,
          hint: 'send goes to tcp:, unix:, exec: or fd:; a memory file is copied with cp',
        },
      );
    }
    if (options.digest) {
      await refuseChanged(file, { signal, progress });
    }
    const returnPath = options.returnPath && kind !== 'exec';
    const destination = await Destination.open(uri, options.qmp);
    const migration = new Migration({
      guest: { kind: 'snapshot-file', file, run: options.run === true },
      uri,
      parameters: parametersOf(options),
      returnPath,
      retryMs: options.retry * 1000,
      onProgress: (report) => progress.update(progressOf(report)),
      onGuest: (guest) => destination.expect(guest),
      ...traceOf(options.trace, progress),
    });
    signal.addEventListener('abort', () => migration.cancel());
    try {
      const { report, error } = await migration.ended;
      const state = await destination.stateAfter(error, returnPath);
      const parameters = options.verbose === true ? `${parameterTable(report)}\n` : '';
      return {
        document: { file, uri, ...report, destination: state.document },
        text: error !== undefined ? '' : `${parameters}${totalsTable(report)}\n${state.text}`,
        failure: state.failure,
      };
    } finally {
      await destination.close();
    }
  },
};

/** A guest that is not what was saved crashes later and elsewhere: nothing of it is sent. */
const refuseChanged = async (operand: string, surroundings: Surroundings): Promise<void> => {
  if (!existsSync(sidecarPath(memoryFile(operand).path))) {
    return;
  }
  const opened = await readWholeMemoryFile(operand, surroundings);
  try {
    const check = await checkDigest(opened, opened.snapshot, surroundings);
    if (check?.notChecked !== undefined) {
      surroundings.progress.note(`warning: ${check.notChecked}`);
    }
    if (check !== undefined && check.mismatches.length > 0) {
      throw check.mismatches[0];
    }
  } finally {
    opened.close();
  }
};
