// An output that is a folder of files, under the same rule as a single output file (channel/output-file-node.ts): it has
// its name only when everything in it is complete and on disk.

import fs from 'node:fs';
import path from 'node:path';
import { channelError } from '../channel/channel-error.js';
import { syncFolder } from '../channel/output-file-node.js';
import { RamferryError } from '../memory/errors.js';

/** Guest memory holds the guest's secrets; the folder has 0700 from its making. */
const FILE_MODE = 0o600;

export class OutputFolder {
  readonly path: string;
  readonly #target: string;
  readonly #partial: string;
  readonly #files: number[] = [];
  #isOpen = true;
  readonly #removeAtExit = (): void => this.abort();

  private constructor(folder: string, target: string, partial: string) {
    this.path = folder;
    this.#target = target;
    this.#partial = partial;
    process.once('exit', this.#removeAtExit);
  }

  /**
   * Starts a folder that shall be `folder`; one that is there must be empty.
   * @throws RamferryError
   */
  static open(folder: string): OutputFolder {
    try {
      const exists = fs.existsSync(folder);
      if (exists && (!fs.statSync(folder).isDirectory() || fs.readdirSync(folder).length > 0)) {
        throw new RamferryError('usage', 'OUTPUT_EXISTS', `${folder} is there already, and is not an empty folder.`, {
          file: folder,
          hint: 'name a folder that does not exist',
        });
      }
      // Without the slash that a shell completes a folder's name with.
      const target = exists ? fs.realpathSync(folder) : path.resolve(folder);
      return new OutputFolder(folder, target, fs.mkdtempSync(`${target}.ramferry-partial-${process.pid}-`));
    } catch (error) {
      throw channelError(error, 'write', folder);
    }
  }

  /** Creates a file in it, open for writing until `commit` or `abort`. */
  create(name: string): number {
    try {
      const descriptor = fs.openSync(path.join(this.#partial, name), 'wx', FILE_MODE);
      this.#files.push(descriptor);
      return descriptor;
    } catch (error) {
      throw channelError(error, 'write', path.join(this.path, name));
    }
  }

  /** Makes everything durable and gives the folder its name. */
  commit(): void {
    try {
      for (const descriptor of this.#files) {
        fs.fsyncSync(descriptor);
      }
      syncFolder(this.#partial);
      // Replaces an empty folder, and nothing else.
      fs.renameSync(this.#partial, this.#target);
      this.#close();
      syncFolder(path.dirname(this.#target));
    } catch (error) {
      this.abort();
      throw channelError(error, 'finish', this.path);
    }
  }

  /** Leaves everything as it was. Does nothing after `commit`, or the second time. */
  abort(): void {
    if (this.#isOpen) {
      this.#close();
      fs.rmSync(this.#partial, { recursive: true, force: true });
    }
  }

  #close(): void {
    this.#isOpen = false;
    process.off('exit', this.#removeAtExit);
    for (const descriptor of this.#files) {
      fs.closeSync(descriptor);
    }
  }
}
