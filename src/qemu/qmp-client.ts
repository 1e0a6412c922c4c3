// A client of QEMU's monitor protocol (QMP): one JSON object per line, replies matched to commands by id, events
// anywhere in between (spec/field.md 4.1).

import { connect, type NetConnectOpts, type Socket } from 'node:net';
import { connectAddress } from '../channel/open-channel-node.js';
import { parseUri, usageError } from '../channel/uri.js';
import { RamferryError } from '../memory/errors.js';
import type { QmpCommands } from './qmp-commands.js';

/** A command that QEMU refused or that failed there. */
export class QmpCommandError extends RamferryError {
  readonly command: string;
  /** QMP's error class: `GenericError`, `CommandNotFound`, … */
  readonly errorClass: string;
  /** QEMU's own sentence. */
  readonly description: string;

  constructor(command: string, errorClass: string, description: string, peer: string) {
    super('failed', 'QMP_COMMAND_FAILED', `QEMU refused ${command}: ${description}`, {
      file: peer,
      value: errorClass,
    });
    this.command = command;
    this.errorClass = errorClass;
    this.description = description;
  }
}

export interface QmpEvent {
  readonly event: string;
  readonly data: Readonly<Record<string, unknown>>;
  /** QEMU's clock, in milliseconds since the epoch, with microseconds as the fraction. */
  readonly timestampMs: number;
}

export interface QemuVersion {
  readonly major: number;
  readonly minor: number;
  readonly micro: number;
}

export interface QmpConnectOptions {
  /** How long connecting and the greeting may take. A monitor serves one client: a second one waits for the first to leave. */
  readonly timeoutMs?: number;
}

export interface QmpExecuteOptions {
  readonly timeoutMs?: number;
}

export interface QmpWaitOptions {
  readonly timeoutMs?: number;
  /** Only an event for which this is true counts. */
  readonly where?: (event: QmpEvent) => boolean;
}

/**
 * QEMU answers within milliseconds unless its main loop is busy, and it is for seconds when it copies memory to a slow
 * disk; a dead monitor (spec/qemu-lab.md C) never answers.
 */
const DEFAULT_TIMEOUT_MS = 60_000;

/** The longest known reply, `query-qmp-schema`, is below 1 MiB. */
const MAXIMUM_LINE_CHARACTERS = 16 * 1024 * 1024;

interface PendingCommand {
  readonly command: string;
  readonly timer: NodeJS.Timeout;
  resolve(result: unknown): void;
  reject(error: Error): void;
}

type JsonObject = Readonly<Record<string, unknown>>;

/** Everything a line from QEMU may be: greeting, event, reply. Only QEMU's word for it, so nothing is sure to be there. */
interface Message {
  readonly QMP?: { readonly version?: { readonly qemu?: Partial<QemuVersion> } };
  readonly event?: string;
  readonly data?: JsonObject;
  readonly timestamp?: { readonly seconds?: number; readonly microseconds?: number };
  readonly id?: number;
  readonly return?: unknown;
  readonly error?: { readonly class?: string; readonly desc?: string };
}

/** Undefined for what is no JSON object. */
const parseMessage = (line: string): Message | undefined => {
  try {
    const value: unknown = JSON.parse(line);
    return typeof value === 'object' && value !== null ? value : undefined;
  } catch {
    return undefined;
  }
};

/** Where a monitor listens, of the addresses that channels know. */
const monitorAddress = (uri: string): NetConnectOpts => {
  const endpoint = parseUri(uri);
  if (endpoint.kind === 'unix') {
    return { path: endpoint.path };
  }
  if (endpoint.kind === 'tcp') {
    return connectAddress(endpoint);
  }
  throw usageError(
    uri,
    'a monitor is reached through unix: or tcp:',
    'start QEMU with "-qmp unix:PATH,server=on,wait=off" and give unix:PATH',
  );
};

/** A negotiated connection to one QEMU's monitor. */
export class QmpClient {
  /** The address it was connected to. */
  readonly peer: string;
  /** Resolves when the connection is gone, for whatever reason; never rejects. */
  readonly closed: Promise<void>;

  readonly #socket: Socket;
  readonly #pending = new Map<number, PendingCommand>();
  readonly #listeners = new Set<(event: QmpEvent) => void>();
  /** Told once, when nothing more can come. */
  readonly #enders = new Set<(error: Error) => void>();
  #nextId = 1;
  #line = '';
  #version: QemuVersion | undefined;
  #greeted: (() => void) | undefined;
  #ended: Error | undefined;

  private constructor(socket: Socket, peer: string) {
    this.#socket = socket;
    this.peer = peer;
    this.closed = new Promise((resolve) => socket.once('close', () => resolve()));
    socket.setEncoding('utf8');
    socket.on('data', (chunk) => this.#received(String(chunk)));
    socket.once('error', (error) =>
      this.#end(this.#failure('QMP_CONNECTION', `The monitor connection failed: ${error.message}.`, error)),
    );
    socket.once('close', () => this.#end(this.#failure('QMP_CLOSED', 'QEMU closed the monitor connection.')));
  }

  /** Connects, reads the greeting and leaves capability negotiation mode. */
  static async connect(uri: string, options: QmpConnectOptions = {}): Promise<QmpClient> {
    return QmpClient.negotiate(connect(monitorAddress(uri)), uri, options);
  }

  /** The same over a socket that is or will be connected; `peer` is what errors call the other end. */
  static async negotiate(socket: Socket, peer: string, options: QmpConnectOptions = {}): Promise<QmpClient> {
    const timeoutMs = options.timeoutMs ?? DEFAULT_TIMEOUT_MS;
    const client = new QmpClient(socket, peer);
    let timer: NodeJS.Timeout | undefined;
    try {
      await new Promise<void>((resolve, reject) => {
        client.#greeted = resolve;
        client.#enders.add(reject);
        timer = setTimeout(
          () => reject(client.#failure('QMP_TIMEOUT', `No QMP greeting came from ${peer} within ${timeoutMs} ms.`)),
          timeoutMs,
        );
      });
      await client.execute('qmp_capabilities', undefined, { timeoutMs });
    } catch (error) {
      client.#socket.destroy();
      throw error;
    } finally {
      clearTimeout(timer);
    }
    return client;
  }

  /** QEMU's version, from the greeting. */
  get version(): QemuVersion {
    return this.#version!;
  }

  /**
   * Sends a command and resolves with its `return` value. Throws `QmpCommandError` if QEMU answers with an error, a
   * `RamferryError` QMP_TIMEOUT, QMP_CLOSED, QMP_CONNECTION or QMP_PROTOCOL if no answer came.
   */
  execute<Name extends keyof QmpCommands>(
    command: Name,
    ...rest: QmpCommands[Name]['arguments'] extends undefined
      ? [argumentsObject?: undefined, options?: QmpExecuteOptions]
      : [argumentsObject: QmpCommands[Name]['arguments'], options?: QmpExecuteOptions]
  ): Promise<QmpCommands[Name]['result']>;
  execute<Name extends string>(
    command: Name extends keyof QmpCommands ? never : Name,
    argumentsObject?: JsonObject,
    options?: QmpExecuteOptions,
  ): Promise<unknown>;
  execute(command: string, argumentsObject?: JsonObject, options: QmpExecuteOptions = {}): Promise<unknown> {
    if (this.#ended !== undefined) {
      return Promise.reject(this.#ended);
    }
    const timeoutMs = options.timeoutMs ?? DEFAULT_TIMEOUT_MS;
    const id = this.#nextId++;
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        // The late answer, should it come, finds no pending command and is dropped.
        this.#pending.delete(id);
        reject(this.#failure('QMP_TIMEOUT', `QEMU did not answer ${command} within ${timeoutMs} ms.`));
      }, timeoutMs);
      this.#pending.set(id, { command, timer, resolve, reject });
      this.#socket.write(`${JSON.stringify({ execute: command, arguments: argumentsObject, id })}\n`);
    });
  }

  /**
   * Resolves with the next event of that name. Only events after this call count, so call it before the command that
   * causes the event and await it afterwards; it is safe to never await it.
   */
  waitEvent(name: string, options: QmpWaitOptions = {}): Promise<QmpEvent> {
    if (this.#ended !== undefined) {
      return Promise.reject(this.#ended);
    }
    const timeoutMs = options.timeoutMs ?? DEFAULT_TIMEOUT_MS;
    const result = new Promise<QmpEvent>((resolve, reject) => {
      const stop = (): void => {
        clearTimeout(timer);
        stopListening();
        this.#enders.delete(ended);
      };
      const ended = (error: Error): void => {
        stop();
        reject(error);
      };
      const timer = setTimeout(
        () => ended(this.#failure('QMP_TIMEOUT', `No event ${name} came within ${timeoutMs} ms.`)),
        timeoutMs,
      );
      const stopListening = this.onEvent((event) => {
        if (event.event === name && (options.where?.(event) ?? true)) {
          stop();
          resolve(event);
        }
      });
      this.#enders.add(ended);
    });
    result.catch(() => {});
    return result;
  }

  /** Calls `listener` for every event from now on; returns the function that ends this. */
  onEvent(listener: (event: QmpEvent) => void): () => void {
    this.#listeners.add(listener);
    return () => {
      this.#listeners.delete(listener);
    };
  }

  /** Leaves the monitor; QEMU itself runs on. Commands still under way are rejected. */
  async close(): Promise<void> {
    this.#end(this.#failure('QMP_CLOSED', 'The monitor connection was closed.'));
    await this.closed;
  }

  #failure(code: string, message: string, cause?: unknown): RamferryError {
    return new RamferryError('failed', code, message, { file: this.peer, cause });
  }

  #end(error: Error): void {
    if (this.#ended !== undefined) {
      return;
    }
    this.#ended = error;
    this.#socket.destroy();
    for (const { timer, reject } of this.#pending.values()) {
      clearTimeout(timer);
      reject(error);
    }
    this.#pending.clear();
    for (const ended of [...this.#enders]) {
      ended(error);
    }
  }

  #received(chunk: string): void {
    const lines = (this.#line + chunk).split('\n');
    this.#line = lines.pop()!;
    if (this.#line.length > MAXIMUM_LINE_CHARACTERS) {
      this.#end(
        this.#failure(
          'QMP_PROTOCOL',
          `A line of more than ${MAXIMUM_LINE_CHARACTERS} characters came from ${this.peer}.`,
        ),
      );
      return;
    }
    for (const line of lines) {
      if (this.#ended === undefined && line.trim() !== '') {
        this.#message(line);
      }
    }
  }

  #message(line: string): void {
    const message = parseMessage(line);
    if (message === undefined) {
      this.#end(this.#failure('QMP_PROTOCOL', `${this.peer} does not speak QMP: '${line.slice(0, 60)}'.`));
    } else if (message.event !== undefined) {
      this.#event(message.event, message);
    } else if (message.QMP !== undefined) {
      const { major = 0, minor = 0, micro = 0 } = message.QMP.version?.qemu ?? {};
      this.#version = { major, minor, micro };
      this.#greeted?.();
    } else {
      this.#reply(message, line);
    }
  }

  #event(event: string, { timestamp, data = {} }: Message): void {
    const timestampMs = (timestamp?.seconds ?? 0) * 1000 + (timestamp?.microseconds ?? 0) / 1000;
    for (const listener of [...this.#listeners]) {
      listener({ event, data, timestampMs });
    }
  }

  #reply({ id, error, return: result }: Message, line: string): void {
    if (id === undefined) {
      // QEMU leaves the id out only when it could not parse what we sent: nothing can be matched from here on.
      this.#end(this.#failure('QMP_PROTOCOL', `${this.peer} sent a reply without id: '${line.slice(0, 200)}'.`));
      return;
    }
    const pending = this.#pending.get(id);
    if (pending === undefined) {
      return;
    }
    this.#pending.delete(id);
    clearTimeout(pending.timer);
    if (error === undefined) {
      pending.resolve(result);
    } else {
      pending.reject(new QmpCommandError(pending.command, error.class ?? '', error.desc ?? '', this.peer));
    }
  }
}
