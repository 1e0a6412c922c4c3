// The state of QEMU's own balloon, of a Linux guest whose driver gave free page hints while it was migrated: decoded, encoded
// again, and loaded into our device on top of that guest's memory.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import {
  allocateBalloon,
  BalloonControl,
  BalloonFeature,
  BalloonQueue,
  decodeBalloon,
  encodeBalloon,
  GuestMemory,
  HINT_ID_MIN,
  HintStatusNumber,
  loadBalloon,
  saveBalloon,
} from '../../src/device/index.js';
import { balloonFieldBytes, decodeVirtioState } from '../../src/format/virtio/index.js';
import { guestAddress, RamBlockList } from '../../src/memory/index.js';
import { interopTest, type Lab } from './lab.js';
import { readReference } from './reference-reader.js';

const MEMORY_MIB = 128;
const TARGET_MIB = 120;

/** A guest migrated live into a file, and the body of its balloon's section there. */
const migrated = async (lab: Lab, balloon: string, kernelArguments: string) => {
  const guest = await lab.startGuest({
    memory: MEMORY_MIB,
    workload: `churn:10:5 ${kernelArguments}`,
    // Without queue_reset: our devices do not offer it, and so could not load the state of a driver that uses it.
    extraArguments: ['-object', 'iothread,id=io0', '-device', `virtio-balloon-pci,queue_reset=off,${balloon}`],
  });
  await guest.waitReady();
  await guest.qmp.execute('balloon', { value: TARGET_MIB * 2 ** 20 });
  const file = lab.path('balloon.mig');
  const info = await guest.saveStream(file);
  const stream = readReference(file);
  const section = stream.sections.find(({ name }) => name.endsWith('/virtio-balloon'))!;
  const body = new Uint8Array(readFileSync(file).subarray(section.offset, section.offset + section.bytes));
  return { body, ram: stream.blocks.get('pc.ram')!.bytes, syncs: info.ram!['dirty-sync-count'] };
};

/** What of QEMU's body is not its PCI transport's: without that in front, queue_sel, the queues' vectors, and what follows. */
const withoutTransport = (body: Uint8Array): Uint8Array => {
  const { transport, others, queueSizes, config } = decodeVirtioState(body, {
    transport: 'pci',
    fieldBytes: balloonFieldBytes,
  });
  const bytes = [...body.subarray(transport.length, body.length - others.length)];
  bytes.splice(2, 2, 0, 0);
  const queues = 8 + 4 + config.length + 4;
  queueSizes.forEach((_, index) => {
    bytes.splice(queues + index * 14 + 14, 2);
  });
  return Uint8Array.from(bytes);
};

interopTest('the state of a balloon that gave hints is read, written and taken over', async (lab) => {
  const { body, ram, syncs } = await migrated(lab, 'free-page-hint=on,iothread=io0', 'init_on_free=1');
  const state = decodeBalloon(body, 'pci');
  assert.deepEqual(encodeBalloon(state), withoutTransport(body));

  assert.equal(state.virtio.status, 15);
  // A queue has 128 entries in QEMU 7.2 and 11.1, 1024 in Debian's 10.0.13: no more than ours can have, which take the driver over.
  const { queueSizes } = allocateBalloon().virtio;
  assert.equal(state.queueSizes.length, queueSizes.length);
  assert.ok(
    state.queueSizes.every((size, index) => size > 0 && size <= queueSizes[index]!),
    `${state.queueSizes}`,
  );
  assert.equal(state.targetPages, (MEMORY_MIB - TARGET_MIB) * 256);
  assert.equal(state.poisonValue, 0);
  // FH-12: after the last of the syncs there is no new id, but the end.
  assert.equal(state.freePageHint?.status, HintStatusNumber.done);
  assert.ok(state.freePageHint.commandId > HINT_ID_MIN && state.freePageHint.commandId <= HINT_ID_MIN + syncs);

  const blocks = RamBlockList.create();
  const block = blocks.add({ name: 'pc.ram', usedLength: ram.length });
  block.write(0, ram);
  const memory = new GuestMemory([{ guestAddress: guestAddress(0), block, offset: 0, bytes: ram.length }], {
    markRange: () => {},
  });
  const shared = allocateBalloon();
  loadBalloon(shared, state);
  const control = new BalloonControl(shared);
  assert.deepEqual([control.targetPages, control.actualPages], [state.targetPages, state.actualPages]);
  const saved = saveBalloon(shared, memory);
  assert.deepEqual(saved.freePageHint, state.freePageHint);
  for (const queue of [BalloonQueue.inflate, BalloonQueue.deflate, BalloonQueue.freePageHint]) {
    // What guest memory says of a real driver's queue is what QEMU knew.
    assert.deepEqual(saved.virtio.queues[queue], state.virtio.queues[queue]);
  }
  // QEMU has the statistics buffer in hand and takes it again, too, by going back.
  const next = saved.virtio.queues[BalloonQueue.statistics]!.next;
  assert.equal((state.virtio.queues[BalloonQueue.statistics]!.next - next) & 0xffff, 1);
});

interopTest('the state of a balloon without hints and poison has neither', async (lab) => {
  const { body } = await migrated(lab, 'page-poison=off', '');
  const state = decodeBalloon(body, 'pci');
  assert.deepEqual(encodeBalloon(state), withoutTransport(body));
  assert.equal(state.config.length, 8);
  assert.equal(state.queueSizes.length, 3);
  assert.equal(state.freePageHint, undefined);
  assert.equal(state.poisonValue, undefined);
  assert.equal(state.virtio.features & (BalloonFeature.freePageHint | BalloonFeature.pagePoison), 0n);
});
