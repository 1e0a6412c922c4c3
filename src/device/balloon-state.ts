// What of a balloon goes with the guest when it migrates. src/format/virtio writes it as QEMU does.

import { BalloonConfig, BalloonFeature, type BalloonShared } from './balloon.js';
import { BalloonHints } from './balloon-hints.js';
import type { GuestMemory } from './guest-memory.js';
import { HINT_DONE, HINT_ID_MIN, HINT_STOP, HintWord, isHintId } from './hint-exchange.js';
import { configWords } from './registers.js';
import { loadVirtio, saveVirtio, type VirtioState } from './virtio-state.js';

/** Of free page hinting, as numbers in the saved state. */
export const HintStatusNumber = { stop: 0, requested: 1, start: 2, done: 3 } as const;

export interface BalloonState {
  readonly virtio: VirtioState;
  readonly configBytes: number;
  readonly targetPages: number;
  readonly actualPages: number;
  /** If the driver takes part in free page hinting. */
  readonly freePageHint?: { readonly commandId: number; readonly status: number };
  /** If the driver says what it fills free pages with. */
  readonly poisonValue?: number;
}

/** With the guest stopped, in any thread. */
export const saveBalloon = (shared: BalloonShared, memory: GuestMemory): BalloonState => {
  const virtio = saveVirtio(shared.virtio, memory);
  const config = configWords(shared.virtio);
  const word = (index: number): number => Atomics.load(config, index) >>> 0;
  const has = (feature: bigint): boolean => (virtio.features & feature) !== 0n;
  return {
    virtio,
    configBytes: shared.virtio.configBytes,
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
