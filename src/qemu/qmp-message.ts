// What a line from a monitor may be. Whoever listens at the monitor's address writes it, and that need not be a QEMU: every field
// is looked at here, so that nobody behind has to.

import { parseJson } from '../format/parse-json.js';
import type { QmpCommands } from './qmp-commands.js';

type JsonObject = Readonly<Record<string, unknown>>;

export type QmpMessage =
  | {
      readonly kind: 'greeting';
      readonly version: { readonly major: number; readonly minor: number; readonly micro: number };
    }
  | { readonly kind: 'event'; readonly event: string; readonly data: JsonObject; readonly timestampMs: number }
  /** QEMU leaves the id out only when it could not parse what we sent. */
  | { readonly kind: 'result'; readonly id: number | undefined; readonly result: unknown }
  | {
      readonly kind: 'error';
      readonly id: number | undefined;
      readonly errorClass: string;
      readonly description: string;
    };

/** Says which field is not what it has to be. */
class Malformed extends Error {}

const isObject = (value: unknown): value is JsonObject =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

/** A field that has to be there, or may be missing where there is a value for that case. */
type Check<Value> = (value: unknown, field: string) => Value;

const required =
  <Value>(is: (value: unknown) => value is Value): Check<Value> =>
  (value, field) => {
    if (!is(value)) {
      throw new Malformed(field);
    }
    return value;
  };

const optional =
  <Value, Default>(check: Check<Value>, missing: Default): Check<Value | Default> =>
  (value, field) =>
    value === undefined ? missing : check(value, field);

const object = required(isObject);
const text = required((value): value is string => typeof value === 'string');
const flag = required((value): value is boolean => typeof value === 'boolean');
const number = required((value): value is number => typeof value === 'number' && Number.isFinite(value));

const list =
  (check: Check<unknown>): Check<readonly unknown[]> =>
  (value, field) => {
    if (!Array.isArray(value)) {
      throw new Malformed(field);
    }
    for (const [index, element] of value.entries()) {
      check(element, `${field}[${index}]`);
    }
    return value;
  };

/** The named fields; others may be there, of a newer QEMU for example. */
const record =
  (fields: Readonly<Record<string, Check<unknown>>>): Check<JsonObject> =>
  (value, field) => {
    const found = object(value, field);
    for (const [name, check] of Object.entries(fields)) {
      check(found[name], field === '' ? name : `${field}.${name}`);
    }
    return found;
  };

const numbers = (...names: readonly string[]): Readonly<Record<string, Check<unknown>>> =>
  Object.fromEntries(names.map((name) => [name, number]));

const optionalNumbers = (...names: readonly string[]): Readonly<Record<string, Check<unknown>>> =>
  Object.fromEntries(names.map((name) => [name, optional(number, undefined)]));

/** What the commands of `QmpCommands` return; whatever is not said here is `{}`. */
const results: Readonly<Partial<Record<keyof QmpCommands, Check<unknown>>>> = {
  'query-status': record({ status: text, running: flag }),
  'query-migrate': record({
    status: optional(text, undefined),
    'error-desc': optional(text, undefined),
    ...optionalNumbers('total-time', 'downtime', 'expected-downtime', 'setup-time'),
    ram: optional(
      record({
        ...numbers('total', 'remaining', 'transferred'),
        ...optionalNumbers('duplicate', 'normal', 'normal-bytes', 'page-size', 'dirty-sync-count'),
        ...optionalNumbers('dirty-pages-rate', 'mbps', 'postcopy-requests'),
      }),
      undefined,
    ),
    'xbzrle-cache': optional(record(numbers('cache-size', 'bytes', 'pages', 'cache-miss', 'overflow')), undefined),
    'socket-address': optional(
      list(record({ type: text, host: optional(text, undefined), port: optional(text, undefined) })),
      undefined,
    ),
  }),
  'query-migrate-capabilities': list(record({ capability: text, state: flag })),
  'query-migrate-parameters': object,
};

const commands: ReadonlySet<string> = new Set<keyof QmpCommands>([
  'migrate-set-capabilities',
  'migrate-set-parameters',
  'migrate',
  'migrate-incoming',
  'migrate_cancel',
  'migrate-continue',
  'stop',
  'cont',
  'quit',
]);

/** Returns the field of a command's result that is not what it has to be; undefined if all are. */
export const resultFault = (command: string, result: unknown): string | undefined =>
  faultOf(() => {
    const check = (results as Readonly<Record<string, Check<unknown>>>)[command];
    (check ?? (commands.has(command) ? object : (): void => {}))(result, '');
  });

const faultOf = (look: () => void): string | undefined => {
  try {
    look();
    return undefined;
  } catch (error) {
    if (error instanceof Malformed) {
      return error.message === '' ? 'return' : `return.${error.message}`;
    }
    throw error;
  }
};

/** The message of a line, or the field of it that is not what it has to be; `''` for what is no JSON object at all. */
export const parseMessage = (line: string): QmpMessage | string => {
  try {
    return read(parseJson(line));
  } catch (error) {
    if (error instanceof Malformed) {
      return error.message;
    }
    if (error instanceof SyntaxError) {
      return '';
    }
    throw error;
  }
};

const read = (value: unknown): QmpMessage => {
  const message = object(value, '');
  if (message['event'] !== undefined) {
    const { seconds, microseconds } = optional(record(optionalNumbers('seconds', 'microseconds')), {} as JsonObject)(
      message['timestamp'],
      'timestamp',
    ) as { readonly seconds?: number; readonly microseconds?: number };
    return {
      kind: 'event',
      event: text(message['event'], 'event'),
      data: optional(object, {})(message['data'], 'data'),
      timestampMs: (seconds ?? 0) * 1000 + (microseconds ?? 0) / 1000,
    };
  }
  if (message['QMP'] !== undefined) {
    const { version } = object(message['QMP'], 'QMP');
    const { qemu } = optional(object, {} as JsonObject)(version, 'QMP.version');
    const parts = optional(object, {} as JsonObject)(qemu, 'QMP.version.qemu');
    const part = (name: string): number => optional(number, 0)(parts[name], `QMP.version.qemu.${name}`);
    return { kind: 'greeting', version: { major: part('major'), minor: part('minor'), micro: part('micro') } };
  }
  const id = optional(number, undefined)(message['id'], 'id');
  if (message['error'] !== undefined) {
    const error = object(message['error'], 'error');
    return {
      kind: 'error',
      id,
      errorClass: optional(text, '')(error['class'], 'error.class'),
      description: optional(text, '')(error['desc'], 'error.desc'),
    };
  }
  if (id === undefined && message['return'] === undefined) {
    throw new Malformed('');
  }
  return { kind: 'result', id, result: message['return'] };
};
