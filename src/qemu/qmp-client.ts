// A client of QEMU's monitor protocol (QMP): one JSON object per line, replies matched to commands by id, events
// anywhere in between (spec/field.md 4.1).

import { connect, type NetConnectOpts, type Socket } from 'node:net';
import { connectAddress } from '../channel/open-channel-node.js';
import { parseUri, usageError } from '../channel/uri.js';
import { RamferryError } from '../memory/errors.js';
import type { QmpCommands } from './qmp-commands.js';
import { parseMessage, type QmpMessage, resultFault } from './qmp-message.js';

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
  /** The beginning of a line, in the pieces in which it came: joined once, or a slow line would take quadratic time. */
  #line: string[] = [];
  #lineCharacters = 0;
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
    const [rest, ...lines] = chunk.split('\n');
    this.#line.push(rest!);
    this.#lineCharacters += rest!.length;
    for (const next of lines) {
      const line = this.#line.join('');
      this.#line = [next];
      this.#lineCharacters = next.length;
      if (this.#ended === undefined && line.trim() !== '') {
        this.#message(line);
      }
    }
    if (this.#lineCharacters > MAXIMUM_LINE_CHARACTERS) {
      const message = `A line of more than ${MAXIMUM_LINE_CHARACTERS} characters came from ${this.peer}.`;
      this.#end(this.#failure('QMP_PROTOCOL', message));
    }
  }

  #message(line: string): void {
    const message = parseMessage(line);
    if (typeof message === 'string') {
      const field = message === '' ? '' : ` in its field "${message}"`;
      this.#end(this.#failure('QMP_PROTOCOL', `${this.peer} does not speak QMP${field}: '${line.slice(0, 60)}'.`));
      return;
    }
    switch (message.kind) {
      case 'greeting':
        this.#version = message.version;
        this.#greeted?.();
        break;
      case 'event': {
        const { event, data, timestampMs } = message;
        for (const listener of [...this.#listeners]) {
          listener({ event, data, timestampMs });
        }
        break;
      }
      default:
        this.#reply(message, line);
    }
  }

  #reply(message: Exclude<QmpMessage, { kind: 'greeting' | 'event' }>, line: string): void {
    if (message.id === undefined) {
      // Nothing can be matched from here on.
      this.#end(this.#failure('QMP_PROTOCOL', `${this.peer} sent a reply without id: '${line.slice(0, 200)}'.`));
      return;
    }
    const pending = this.#pending.get(message.id);
    if (pending === undefined) {
      return;
    }
    this.#pending.delete(message.id);
    clearTimeout(pending.timer);
    const { command, resolve, reject } = pending;
    if (message.kind === 'error') {
      reject(new QmpCommandError(command, message.errorClass, message.description, this.peer));
      return;
    }
    const fault = resultFault(command, message.result);
    if (fault === undefined) {
      resolve(message.result);
    } else {
      const what = `${this.peer} answers ${command} with a field "${fault}" that no QEMU answers with`;
      reject(this.#failure('QMP_PROTOCOL', `${what}: '${line.slice(0, 200)}'.`));
    }
  }
}
