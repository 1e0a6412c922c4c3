// The processes that the demo moves its guest to, as the demo sees them, and a migration to one. What runs there:
// destination.ts, restored.ts.

import { type ChildProcess, fork } from 'node:child_process';
import type { WorkloadGuest } from '../../guest/workload/workload-guest-node.js';
import { RamferryError } from '../../memory/errors.js';
import { Migration, type MigrationEnd, type MigrationOptions } from '../../migration/migration.js';
import { type PlainError, ramferryError } from '../../migration/source-messages.js';
import { divergence, progressOf } from '../migration-report.js';
import type { Invocation } from '../verb.js';
import type { FromDemoDestination, ToDemoDestination } from './destination.js';

/** What a process may say. */
type Message = { readonly type: string } | { readonly type: 'failed'; readonly error: PlainError };

export class DemoProcess<To extends object, From extends Message> {
  readonly #child: ChildProcess;

  constructor(program: URL) {
    this.#child = fork(program, { stdio: ['ignore', 2, 2, 'ipc'] });
  }

  post(message: To): void {
    this.#child.send(message);
  }

  /** Resolves with the next message of this type; rejects if the process fails or ends. */
  next<Type extends From['type']>(type: Type): Promise<Extract<From, { type: Type }>> {
    return new Promise((resolve, reject) => {
      const settle = (action: () => void): void => {
        this.#child.off('message', received);
        this.#child.off('exit', exited);
        action();
      };
      const received = (message: From): void => {
        if ('error' in message) {
          settle(() => reject(ramferryError(message.error)));
        } else if (message.type === type) {
          settle(() => resolve(message as Extract<From, { type: Type }>));
        }
      };
      const exited = (): void =>
        settle(() =>
          reject(new RamferryError('failed', 'DESTINATION_DIED', 'The process of the destination ended unexpectedly.')),
        );
      this.#child.on('message', received);
      this.#child.on('exit', exited);
    });
  }

  end(): void {
    this.#child.removeAllListeners();
    this.#child.kill();
  }
}

export class DemoDestination extends DemoProcess<ToDemoDestination, FromDemoDestination> {
  constructor() {
    super(new URL('./destination.js', import.meta.url));
  }
}

export interface DemoMigrationOptions extends Pick<MigrationOptions, 'parameters' | 'trace'> {
  readonly uri: string;
  /** How the migration is called while it runs. */
  readonly name: string;
  readonly wantsHints: boolean;
  /** What the destination is told beforehand. */
  readonly prepare: Omit<Extract<ToDemoDestination, { type: 'prepare' }>, 'type' | 'uri'>;
}

/** Migrates the running guest. If that succeeds, it runs there and is stopped here. */
export async function migrateTo(
  destination: DemoDestination,
  guest: WorkloadGuest,
  { progress, signal }: Pick<Invocation<unknown>, 'progress' | 'signal'>,
  { uri, name, wantsHints, prepare, ...options }: DemoMigrationOptions,
): Promise<MigrationEnd> {
  signal.throwIfAborted();
  const listening = destination.next('listening');
  destination.post({ type: 'prepare', uri, ...prepare });
  await listening;
  const running = destination.next('running');
  // It is awaited below; if the migration fails first, that is the failure to report.
  running.catch(() => {});
  let warned = false;
  const migration = new Migration({
    ...options,
    guest: { kind: 'workload', shared: guest.share(), wantsHints },
    blocks: guest.blocks,
    uri,
    onProgress: (report) => {
      const warning = warned ? undefined : divergence(report);
      if (warning !== undefined) {
        warned = true;
        progress.note(`warning: ${warning}`);
      }
      const state = progressOf(report);
      progress.update({ ...state, phase: `${name}: ${state.phase}` });
    },
  });
  const cancel = (): void => {
    migration.cancel();
  };
  signal.addEventListener('abort', cancel);
  const end = await migration.ended.finally(() => signal.removeEventListener('abort', cancel));
  for (const warning of end.report.ramferry.warnings) {
    progress.note(`warning: ${warning}`);
  }
  if (end.error === undefined) {
    await running;
  }
  return end;
}
