import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { after, beforeEach, test } from 'node:test';
import type { RamferryError } from '../memory/errors.js';
import { OutputFile } from './output-file-node.js';

const base = fs.mkdtempSync(path.join(os.tmpdir(), 'ramferry-output-'));
after(() => fs.rmSync(base, { recursive: true }));

let folder = base;
let target = '';
beforeEach(() => {
  folder = fs.mkdtempSync(path.join(base, 'x'));
  target = path.join(folder, 'out.mig');
});

const code = (expected: string) => (error: unknown) => (error as RamferryError).code === expected;

test('a new file appears at commit, whole, readable by its owner only', async () => {
  const file = OutputFile.open(target);
  fs.writeSync(file.descriptor, 'content');
  assert.deepEqual(fs.readdirSync(folder), [`out.mig.ramferry-partial-${process.pid}`]);
  await file.commit();
  file.abort();
  assert.deepEqual(fs.readdirSync(folder), ['out.mig']);
  assert.equal(fs.readFileSync(target, 'utf8'), 'content');
  assert.equal(fs.statSync(target).mode & 0o777, 0o600);
  assert.throws(() => fs.fstatSync(file.descriptor), code('EBADF'));
});

test('a file that was there stays until commit, and after abort', async () => {
  fs.writeFileSync(target, 'precious');
  fs.chmodSync(target, 0o640);
  const aborted = OutputFile.open(target);
  fs.writeSync(aborted.descriptor, 'half');
  aborted.abort();
  aborted.abort();
  assert.deepEqual(fs.readdirSync(folder), ['out.mig']);
  assert.equal(fs.readFileSync(target, 'utf8'), 'precious');

  const replaced = OutputFile.open(target);
  fs.writeSync(replaced.descriptor, 'new');
  await replaced.commit();
  assert.equal(fs.readFileSync(target, 'utf8'), 'new');
  assert.equal(fs.statSync(target).mode & 0o777, 0o640);
});

test('aborted while the disk is waited for: no file, and what was there stays', async () => {
  fs.writeFileSync(target, 'precious');
  const file = OutputFile.open(target);
  fs.writeSync(file.descriptor, 'new');
  const committing = file.commit();
  file.abort();
  await assert.rejects(committing, code('CHANNEL_DESTROYED'));
  assert.deepEqual(fs.readdirSync(folder), ['out.mig']);
  assert.equal(fs.readFileSync(target, 'utf8'), 'precious');
});

// MR-21, DESIGN section 4: a crash of the machine leaves the whole file or none
test('content is on disk before the file gets its name, and the name before anybody hears that it is done', async (t) => {
  const file = OutputFile.open(target);
  fs.writeSync(file.descriptor, 'content');
  const steps: string[] = [];
  const noted = (descriptor: number): string =>
    fs.fstatSync(descriptor).ino === fs.statSync(folder).ino ? 'folder synced' : 'file synced';
  const { fsync, fsyncSync, renameSync } = fs;
  t.mock.method(fs, 'fsync', (descriptor: number, done: fs.NoParamCallback) => {
    fsync(descriptor, (error) => {
      steps.push(noted(descriptor));
      done(error);
    });
  });
  t.mock.method(fs, 'fsyncSync', (descriptor: number) => {
    fsyncSync(descriptor);
    steps.push(noted(descriptor));
  });
  t.mock.method(fs, 'renameSync', (from: string, to: string) => {
    renameSync(from, to);
    steps.push(`${path.basename(to)} named`);
  });
  await file.commit();
  assert.deepEqual(steps, ['file synced', 'out.mig named', 'folder synced']);
});

test('a disk that fails to sync the file, or its folder, fails the commit', async (t) => {
  const fault = Object.assign(new Error('EIO'), { code: 'EIO' });
  t.mock.method(fs, 'fsync', (_descriptor: number, done: fs.NoParamCallback) => setImmediate(() => done(fault)), {
    times: 1,
  });
  fs.writeFileSync(target, 'precious');
  await assert.rejects(OutputFile.open(target).commit(), code('IO_ERROR'));
  assert.deepEqual([fs.readdirSync(folder), fs.readFileSync(target, 'utf8')], [['out.mig'], 'precious']);
  t.mock.method(fs, 'fsyncSync', () => {
    throw fault;
  });
  await assert.rejects(OutputFile.open(target).commit(), code('IO_ERROR'));
});

test('a link is followed: what it names is replaced', async () => {
  const link = path.join(folder, 'link');
  fs.writeFileSync(target, 'old');
  fs.symlinkSync('out.mig', link);
  const file = OutputFile.open(link);
  fs.writeSync(file.descriptor, 'new');
  await file.commit();
  assert.ok(fs.lstatSync(link).isSymbolicLink());
  assert.equal(fs.readFileSync(target, 'utf8'), 'new');
});

test('two writers of one file do not meet; a device is written, not replaced', async () => {
  const files = [OutputFile.open(target), OutputFile.open(target)];
  assert.equal(fs.readdirSync(folder).length, 2);
  for (const file of files) {
    file.abort();
  }
  const device = OutputFile.open('/dev/null');
  fs.writeSync(device.descriptor, 'x');
  await device.commit();
  assert.ok(fs.statSync('/dev/null').isCharacterDevice());
});

test('what cannot be written is refused before anything is done, and a failed commit leaves nothing behind', async () => {
  assert.throws(() => OutputFile.open(folder), code('IS_DIRECTORY'));
  assert.throws(() => OutputFile.open(path.join(folder, 'no', 'out')), code('NOT_FOUND'));
  const file = OutputFile.open(target);
  fs.mkdirSync(path.join(folder, 'out.mig', 'occupied'), { recursive: true });
  await assert.rejects(file.commit(), code('IS_DIRECTORY'));
  assert.deepEqual(fs.readdirSync(folder), ['out.mig']);
});

/** A block device of 8 MiB whose disk takes one; undefined where this user cannot make one. */
const fullBlockDevice = (): { device: string; remove: () => void } | undefined => {
  const mount = path.join(folder, 'small');
  const run = (program: string, ...options: readonly string[]): string | undefined => {
    const { status, stdout } = spawnSync(program, options, { encoding: 'utf8' });
    return status === 0 ? stdout.trim() : undefined;
  };
  fs.mkdirSync(mount);
  if (run('mount', '-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', mount) === undefined) {
    return undefined;
  }
  const disk = path.join(mount, 'disk');
  fs.writeFileSync(disk, '');
  fs.truncateSync(disk, 2 ** 23);
  const device = run('losetup', '-f', '--show', disk);
  const remove = (): void => {
    if (device !== undefined) {
      run('losetup', '-d', device);
    }
    run('umount', '-l', mount);
  };
  if (device === undefined) {
    remove();
    return undefined;
  }
  return { device, remove };
};

test('a block device is synced before it is said to hold the file: what its disk does not take is an error', async (context) => {
  const made = fullBlockDevice();
  if (made === undefined) {
    context.skip('this user cannot make block devices here');
    return;
  }
  const { device, remove } = made;
  try {
    const small = OutputFile.open(device);
    fs.writeSync(small.descriptor, Buffer.alloc(4096, 1));
    await small.commit();
    assert.ok(fs.statSync(device).isBlockDevice());
    const large = OutputFile.open(device);
    // The page cache takes it.
    fs.writeSync(large.descriptor, Buffer.alloc(2 ** 22, 1));
    await assert.rejects(large.commit());
  } finally {
    remove();
  }
});
const OTHER = 54_321;
const asRoot = { skip: process.getuid?.() === 0 ? false : 'only root may give files away' };

const replace = async (): Promise<fs.Stats> => {
  const file = OutputFile.open(target);
  fs.writeSync(file.descriptor, 'secret');
  await file.commit();
  return fs.statSync(target);
};

test('a file that another user put there gives that user nothing', asRoot, async () => {
  for (const mode of [0o600, 0o666]) {
    fs.writeFileSync(target, 'bait');
    fs.chmodSync(target, mode);
    fs.chownSync(target, OTHER, OTHER);
    const { uid, gid, mode: now } = await replace();
    assert.deepEqual([uid, gid, now & 0o777], [process.getuid!(), process.getgid!(), 0o600]);
  }
});

test('nor does one of ours that others can have put there: a second name of it, or one in a folder of theirs', async () => {
  fs.writeFileSync(target, 'ours');
  fs.chmodSync(target, 0o644);
  fs.linkSync(target, path.join(folder, 'another name'));
  assert.equal((await replace()).mode & 0o777, 0o600);
  assert.equal(fs.readFileSync(path.join(folder, 'another name'), 'utf8'), 'ours');

  for (const [folderMode, expected] of [
    [0o777, 0o600],
    [0o1777, 0o644],
    [0o700, 0o644],
  ] as const) {
    fs.writeFileSync(target, 'ours');
    fs.chmodSync(target, 0o644);
    fs.chmodSync(folder, folderMode);
    assert.equal((await replace()).mode & 0o777, expected, folderMode.toString(8));
  }
});

test('a file in a folder of another user does not pass its mode on', asRoot, async () => {
  fs.writeFileSync(target, 'ours');
  fs.chmodSync(target, 0o644);
  fs.chownSync(folder, OTHER, OTHER);
  assert.equal((await replace()).mode & 0o777, 0o600);
});

test('a link of ours is followed, one of another user is refused, whatever is behind it', asRoot, async () => {
  const behind = path.join(folder, 'behind');
  fs.writeFileSync(behind, 'precious');
  fs.symlinkSync('behind', target);
  await replace();
  assert.equal(fs.readFileSync(behind, 'utf8'), 'secret');

  fs.writeFileSync(behind, 'precious');
  const second = path.join(folder, 'second');
  fs.symlinkSync('behind', second);
  fs.lchownSync(second, OTHER, OTHER);
  fs.rmSync(target);
  fs.symlinkSync('second', target);
  assert.throws(() => OutputFile.open(target), code('FOREIGN_OUTPUT'));
  assert.equal(fs.readFileSync(behind, 'utf8'), 'precious');
  // To nowhere: what would be made there, its user chooses.
  fs.rmSync(behind);
  assert.throws(() => OutputFile.open(second), code('FOREIGN_OUTPUT'));
  assert.deepEqual(fs.readdirSync(folder).sort(), ['out.mig', 'second']);
});

test('a named pipe of another user is refused, and nobody waits for its reader', asRoot, () => {
  execFileSync('mkfifo', [target]);
  fs.chownSync(target, OTHER, OTHER);
  assert.throws(() => OutputFile.open(target), code('FOREIGN_OUTPUT'));
});
