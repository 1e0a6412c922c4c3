// Temporary files without a name: they are gone with their last descriptor, however their processes end.

import fs from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { channelError } from './channel-error.js';

/** What such a file is called in errors. */
export const UNNAMED_FILE = 'a temporary file';

let count = 0;

/**
 * An empty file, open for reading and writing, in `folder` (default: the system's for temporary files).
 * @throws RamferryError
 */
export const openUnnamedFile = (folder: string = tmpdir()): number => {
  const name = path.join(folder, `.ramferry-${process.pid}-${Date.now()}-${count++}`);
  try {
    const descriptor = fs.openSync(name, 'wx+', 0o600);
    fs.unlinkSync(name);
    return descriptor;
  } catch (error) {
    throw channelError(error, 'create', name);
  }
};

/** Another descriptor of an open file, read-only, with a position of its own. */
export const reopen = (descriptor: number): number => fs.openSync(openPath(descriptor), 'r');

/** A path by which this process can open it again, named or not. */
export const openPath = (descriptor: number): string => `/proc/self/fd/${descriptor}`;
