// What of a balloon goes with the guest when it migrates, and as the bytes that QEMU makes of it.

import {
  type BalloonFields,
  balloonFieldBytes,
  decodeBalloonFields,
  decodeVirtioState,
  encodeBalloonFields,
  encodeVirtioState,
  type Transport,
} from '../format/virtio/index.js';
import { BalloonConfig, BalloonFeature, type BalloonShared } from './balloon.js';
import { BalloonHints } from './balloon-hints.js';
import type { GuestMemory } from './guest-memory.js';
import { HINT_DONE, HINT_ID_MIN, HINT_STOP, HintWord, isHintId } from './hint-exchange.js';
import { configWords } from './registers.js';
import { loadVirtio, saveVirtio, type VirtioState } from './virtio-state.js';

/** Of free page hinting, as numbers in the saved state. */
export const HintStatusNumber = { stop: 0, requested: 1, start: 2, done: 3 } as const;

export interface BalloonState extends BalloonFields {
  readonly virtio: VirtioState;
  /** Descriptors of each queue, set up or not. */
  readonly queueSizes: readonly number[];
  /** Configuration space. */
  readonly config: Uint8Array;
}

/** The body of section BALLOON_SECTION, without a transport in front. */
export const encodeBalloon = (state: BalloonState): Uint8Array =>
  encodeVirtioState({
    state: state.virtio,
    queueSizes: state.queueSizes,
    config: state.config,
    fields: encodeBalloonFields(state),
  });

/** What such a body says; also one of QEMU's, with transport `pci`. Throws VIRTIO_STATE, BALLOON_STATE. */
export const decodeBalloon = (body: Uint8Array, transport: Transport = 'none'): BalloonState => {
  const { state, queueSizes, config, fields } = decodeVirtioState(body, { transport, fieldBytes: balloonFieldBytes });
  return { virtio: state, queueSizes, config, ...decodeBalloonFields(fields) };
};

/** With the guest stopped, in any thread. */
export const saveBalloon = (shared: BalloonShared, memory: GuestMemory): BalloonState => {
  const virtio = saveVirtio(shared.virtio, memory);
  const config = configWords(shared.virtio);
  const word = (index: number): number => Atomics.load(config, index) >>> 0;
  const has = (feature: bigint): boolean => (virtio.features & feature) !== 0n;
  return {
    virtio,
    queueSizes: shared.virtio.queueSizes,
    config: new Uint8Array(4 * config.length).map((_, index) => word(index >>> 2) >>> (8 * (index % 4))),
    targetPages: word(BalloonConfig.targetPages),
    actualPages: word(BalloonConfig.actualPages),
    ...(has(BalloonFeature.freePageHint) && {
      freePageHint: {
        commandId: Atomics.load(new Int32Array(shared.hints), HintWord.lastId) >>> 0,
        status: HintStatusNumber[new BalloonHints(shared).status],
      },
    }),
    ...(has(BalloonFeature.pagePoison) && { poisonValue: word(BalloonConfig.poisonValue) }),
  };
};

/**
 * Before the guest runs and before the device's thread looks at it. Whoever had asked for hints is not here: a guest that was
 * being asked is told that it is over, so that it takes its pages back (FH-12). Throws what `loadVirtio` does.
 */
export const loadBalloon = (shared: BalloonShared, state: BalloonState): void => {
  loadVirtio(shared.virtio, state.virtio);
  const config = configWords(shared.virtio);
  const hints = new Int32Array(shared.hints);
  Atomics.store(config, BalloonConfig.targetPages, state.targetPages);
  Atomics.store(config, BalloonConfig.actualPages, state.actualPages);
  if (state.poisonValue !== undefined) {
    Atomics.store(config, BalloonConfig.poisonValue, state.poisonValue);
  }
  if (state.freePageHint !== undefined) {
    const { commandId, status } = state.freePageHint;
    const requested = status === HintStatusNumber.stop ? HINT_STOP : HINT_DONE;
    Atomics.store(hints, HintWord.lastId, isHintId(commandId) ? commandId : HINT_ID_MIN);
    Atomics.store(hints, HintWord.requested, requested);
    Atomics.store(config, BalloonConfig.commandId, requested);
  }
};
