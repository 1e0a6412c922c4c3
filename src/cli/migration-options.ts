// The options that every verb has which is the source of a migration, and the trace they print.

import { type Command, Option } from 'commander';
import { CLEAR_BITMAP_SHIFT_DEFAULT } from '../dirty-log/clear-bitmap.js';
import type { MigrationOptions } from '../migration/migration.js';
import type { HintWaitLimit } from '../source/hint-wait.js';
import type { MigrationParameters } from '../source/parameters.js';
import { traceArguments } from '../source/trace.js';
import { parseInteger, parseRate, parseSize } from './arguments.js';
import type { Progress } from './progress.js';

export interface MigrationVerbOptions {
  readonly maxBandwidth?: number;
  readonly downtimeLimit?: number;
  readonly clearBitmapShift?: number;
  readonly clearBitmap?: boolean;
  readonly autoConverge?: boolean;
  readonly hintWait?: HintWaitLimit;
  readonly trace?: string;
  readonly verbose?: boolean;
}

/** What a verb sends with unless told otherwise. */
export interface SendingDefaults {
  readonly maxBandwidth: number;
  readonly downtimeLimit: number;
}

/** An option that takes a size; the help shows the default as it would be typed. */
export const sizeOption = (flags: string, description: string, defaultValue: number): Option =>
  new Option(flags, description).argParser(parseSize).default(defaultValue, typedSize(defaultValue));

/** The same for bytes per second. */
export const rateOption = (flags: string, description: string, defaultValue: number): Option =>
  new Option(flags, description).argParser(parseRate).default(defaultValue, typedSize(defaultValue));

const typedSize = (byteCount: number): string => {
  const exponent = [30, 20, 10].find((bits) => byteCount > 0 && byteCount % 2 ** bits === 0);
  return exponent === undefined
    ? String(byteCount)
    : `${byteCount / 2 ** exponent}${{ 30: 'G', 20: 'M', 10: 'K' }[exponent]}`;
};

/** `--max-bandwidth` and what else goes for any source. */
export const addSendingOptions = (command: Command, defaults: Pick<SendingDefaults, 'maxBandwidth'>): Command =>
  command
    .addOption(rateOption('--max-bandwidth <bytes>', 'bytes per second at most; 0 is unlimited', defaults.maxBandwidth))
    .option('--trace <pattern>', 'print trace events, as QEMU names them: migration_bitmap_*,migrate_set_state')
    .option('--verbose', 'print the parameters in effect');

/** Those that only matter for a guest that runs meanwhile. */
export const addLiveOptions = (command: Command, defaults: SendingDefaults): Command =>
  addSendingOptions(command, defaults)
    .option(
      '--downtime-limit <ms>',
      'the longest time the guest may stand still',
      parseInteger(0, 2_000_000),
      defaults.downtimeLimit,
    )
    .option(
      '--clear-bitmap-shift <n>',
      'log2 of the guest pages whose dirty log is cleared together; clamped to 6..31',
      parseInteger(0, 255),
      CLEAR_BITMAP_SHIFT_DEFAULT,
    )
    .option('--no-clear-bitmap', 'clear the whole dirty log right at every sync')
    .option(
      '--hint-wait <off|auto|ms>',
      'how long to hold back what the guest may be about to hint as free',
      parseHintWait,
      'auto',
    )
    .option('--auto-converge', 'slow the guest down if it dirties memory faster than it travels');

const parseMilliseconds = parseInteger(0, 2_000_000);

const parseHintWait = (text: string): HintWaitLimit =>
  text === 'off' || text === 'auto' ? text : parseMilliseconds(text);

/** The migration's parameters, as far as the command line says something of them. */
export const parametersOf = (options: MigrationVerbOptions): Partial<MigrationParameters> => ({
  ...(options.maxBandwidth !== undefined && { maxBandwidth: options.maxBandwidth }),
  ...(options.downtimeLimit !== undefined && { downtimeLimit: options.downtimeLimit }),
  ...(options.clearBitmapShift !== undefined && { clearBitmapShift: options.clearBitmapShift }),
  ...(options.clearBitmap === false && { eagerClear: true }),
  ...(options.hintWait !== undefined && { hintWaitMs: options.hintWait }),
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
