// Output files that appear under their name only when they are complete and on disk (DESIGN section 4).
//
//   open        OUT.ramferry-partial-PID   everything is written here
//   commit      fsync, rename to OUT, fsync of the folder
//   abort       the partial file is removed; whatever OUT was is still there
//   terminate   of its thread: as abort, by whoever watches (watchUnfinishedOutputs)
//   SIGKILL     only a file remains whose name says that it is unfinished

import fs from 'node:fs';
import path from 'node:path';
import { isatty } from 'node:tty';
import { promisify } from 'node:util';
import { RamferryError } from '../memory/errors.js';
import { channelDestroyed, channelError, pipeWithoutReader } from './channel-error.js';

const fsync = (descriptor: number): Promise<void> => promisify(fs.fsync)(descriptor);

/** Guest memory holds the guest's secrets. A file of our own that is replaced passes its mode on. */
const NEW_FILE_MODE = 0o600;

/** Whether a file is what an interrupted run left: even if its content is whole, it may not have reached the disk. */
export const isUnfinishedOutput = (file: string): boolean => /\.ramferry-partial-\d+(-\d+)?$/.test(file);

/** The unfinished files of this thread. */
const unfinished = new Set<string>();
let onUnfinished = (_partials: readonly string[]): void => {};

/**
 * A thread that is terminated runs nothing any more, not even what is registered for its exit. Another one that is told of its
 * unfinished files can remove them then.
 * @param listener gets the paths of all files that this thread has begun and not finished, whenever they change
 */
export const watchUnfinishedOutputs = (listener: (partials: readonly string[]) => void): void => {
  onUnfinished = listener;
};

const noteUnfinished = (partial: string, isUnfinished: boolean): void => {
  if (isUnfinished) {
    unfinished.add(partial);
  } else {
    unfinished.delete(partial);
  }
  onUnfinished([...unfinished]);
};

/** Never touches a file that is there: it may belong to a process with our number in another container. */
const openPartial = (target: string): [partial: string, descriptor: number] => {
  for (let attempt = 1; ; attempt++) {
    const partial = `${target}.ramferry-partial-${process.pid}${attempt === 1 ? '' : `-${attempt}`}`;
    try {
      const descriptor = fs.openSync(partial, 'wx+', NEW_FILE_MODE);
      noteUnfinished(partial, true);
      return [partial, descriptor];
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST') {
        throw error;
      }
    }
  }
};

/** A descriptor of a named pipe, while somebody reads it. */
const findReader = (path: string): number => {
  try {
    return fs.openSync(path, fs.constants.O_WRONLY | fs.constants.O_NONBLOCK);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENXIO') {
      throw pipeWithoutReader(path, path);
    }
    throw error;
  }
};

/** Opens what is no file. A named pipe that nobody reads would keep this thread from everything, until somebody does. */
const openDevice = (path: string, existing: fs.Stats): number => {
  const reader = existing.isFIFO() ? findReader(path) : undefined;
  const descriptor = fs.openSync(path, 'w');
  if (reader !== undefined) {
    fs.closeSync(reader);
  }
  if (isatty(descriptor)) {
    fs.closeSync(descriptor);
    throw new RamferryError('usage', 'IS_TERMINAL', `${path} is a terminal; guest memory is not for reading aloud.`, {
      file: path,
      hint: 'name a file',
    });
  }
  return descriptor;
};

export class OutputFile {
  /** Open for reading and writing, empty. */
  readonly descriptor: number;
  readonly path: string;
  readonly #target: string;
  readonly #partial: string | undefined;
  #isOpen = true;
  readonly #removeAtExit = (): void => this.abort();

  private constructor(descriptor: number, path: string, target: string, partial: string | undefined) {
    this.descriptor = descriptor;
    this.path = path;
    this.#target = target;
    this.#partial = partial;
    process.once('exit', this.#removeAtExit);
  }

  /**
   * Starts a file that shall be `path`. Links of ours are followed. A device or a named pipe cannot be replaced: it is written
   * directly. Throws a `RamferryError`.
   */
  static open(path: string): OutputFile {
    try {
      refuseForeign(path);
      const existing = fs.statSync(path, { throwIfNoEntry: false });
      if (existing?.isDirectory()) {
        throw new RamferryError('usage', 'IS_DIRECTORY', `Cannot write ${path}: it is a directory.`, {
          file: path,
          hint: 'name a file in it',
        });
      }
      if (existing !== undefined && !existing.isFile()) {
        return new OutputFile(openDevice(path, existing), path, path, undefined);
      }
      const target = existing === undefined ? path : fs.realpathSync(path);
      const [partial, descriptor] = openPartial(target);
      if (existing !== undefined) {
        takeOver(descriptor, target, existing);
      }
      return new OutputFile(descriptor, path, target, partial);
    } catch (error) {
      refuseMissingFolder(error, path);
      throw channelError(error, 'write', path);
    }
  }

  /** Whether it is a file of its own until `commit`, which reads as zero where nothing was written: a device is not. */
  get isNew(): boolean {
    return this.#partial !== undefined;
  }

  /** Where it is until `commit`, for who needs further descriptors. */
  get currentPath(): string {
    return this.#partial ?? this.#target;
  }

  /**
   * Makes the file durable and gives it its name. Closes the descriptor. Rejects if `abort` is called while it waits for
   * the disk; once the file has its name nothing waits any more, so that nobody can abort what is done.
   * @param renamed called when the file has its name: what fails after that does not take it back
   */
  async commit(renamed?: () => void): Promise<void> {
    try {
      if (this.#partial !== undefined) {
        await fsync(this.descriptor);
        this.#throwIfAborted();
        fs.renameSync(this.#partial, this.#target);
        noteUnfinished(this.#partial, false);
        renamed?.();
        syncFolder(path.dirname(this.#target));
      } else {
        await this.#syncDevice();
      }
      this.#close();
    } catch (error) {
      this.#throwIfAborted();
      this.abort();
      throw channelError(error, 'finish', this.path);
    }
  }

  /** A block device keeps what is written to it; a pipe or a terminal has no disk behind it, and says so. */
  async #syncDevice(): Promise<void> {
    try {
      await fsync(this.descriptor);
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      if (code !== 'EINVAL' && code !== 'EROFS' && code !== 'ENOTSUP') {
        throw error;
      }
    }
    this.#throwIfAborted();
  }

  #throwIfAborted(): void {
    if (!this.#isOpen) {
      throw channelDestroyed(this.path);
    }
  }

  /** Leaves everything as it was. Does nothing after `commit`, or the second time. */
  abort(): void {
    if (this.#isOpen) {
      this.#close();
      if (this.#partial !== undefined) {
        fs.rmSync(this.#partial, { force: true });
        noteUnfinished(this.#partial, false);
      }
    }
  }

  #close(): void {
    this.#isOpen = false;
    process.off('exit', this.#removeAtExit);
    fs.closeSync(this.descriptor);
  }
}

/** "No such file" would be no news of a file that is to be made. */
const refuseMissingFolder = (error: unknown, file: string): void => {
  const folder = path.dirname(file);
  if ((error as NodeJS.ErrnoException).code === 'ENOENT' && !fs.existsSync(folder)) {
    throw new RamferryError('failed', 'NOT_FOUND', `Cannot write ${file}: there is no folder ${folder}.`, {
      file,
      cause: error,
    });
  }
};

/** Who we are to the file system; undefined where that means nothing. */
const ownUser = (): number | undefined => process.geteuid?.();

const isOthers = (uid: number): boolean => uid !== 0 && uid !== ownUser();

/**
 * A link or a named pipe that another user put there decides where guest memory goes, or reads it. Linux refuses most of this in
 * /tmp by itself; where it is told not to, and in other folders, we do.
 */
const refuseForeign = (file: string): void => {
  if (ownUser() === undefined) {
    return;
  }
  // Each link on the way, however long it is: the system has said already that it ends.
  for (let at = file; ; ) {
    const found = fs.lstatSync(at, { throwIfNoEntry: false });
    if (found === undefined || !(found.isSymbolicLink() || found.isFIFO())) {
      return;
    }
    if (isOthers(found.uid)) {
      const what = found.isFIFO() ? 'named pipe' : 'symbolic link';
      throw new RamferryError(
        'failed',
        'FOREIGN_OUTPUT',
        `Cannot write ${file}: ${at} is a ${what} of user ${found.uid}.`,
        {
          file,
          value: found.uid,
          hint: 'remove it, or name a file in a folder of your own',
        },
      );
    }
    if (found.isFIFO() || fs.statSync(at, { throwIfNoEntry: false }) === undefined) {
      return;
    }
    at = path.resolve(path.dirname(at), fs.readlinkSync(at));
  }
};

/** Whether nobody else can have put the file there: neither by another name for it, nor by moving it. */
const isOurs = (target: string, { uid, nlink }: fs.Stats): boolean => {
  const folder = fs.statSync(path.dirname(target));
  const othersMayMove = (folder.mode & 0o022) !== 0 && (folder.mode & 0o1000) === 0;
  return uid === ownUser() && nlink === 1 && !isOthers(folder.uid) && !othersMayMove;
};

/**
 * A file of our own passes on who may read it. One of another user does not: guest memory would be theirs, and that they could
 * have overwritten it does not mean that they may read it.
 */
const takeOver = (descriptor: number, target: string, existing: fs.Stats): void => {
  if (ownUser() !== undefined && !isOurs(target, existing)) {
    return;
  }
  try {
    fs.fchownSync(descriptor, existing.uid, existing.gid);
  } catch {
    // Of a group that we have left since: it keeps ours, which nobody has said may read it.
    return;
  }
  fs.fchmodSync(descriptor, existing.mode & 0o777);
};

/** Makes a rename durable. Some file systems cannot sync a folder; then there is nothing more to do. */
export const syncFolder = (folder: string): void => {
  const descriptor = fs.openSync(folder, 'r');
  try {
    fs.fsyncSync(descriptor);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EINVAL') {
      throw error;
    }
  } finally {
    fs.closeSync(descriptor);
  }
};
