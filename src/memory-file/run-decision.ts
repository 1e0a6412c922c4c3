// Whether a saved guest runs at its destination: as it did when it was saved, unless its user wants it to.

import type { LibvirtImage } from '../format/libvirt/save-image.js';
import { savedRunState } from '../format/stream/global-state.js';
import type { StreamSummary } from '../format/stream/stream-handler.js';
import { RamferryError } from '../memory/errors.js';

/** States in which QEMU itself would not let a guest go on without a reset. */
const ENDED = ['shutdown', 'guest-panicked', 'internal-error', 'preconfig'];

/** What is to become of a saved guest. */
export interface RunDecision {
  /** Whether it is to run once it is there. */
  readonly runs: boolean;
  /** The state it was saved in, in QEMU's words; undefined for a guest that is not QEMU's, which runs. */
  readonly savedAs: string | undefined;
  /** What its device state has to say instead of that; undefined if it says it already. */
  readonly rewritten: 'running' | 'paused' | 'suspended' | undefined;
}

/**
 * Decides by the file: by libvirt's flag in an image of libvirt, which pauses a guest before it saves it, else by the
 * state that QEMU saved.
 * @param run the guest is to run, also if it was saved while it was paused
 * @throws RamferryError `usage` CANNOT_RUN if it is to run and cannot
 */
export const decideRun = (
  summary: Pick<StreamSummary, 'tail' | 'devices'>,
  libvirt: LibvirtImage | undefined,
  run: boolean,
): RunDecision => {
  const saved = savedRunState(summary);
  if (saved === undefined) {
    return { runs: true, savedAs: undefined, rewritten: undefined };
  }
  const runs = run || (libvirt?.wasRunning ?? saved.isLive);
  if (runs && ENDED.includes(saved.name)) {
    throw new RamferryError('usage', 'CANNOT_RUN', `The guest was saved in state ${saved.name}: it cannot go on.`, {
      value: saved.name,
      hint: 'Without --run it is restored as it is; system_reset and cont in its monitor start it anew.',
    });
  }
  const live = saved.wasSuspended ? 'suspended' : 'running';
  const rewritten = runs === saved.isLive ? undefined : runs ? live : 'paused';
  return { runs, savedAs: libvirt?.wasRunning === true ? 'running' : saved.name, rewritten };
};
