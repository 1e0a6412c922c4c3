// The options that every verb has which is the source of a migration, and the trace they print.

import type { Command } from 'commander';
import type { MigrationOptions } from '../monitor/migration.js';
import type { MigrationParameters } from '../source/parameters.js';
import { traceArguments } from '../source/trace.js';
import { parseInteger, parseSize } from './arguments.js';
import type { Progress } from './progress.js';

export interface MigrationVerbOptions {
  readonly maxBandwidth?: number;
  readonly downtimeLimit?: number;
  readonly clearBitmapShift?: number;
  readonly clearBitmap?: boolean;
  readonly autoConverge?: boolean;
  readonly trace?: string;
  readonly verbose?: boolean;
}

/** `--max-bandwidth` and what else goes for any source. */
export const addSendingOptions = (command: Command): Command =>
  command
    .option('--max-bandwidth <bytes>', 'bytes per second at most, such as 512M; 0 is unlimited', parseSize)
    .option('--trace <pattern>', 'print trace events, as QEMU names them: migration_bitmap_*,migrate_set_state')
    .option('--verbose', 'print the parameters in effect');

/** Those that only matter for a guest that runs meanwhile. */
export const addLiveOptions = (command: Command): Command =>
  addSendingOptions(command)
    .option('--downtime-limit <ms>', 'the longest time the guest may stand still', parseInteger(0, 2_000_000))
    .option(
      '--clear-bitmap-shift <n>',
      'log2 of the guest pages whose dirty log is cleared together; clamped to 6..31',
      parseInteger(0, 255),
    )
    .option('--no-clear-bitmap', 'clear the whole dirty log right at every sync')
    .option('--auto-converge', 'slow the guest down if it dirties memory faster than it travels');

/** The migration's parameters, as far as the command line says something of them. */
export const parametersOf = (options: MigrationVerbOptions): Partial<MigrationParameters> => ({
  ...(options.maxBandwidth !== undefined && { maxBandwidth: options.maxBandwidth }),
  ...(options.downtimeLimit !== undefined && { downtimeLimit: options.downtimeLimit }),
  ...(options.clearBitmapShift !== undefined && { clearBitmapShift: options.clearBitmapShift }),
  ...(options.clearBitmap === false && { eagerClear: true }),
  ...(options.autoConverge === true && { autoConverge: true }),
});

/** Sizes, offsets and rates in hexadecimal, as QEMU traces them; counts and times in decimal. */
const hexadecimal = new Set(['start', 'size', 'page']);

/** Prints the events that `--trace` asks for, one a line on stderr. */
export const traceOf = (pattern: string | undefined, progress: Progress): Pick<MigrationOptions, 'trace'> =>
  pattern === undefined
    ? {}
    : {
        trace: {
          pattern,
          listener: (name, values) => {
            const parts = traceArguments[name].map((argument, index) => {
              const value = values[index]!;
              return `${argument} ${hexadecimal.has(argument) && typeof value === 'number' ? `0x${value.toString(16)}` : format(value)}`;
            });
            progress.note([name, ...parts].join(' '));
          },
        },
      };

const format = (value: string | number): string =>
  typeof value === 'number' && !Number.isInteger(value) ? value.toFixed(1) : String(value);
