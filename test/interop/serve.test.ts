// Saved guests that run at once in stock QEMU: ramferry plays the source of a postcopy migration from the file.

import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { chmodSync, copyFileSync, existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import net from 'node:net';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { GUEST_PAGE_SIZE } from '../../kernels/kernels.js';
import { openChannel } from '../../src/channel/open-channel-node.js';
import type { RamferryError } from '../../src/memory/errors.js';
import type { RamBlock } from '../../src/memory/ram-block.js';
import type { PageIndex } from '../../src/memory/units.js';
import { openSnapshotFile } from '../../src/memory-file/open-snapshot-file-node.js';
import { SnapshotGuest } from '../../src/memory-file/snapshot-guest.js';
import { Clones } from '../../src/migration/clones.js';
import { ServeRestore } from '../../src/migration/serve-restore.js';
import { QemuProcess } from '../../src/qemu/qemu-process.js';
import { MigrationSource } from '../../src/source/migration-source.js';
import { defaultParameters } from '../../src/source/parameters.js';
import { PostcopySink } from '../../src/source/postcopy-sink.js';
import { libvirtHead } from '../libvirt-images.js';
import { randomChoices } from '../random.js';
import { corpusDestination, corpusStream } from './corpus.js';
import { interopTest, type Lab, type LabGuest } from './lab.js';
import { Ramferry, type RamferryExit } from './ramferry.js';
import { readReference, sha256 } from './reference-reader.js';
import { ALL_RELEASES, CURRENT_RELEASES } from './releases.js';

const isSlow = process.env['RAMFERRY_SLOW'] === '1';

const POSTCOPY = { capabilities: { 'postcopy-ram': true } };

interface ServeDocument {
  readonly status: string;
  readonly ram: Record<string, number>;
  readonly ramferry: { readonly postcopy: { readonly demands: number; readonly prefetchedPages: number } };
}

/** The JSON of a verb that succeeded; what went wrong otherwise. */
const document = ({ status, signal, stdout, stderr }: RamferryExit): ServeDocument => {
  assert.deepEqual({ status, signal }, { status: 0, signal: null }, `${stdout}\n${stderr}`);
  return JSON.parse(stdout) as ServeDocument;
};

let sockets = 0;
const socketUri = (lab: Lab): string => `unix:${lab.path(`socket-${(sockets += 1)}`)}`;

const serve = (lab: Lab, file: string, uri: string, ...options: readonly string[]): Ramferry =>
  // The corpus was saved while it was stopped.
  Ramferry.start(lab, 'serve', file, uri, '--json', '--run', '--retry', '10', ...options);

/** Starts serving a file toward a waiting guest. */
const startServing = async (
  lab: Lab,
  file: string,
  destination: LabGuest,
  ...options: readonly string[]
): Promise<Ramferry> => {
  const uri = socketUri(lab);
  const ramferry = serve(lab, file, uri, ...options);
  await destination.migrateIncoming(uri, POSTCOPY);
  return ramferry;
};

/** QEMU takes postcopy memory from tmpfs, and from no other file system. */
const ramFileOf = (lab: Lab): string => {
  const folder = mkdtempSync('/dev/shm/ramferry-lab-');
  lab.onClose(() => rmSync(folder, { recursive: true, force: true }));
  return join(folder, 'ram');
};

interopTest(
  `serve: a saved guest runs at once, and all of it arrives`,
  async (lab) => {
    const { file } = await corpusStream(lab, 'busy');
    const destination = await corpusDestination(lab, 'busy');
    const serving = await startServing(lab, file, destination, '--no-demand');
    await destination.waitSerial(/^HB/m);
    const { status, ram, ramferry } = document(await serving.exited);
    await destination.waitMigration();
    assert.equal(status, 'completed');
    assert.ok(ramferry.postcopy.demands > 0);
    assert.equal(ram['remaining'], 0);
    assert.equal(await destination.verifyAll(), 0);
  },
  ALL_RELEASES,
);

// Byte for byte, in every form that a saved guest has. A destination that was started stopped stays so.
for (const form of ['stream', 'mapped-ram', 'libvirt', 'behind a header'] as const) {
  interopTest(`serve: a ${form} file becomes exactly the memory that was saved`, async (lab) => {
    const { file: stream, truth } = await corpusStream(lab, 'plain');
    let file = stream;
    if (form === 'mapped-ram') {
      file = lab.path('converted');
      const { status, stderr } = await Ramferry.run(lab, 'convert', stream, file, '--to', 'mapped-ram', '--no-digest');
      assert.equal(status, 0, stderr);
    } else if (form !== 'stream') {
      const head = form === 'libvirt' ? libvirtHead({ format: 0 }) : Buffer.alloc(12_345, 'x');
      const path = lab.path('wrapped');
      writeFileSync(path, Buffer.concat([head, readFileSync(stream)]));
      file = form === 'libvirt' ? path : `file:${path},offset=${head.length}`;
    }
    const ramFile = ramFileOf(lab);
    const destination = await corpusDestination(lab, 'plain', lab.release, { ramFile, stopped: true });
    const serving = await startServing(lab, file, destination, '--no-demand');
    document(await serving.exited);
    await destination.waitMigration();
    assert.notEqual(await destination.status(), 'running');
    assert.equal(sha256(readFileSync(ramFile)), truth.ramSha256);
    await destination.resume();
    assert.equal(await destination.verifyAll(), 0);
  });
}

interopTest(
  'serve: every block of a machine with many devices and virtio-mem',
  async (lab) => {
    const { file, truth } = await corpusStream(lab, 'devices');
    const destination = await corpusDestination(lab, 'devices');
    document(await (await startServing(lab, file, destination, '--no-demand')).exited);
    await destination.waitMigration();
    const copy = lab.path('copy');
    // With it QEMU would read from the file it saves into.
    await destination.saveStream(copy, { capabilities: { 'postcopy-ram': false } });
    const digests = [...readReference(copy).blocks.values()].map(({ name, bytes }) => [name, sha256(bytes)]);
    assert.deepEqual(
      new Map(digests as [string, string][]),
      new Map(truth.blocks.map(({ name, sha256: digest }) => [name, digest])),
    );
  },
  ALL_RELEASES,
);

// Lazily, and until it has been over all of its memory: else how much a guest asks for says how quick it is.
interopTest(
  'serve: what a guest asked for is remembered, and the next one asks for half as much',
  async (lab, context) => {
    const { file: corpus } = await corpusStream(lab, 'busy');
    const file = lab.path('guest.mig');
    copyFileSync(corpus, file);
    const run = async (): Promise<number> => {
      const destination = await corpusDestination(lab, 'busy');
      const serving = await startServing(lab, file, destination, '--lazy');
      assert.equal(await destination.verifyAll(), 0);
      serving.kill('SIGUSR2');
      const { demands } = document(await serving.exited).ramferry.postcopy;
      await destination.waitMigration();
      assert.equal(destination.bad(), 0);
      await destination.qemu.quit();
      return demands;
    };
    const first = await run();
    assert.ok(existsSync(`${file}.demand`));
    const second = await run();
    context.diagnostic(`demands: ${first}, then ${second}`);
    assert.ok(second > 0 && second <= first / 2, `demands: ${first}, then ${second}`);
  },
);

/** The destination's own word that its link is gone, and a fresh address for the next server. */
const recoverable = async (lab: Lab, destination: LabGuest): Promise<string> => {
  await destination.waitMigration(['postcopy-paused']);
  const uri = socketUri(lab);
  await destination.qmp.execute('migrate-recover', { uri });
  return uri;
};

interopTest(
  'serve --recover: QEMU goes on where the server was killed, three times',
  async (lab) => {
    const { file } = await corpusStream(lab, 'busy');
    const destination = await corpusDestination(lab, 'busy');
    const options = ['--no-demand', '--max-bandwidth', '40M'];
    let serving = await startServing(lab, file, destination, ...options);
    for (let kills = 0; kills < 3; kills += 1) {
      await destination.waitMigration(['postcopy-active']);
      await delay(400);
      serving.kill('SIGKILL');
      await serving.exited;
      const uri = await recoverable(lab, destination);
      serving = serve(lab, file, uri, '--recover', ...(kills < 2 ? options : options.slice(0, 1)));
      await destination.waitMigration(['postcopy-active', 'completed']);
    }
    document(await serving.exited);
    await destination.waitMigration();
    assert.equal(await destination.verifyAll(), 0);
  },
  ALL_RELEASES,
);

const PREEMPT = { capabilities: { 'postcopy-ram': true, 'postcopy-preempt': true } };

// spec/qemu-wire-format.md 5.9, 7.7: pages that are left out because they are zero are answered behind the end, too
interopTest('serve --preempt: requested pages come over a second connection, until QEMU has all of it', async (lab) => {
  const { file } = await corpusStream(lab, 'busy');
  for (const options of [[], ['--lazy', '--finish-after', '2', '--prefetch', '0']]) {
    const destination = await corpusDestination(lab, 'busy');
    const uri = socketUri(lab);
    const serving = serve(lab, file, uri, '--no-demand', '--preempt', ...options);
    await destination.migrateIncoming(uri, PREEMPT);
    await destination.waitSerial(/^HB/m);
    const { status, ramferry } = document(await serving.exited);
    await destination.waitMigration();
    assert.equal(status, 'completed');
    assert.ok(ramferry.postcopy.demands > 0);
    assert.equal(await destination.verifyAll(), 0);
    await destination.qemu.quit();
  }
});

// RC-6
interopTest('serve --preempt --recover: a new server opens a new preempt channel, twice', async (lab) => {
  const { file } = await corpusStream(lab, 'busy');
  const destination = await corpusDestination(lab, 'busy');
  let uri = socketUri(lab);
  const options = ['--no-demand', '--preempt', '--max-bandwidth', '40M'];
  let serving = serve(lab, file, uri, ...options);
  await destination.migrateIncoming(uri, PREEMPT);
  for (let kills = 0; kills < 2; kills += 1) {
    await destination.waitMigration(['postcopy-active']);
    await delay(400);
    serving.kill('SIGKILL');
    await serving.exited;
    uri = await recoverable(lab, destination);
    serving = serve(lab, file, uri, '--recover', ...options.slice(0, kills === 0 ? 4 : 2));
    await destination.waitMigration(['postcopy-active', 'completed']);
  }
  document(await serving.exited);
  await destination.waitMigration();
  assert.equal(await destination.verifyAll(), 0);
});

for (const [releases, options, sentence] of [
  [CURRENT_RELEASES, POSTCOPY, /has no preempt channel for us.*postcopy-preempt/s],
  [['7.2'], PREEMPT, /neither said nor read anything for 10 s.*before 8\.0/s],
] as const) {
  const what = options === PREEMPT ? 'with another kind of preempt channel' : 'without one';
  interopTest(
    `serve --preempt: a QEMU ${what} is told apart before its guest runs`,
    async (lab) => {
      const { file } = await corpusStream(lab, 'tiny');
      const destination = await corpusDestination(lab, 'tiny');
      const uri = socketUri(lab);
      const serving = serve(lab, file, uri, '--no-demand', '--preempt');
      await destination.migrateIncoming(uri, options);
      const { status, stdout } = await serving.exited;
      assert.equal(status, 1);
      assert.match(stdout, sentence);
    },
    releases,
  );
}

/** Stands between a server and QEMU; takes the link down after so many bytes, counted from `after` on. */
const cutter = async (
  lab: Lab,
  target: string,
  cut: { readonly toQemu?: number; readonly fromQemu?: number; readonly after?: Promise<unknown> },
): Promise<string> => {
  const path = lab.path(`cutter-${(sockets += 1)}`);
  let isCounting = cut.after === undefined;
  cut.after?.then(() => {
    isCounting = true;
  });
  const ends: net.Socket[] = [];
  const listener = net.createServer((client) => {
    const qemu = net.connect(target);
    ends.push(client, qemu);
    const end = (): void => {
      client.destroy();
      qemu.destroy();
    };
    const forward = (from: net.Socket, to: net.Socket, limit = Number.POSITIVE_INFINITY): void => {
      let left = limit;
      from.on('data', (bytes) => {
        const isLast = isCounting && bytes.length >= left;
        left -= isCounting ? bytes.length : 0;
        if (isLast) {
          from.pause();
          to.write(bytes.subarray(0, left + bytes.length), end);
        } else if (!to.write(bytes)) {
          from.pause();
          to.once('drain', () => from.resume());
        }
      });
      from.on('end', () => to.end());
      from.on('error', end);
      from.on('close', end);
    };
    forward(client, qemu, cut.toQemu);
    forward(qemu, client, cut.fromQemu);
  });
  listener.listen(path);
  lab.onClose(() => {
    listener.close();
    for (const end of ends) {
      end.destroy();
    }
  });
  return `unix:${path}`;
};

const unixPath = (uri: string): string => uri.slice('unix:'.length);

// RC-4, RC-6, RC-9
interopTest(
  'serve --recover: the link cut anywhere, in either direction, during the recovery too',
  async (lab, context) => {
    const { file: stream } = await corpusStream(lab, 'busy');
    const file = lab.path('guest.mapped');
    assert.equal((await Ramferry.run(lab, 'convert', stream, file, '--to', 'mapped-ram', '--no-digest')).status, 0);
    const seed = isSlow ? Date.now() % 1e6 : 7;
    context.diagnostic(`seed ${seed}`);
    const choose = randomChoices(seed);
    const MIB = 2 ** 20;
    const laterCut = () => {
      switch (choose(4)) {
        case 0:
          return { toQemu: 1 + choose(300) };
        case 1:
          return { fromQemu: 1 + choose(40_000) };
        case 2:
          return { fromQemu: 1 + choose(120_000) };
        default:
          return { toQemu: 1 + choose(20 * MIB) };
      }
    };
    for (let cuts = 0; cuts < (isSlow ? 200 : 24); ) {
      const destination = await corpusDestination(lab, 'busy');
      const uri = socketUri(lab);
      await destination.migrateIncoming(uri, POSTCOPY);
      // Not before the guest runs: until then QEMU's main thread may wait for a page, and then nobody hears of a recovery.
      const after = destination.waitSerial(/^HB/m);
      let proxied = await cutter(lab, unixPath(uri), { toQemu: 1 + choose(20 * MIB), after });
      let serving = serve(lab, file, proxied, '--no-demand', '--max-bandwidth', '150M');
      for (let round = 0; round < 12; round += 1) {
        const { status } = await serving.exited;
        if (status === 0) {
          break;
        }
        cuts += 1;
        assert.equal(status, 1);
        const next = await recoverable(lab, destination);
        proxied = round < 11 ? await cutter(lab, unixPath(next), laterCut()) : next;
        serving = serve(lab, file, proxied, '--no-demand', '--recover');
      }
      document(await serving.exited);
      await destination.waitMigration();
      assert.equal(await destination.verifyAll(), 0);
      await destination.qemu.quit();
    }
  },
);

interopTest('serve: a destination without postcopy-ram is told what it lacks', async (lab) => {
  const { file } = await corpusStream(lab, 'tiny');
  const destination = await corpusDestination(lab, 'tiny');
  const uri = socketUri(lab);
  const serving = serve(lab, file, uri, '--no-demand');
  await destination.migrateIncoming(uri);
  const { status, stdout } = await serving.exited;
  assert.equal(status, 1);
  assert.match(stdout, /postcopy-ram/);
});

/** A machine that lacks one of the saved guest's devices. */
const withoutClock = { extraArguments: ['-machine', 'hpet=off'] };

interface FailedDocument extends ServeDocument {
  readonly 'total-time': number;
  readonly error: { readonly code: string; readonly message: string; readonly hint?: string };
}

/** Serves to a destination that cannot load the devices; `more` is added to the command. */
const serveInVain = async (lab: Lab, destination: LabGuest, ...more: readonly string[]): Promise<FailedDocument> => {
  const { file } = await corpusStream(lab, 'tiny');
  const uri = socketUri(lab);
  await destination.qmp.execute('migrate-set-capabilities', {
    capabilities: [{ capability: 'postcopy-ram', state: true }],
  });
  // It stays, and its monitor says why. The argument is known since 9.1.
  await destination.qmp.execute('migrate-incoming', { uri, 'exit-on-error': false } as never);
  const { status, stdout } = await serve(lab, file, uri, '--no-demand', ...more).exited;
  assert.equal(status, 1, stdout);
  return JSON.parse(stdout) as FailedDocument;
};

// QEMU from 11.1 on says nothing until it is left, and then hardly why; unless its main thread has failed before the thread that
// listens reads for the first time, which happens on an idle machine: then it answers SHUT(1) as those before it do.
const SAYS_SO = 'DESTINATION_FAILED';
const REPORTED = /reports that loading failed \(SHUT 1\)\./;

interopTest(
  'serve --qmp: a QEMU that cannot load the devices is asked, and named at once with its own words',
  async (lab) => {
    const monitor = `unix:${lab.path('monitor')}`;
    const { extraArguments } = withoutClock;
    const destination = await corpusDestination(lab, 'tiny', lab.release, {
      extraArguments: [...extraArguments, '-qmp', `${monitor},server=on,wait=off`],
    });
    const { error } = await serveInVain(lab, destination, '--qmp', monitor);
    if (lab.release === '10' || error.code === SAYS_SO) {
      assert.equal(error.code, SAYS_SO);
      assert.match(error.message, REPORTED);
      assert.match(error.message, / QEMU says: ./);
    } else {
      // Who has no monitor to ask says PEER_STALLED, after 5 s.
      assert.equal(error.code, 'DEVICES_NOT_LOADED');
      assert.match(error.message, /cannot load the devices.*postcopy-device.* QEMU says: .*load/s);
    }
  },
);

interopTest(
  'serve: a QEMU that cannot load the devices, and whose monitor is not known, is given up after seconds',
  async (lab) => {
    const destination = await corpusDestination(lab, 'tiny', lab.release, withoutClock);
    const { error, 'total-time': totalMs } = await serveInVain(lab, destination);
    if (error.code === SAYS_SO) {
      assert.match(error.message, REPORTED);
    } else {
      assert.equal(error.code, 'PEER_STALLED');
      assert.match(error.message, /neither said nor read anything for 5 s/);
      assert.match(error.hint!, /cannot load the devices/);
    }
    assert.ok(totalMs < 15_000, `${totalMs} ms`);
  },
  ['11'],
);

// D21
interopTest(
  'serve, send: a QEMU that expects TLS is left at once, and is named before that where it can be asked',
  async (lab) => {
    const { file } = await corpusStream(lab, 'tiny');
    for (const verb of ['serve', 'send'] as const) {
      const monitor = `unix:${lab.path(`monitor-${verb}`)}`;
      const destination = await corpusDestination(lab, 'tiny', lab.release, {
        extraArguments: ['-object', 'tls-creds-anon,id=tls0,endpoint=server', '-qmp', `${monitor},server=on,wait=off`],
      });
      const uri = socketUri(lab);
      await destination.migrateIncoming(uri, { ...POSTCOPY, parameters: { 'tls-creds': 'tls0' } });
      const options = ['--json', '--run', ...(verb === 'serve' ? ['--no-demand'] : [])];
      const asked = await Ramferry.run(lab, verb, file, uri, ...options, '--qmp', monitor);
      assert.deepEqual([asked.status, JSON.parse(asked.stdout).error.code], [1, 'DESTINATION_SETUP']);
      assert.match(asked.stdout, /expects TLS/);
      const { status, stdout } = await Ramferry.run(lab, verb, file, uri, ...options);
      const { error, 'total-time': totalMs } = JSON.parse(stdout) as FailedDocument;
      assert.deepEqual([status, error.code], [1, 'PEER_CLOSED'], stdout);
      assert.match(error.hint!, /TLS \(tls-creds\)/);
      // Silence is borne for 10 s.
      assert.ok(totalMs < 9000, `${totalMs} ms`);
      assert.match(destination.qemu.errorOutput, /TLS handshake failed/);
    }
  },
);

/** QEMU as an ordinary user who may have no userfaultfd; undefined where that cannot be arranged. */
const asNobody = async (lab: Lab): Promise<string[] | undefined> => {
  const isKept =
    process.getuid?.() === 0 && readFileSync('/proc/sys/vm/unprivileged_userfaultfd', 'latin1').trim() === '0';
  const user = ['setpriv', '--reuid', '65534', '--regid', '65534', '--clear-groups'];
  const [program, ...rest] = await lab.command({ memory: 16 }, '/dev/null');
  if (!isKept || spawnSync(user[0]!, [...user.slice(1), program!, '--version']).status !== 0) {
    return undefined;
  }
  // It makes its sockets there.
  chmodSync(lab.folder, 0o777);
  return [...user, program!, ...rest];
};

// D21
interopTest("serve, clone: an ordinary user's QEMU without userfaultfd is named at once", async (lab, context) => {
  const command = await asNobody(lab);
  if (command === undefined) {
    context.skip('needs root, and a kernel that keeps userfaultfd from ordinary users');
    return;
  }
  const { file } = await corpusStream(lab, 'tiny');
  const qemu = await QemuProcess.start([...command, '-incoming', 'defer']);
  lab.onClose(async () => {
    qemu.kill();
    await qemu.exited;
  });
  // Whoever overlooks this goes on without.
  await assert.rejects(
    qemu.qmp.execute('migrate-set-capabilities', { capabilities: [{ capability: 'postcopy-ram', state: true }] }),
    /[Uu]serfaultfd/,
  );
  const uri = socketUri(lab);
  await qemu.qmp.execute('migrate-incoming', { uri });
  const { status, stdout } = await serve(lab, file, uri, '--no-demand').exited;
  const { error, 'total-time': totalMs } = JSON.parse(stdout) as FailedDocument;
  assert.equal(status, 1, stdout);
  assert.match(error.hint!, /postcopy-ram.*userfaultfd/);
  assert.ok(totalMs < 9000, `${totalMs} ms`);

  const source = await ServeRestore.prepare(file, { run: true });
  lab.onClose(() => source.close());
  await assert.rejects(
    Clones.start({ source, count: 1, template: command, folder: lab.folder }),
    (refused: RamferryError) => {
      assert.match(refused.message, /^Clone 0: .*[Uu]serfaultfd/);
      assert.match(refused.hint!, /vm\.unprivileged_userfaultfd=1/);
      return true;
    },
  );
});

/** Serves in this process, by an engine that does something wrong. */
const serveWrongly = async (
  lab: Lab,
  kind: 'busy',
  make: {
    guest?: (...given: ConstructorParameters<typeof SnapshotGuest>) => SnapshotGuest;
    sink?: (...given: ConstructorParameters<typeof PostcopySink>) => PostcopySink;
  },
): Promise<{ destination: LabGuest; ended: Promise<unknown> }> => {
  const { file } = await corpusStream(lab, kind);
  const destination = await corpusDestination(lab, kind);
  const uri = socketUri(lab);
  await destination.migrateIncoming(uri, POSTCOPY);
  const { snapshot, close } = await openSnapshotFile(file);
  const channel = await openChannel(uri, { direction: 'both', retryMs: 5000 });
  const source = new MigrationSource({
    guest: make.guest?.(snapshot, file) ?? new SnapshotGuest(snapshot, file),
    sink: make.sink?.(channel) ?? new PostcopySink(channel),
    parameters: defaultParameters,
    postcopy: { prefetchPages: 0 },
  });
  source.startPostcopy();
  const ended = source.run();
  lab.onClose(async () => {
    source.fail(new Error('the test has seen enough'));
    await ended;
    close();
  });
  return { destination, ended };
};

/** A page of the guest's memory checker: a chain of words from the odd number that the page starts with. */
const isOfWorkload = (bytes: Uint8Array): boolean => {
  const words = new BigUint64Array(bytes.buffer, bytes.byteOffset, 2);
  const step = words[0] as bigint;
  return (step & 1n) === 1n && words[1] === BigInt.asUintN(64, step * 6364136223846793005n + step);
};

interopTest(
  'negative control: a stream that ends before every page with content went makes the guest find it',
  async (lab) => {
    // A guest that lost pages of its kernel would only fall silent: what is forgotten is the workload's alone.
    class ForgetfulGuest extends SnapshotGuest {
      readonly #forgotten = new Set<RamBlock>();

      override contentBitmap(block: RamBlock): number {
        const address = super.contentBitmap(block);
        if (!this.#forgotten.has(block)) {
          this.#forgotten.add(block);
          this.#forgetWorkload(block, address);
        }
        return address;
      }

      /** Every second page that the workload checks passes for zero. */
      #forgetWorkload(block: RamBlock, bitmap: number): void {
        let isNext = false;
        for (let page = 0; page < block.usedPages; page += 1) {
          const { segment, address, firstPage } = this.extentAt(block, page as PageIndex, block.usedPages - page);
          if (isOfWorkload(segment.bytes.subarray(address + (page - firstPage) * GUEST_PAGE_SIZE))) {
            isNext = !isNext;
            if (isNext) {
              forgotten += this.blocks.bitmaps.kernels.testAndClearRange(bitmap, page, 1);
            }
          }
        }
      }
    }
    let forgotten = 0;
    const { destination, ended } = await serveWrongly(lab, 'busy', {
      guest: (...given) => new ForgetfulGuest(...given),
    });
    await ended;
    assert.ok(forgotten > 1000, `${forgotten} pages were forgotten`);
    await destination.waitMigration();
    await destination.waitSerial(/BAD page/);
  },
);

interopTest('negative control: without any discard before the package QEMU hangs', async (lab) => {
  class DiscardlessSink extends PostcopySink {
    override discard(): boolean {
      return true;
    }
  }
  const { destination } = await serveWrongly(lab, 'busy', {
    sink: (...given) => new DiscardlessSink(...given),
  });
  await delay(1500);
  await assert.rejects(destination.qmp.execute('query-status', undefined, { timeoutMs: 1500 }));
  assert.doesNotMatch(destination.serial(), /HB/);
});
