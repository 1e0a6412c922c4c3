// The guest's virtio-mem driver (virtio 1.2, 5.15): plugs and unplugs device blocks until as much is plugged as the device
// requests. Like the one in Linux it takes the lowest free blocks and gives back the highest, one request at a time, and when
// the device is busy it tries again later.
//
//   unplugged ── PLUG, ack ──▶ plugged ── table cleared ──▶ used ── given up ──▶ leaving ── UNPLUG, ack ──▶ unplugged
//                                 ▲                                                 │ busy
//                                 └─────────────────────────────────────────────────┘
//
// All it knows is in guest RAM and registers, also while a request is with the device: it can be stopped and moved between any
// two steps.

import {
  type DriverQueue,
  loadConfig64,
  VIRTIO_MEM_REQUEST_BYTES,
  VIRTIO_MEM_RESPONSE_BYTES,
  VirtioDriver,
  VirtioMemConfig,
  VirtioMemRequest,
  VirtioMemResponse,
} from '../../device/index.js';
import { guestAddress, RamferryError } from '../../memory/index.js';
import { BlockUse, type VirtioMemMachine } from './virtio-mem-machine.js';
import { DriverPhase, VirtioMemRegister } from './virtio-mem-registers.js';

/** Device blocks of one request: with blocks of 2 MiB what Linux on x86 plugs at a time, a memory block of 128 MiB. */
const REQUEST_BLOCKS = 64;

/** How long to leave a busy device alone, in milliseconds. Linux waits 5 s and more; a test cannot. */
const RETRY_MS = 20;

export class VirtioMemDriver {
  readonly #machine: VirtioMemMachine;
  readonly #registers: Float64Array;
  readonly #driver: VirtioDriver;
  /** The driver lets go of a used block: nothing of it is needed any more. */
  readonly #giveUp: (block: number) => void;
  #queue: DriverQueue | undefined;
  #retryAt = 0;

  constructor(machine: VirtioMemMachine, giveUp: (block: number) => void) {
    this.#machine = machine;
    this.#registers = machine.registers;
    this.#driver = new VirtioDriver(machine.virtio, machine.memory);
    this.#giveUp = giveUp;
  }

  /** Does the next thing there is to do at `now` milliseconds; false if there is none. */
  step(now: number): boolean {
    const registers = this.#registers;
    switch (registers[VirtioMemRegister.phase]) {
      case DriverPhase.none:
        this.#driver.requestReset();
        registers[VirtioMemRegister.phase] = DriverPhase.resetting;
        return true;
      case DriverPhase.resetting:
        return this.#driver.isReset && this.#start();
      default:
        return this.#run(now);
    }
  }

  #start(): boolean {
    this.#driver.negotiate(~0n);
    this.#queue = this.#driver.setUpQueue(0, this.#machine.queue);
    this.#driver.start();
    this.#registers[VirtioMemRegister.phase] = DriverPhase.running;
    this.#save();
    return true;
  }

  #run(now: number): boolean {
    this.#queue ??= this.#driver.setUpQueue(0, this.#machine.queue, this.#restore());
    const used = this.#queue.takeUsed();
    if (used !== undefined) {
      this.#save();
      this.#takeAnswer(now);
      return true;
    }
    return this.#queue.inFlight === 0 && now >= this.#retryAt && this.#resize();
  }

  /** Asks for what brings the plugged size nearer to the requested one; false if nothing does. */
  #resize(): boolean {
    const { blockBytes } = this.#machine;
    const sizes = this.#driver.readConfig((config) => ({
      plugged: loadConfig64(config, VirtioMemConfig.pluggedSize),
      requested: loadConfig64(config, VirtioMemConfig.requestedSize),
      usable: loadConfig64(config, VirtioMemConfig.usableRegionSize),
    }));
    const wanted = (sizes.requested - sizes.plugged) / blockBytes;
    if (wanted > 0) {
      const [first, count] = this.#lowest(sizes.usable / blockBytes, Math.min(wanted, REQUEST_BLOCKS));
      return count > 0 && this.#ask(VirtioMemRequest.plug, first, count);
    }
    if (wanted === 0) {
      return false;
    }
    if (sizes.requested === 0) {
      for (let block = 0; block < this.#machine.blockCount; block += 1) {
        this.#leave(block);
      }
      return this.#ask(VirtioMemRequest.unplugAll, 0, 0);
    }
    const [first, count] = this.#highest(Math.min(-wanted, REQUEST_BLOCKS));
    for (let block = first; block < first + count; block += 1) {
      this.#leave(block);
    }
    return count > 0 && this.#ask(VirtioMemRequest.unplug, first, count);
  }

  /** The first run of unplugged blocks below `end`, at most `limit` of them. */
  #lowest(end: number, limit: number): readonly [first: number, count: number] {
    let first = 0;
    while (first < end && this.#machine.useOf(first) !== BlockUse.unplugged) {
      first += 1;
    }
    let count = 0;
    while (count < limit && first + count < end && this.#machine.useOf(first + count) === BlockUse.unplugged) {
      count += 1;
    }
    return [first, count];
  }

  /** The last run of plugged blocks, at most `limit` of them. */
  #highest(limit: number): readonly [first: number, count: number] {
    let end = this.#machine.blockCount;
    while (end > 0 && this.#machine.useOf(end - 1) === BlockUse.unplugged) {
      end -= 1;
    }
    let count = 0;
    while (count < limit && end - count > 0 && this.#machine.useOf(end - count - 1) !== BlockUse.unplugged) {
      count += 1;
    }
    return [end - count, count];
  }

  #leave(block: number): void {
    const use = this.#machine.useOf(block);
    if (use === BlockUse.used) {
      this.#giveUp(block);
    }
    if (use !== BlockUse.unplugged) {
      this.#machine.setUse(block, BlockUse.leaving);
    }
  }

  #ask(type: number, first: number, count: number): boolean {
    const { memory, request, response, device, blockBytes } = this.#machine;
    memory.writeUint64(request, type);
    memory.writeUint64(guestAddress(request + 8), device.geometry.address + first * blockBytes);
    memory.writeUint64(guestAddress(request + 16), count);
    this.#queue!.add(
      [{ address: request, length: VIRTIO_MEM_REQUEST_BYTES }],
      [{ address: response, length: VIRTIO_MEM_RESPONSE_BYTES }],
    );
    this.#driver.notify(this.#queue!);
    const registers = this.#registers;
    registers[VirtioMemRegister.type] = type;
    registers[VirtioMemRegister.first] = first;
    registers[VirtioMemRegister.count] = count;
    this.#save();
    return true;
  }

  #takeAnswer(now: number): void {
    const registers = this.#registers;
    const answer = this.#machine.memory.loadUint16(this.#machine.response);
    if (answer > VirtioMemResponse.error) {
      throw new RamferryError('invalid', 'VIRTIO_MEM_RESPONSE', `The memory device answers ${answer}`, {
        value: answer,
      });
    }
    registers[VirtioMemRegister.answers + answer]! += 1;
    const type = registers[VirtioMemRegister.type]!;
    const isAll = type === VirtioMemRequest.unplugAll;
    const first = isAll ? 0 : registers[VirtioMemRegister.first]!;
    const end = isAll ? this.#machine.blockCount : first + registers[VirtioMemRegister.count]!;
    const isPlug = type === VirtioMemRequest.plug;
    if (answer !== VirtioMemResponse.ack) {
      this.#retryAt = now + RETRY_MS;
    }
    for (let block = first; block < end; block += 1) {
      if (isPlug && answer === VirtioMemResponse.ack) {
        this.#machine.setUse(block, BlockUse.plugged);
      } else if (this.#machine.useOf(block) === BlockUse.leaving) {
        this.#machine.setUse(block, answer === VirtioMemResponse.ack ? BlockUse.unplugged : BlockUse.plugged);
      }
    }
  }

  #save(): void {
    const { nextUsed, notified, inFlight } = this.#queue!.save();
    this.#registers[VirtioMemRegister.nextUsed] = nextUsed;
    this.#registers[VirtioMemRegister.notified] = notified;
    this.#registers[VirtioMemRegister.inFlight] = (inFlight[0] ?? -1) + 1;
  }

  #restore(): { nextUsed: number; notified: number; inFlight: number[] } {
    const registers = this.#registers;
    const inFlight = registers[VirtioMemRegister.inFlight]!;
    return {
      nextUsed: registers[VirtioMemRegister.nextUsed]!,
      notified: registers[VirtioMemRegister.notified]!,
      inFlight: inFlight === 0 ? [] : [inFlight - 1],
    };
  }
}
