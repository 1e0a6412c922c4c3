// For how long the other end may be silent before it is given up: all limits that a source has, with what speaks for each. Too
// short kills a healthy QEMU on a busy machine, too long leaves its user without an answer, or an origin's guest standing still.
//
//   connect ─ firstAnswer ─▶ answers ─ pages, stall ─▶ package ─ load ─▶ loaded ─ pages, no limit ─▶ end of stream ─ stall ─▶ SHUT
//
// A guest that runs at the destination asks for pages when it needs some: behind `loaded` silence means nothing.

/** Limits while a destination loads the devices of a postcopy package. Its main loop stands still until it has done so. */
export interface LoadLimits {
  /** After so long without a sign its monitor is asked, where there is one to ask; and again and again. */
  readonly askMs: number;
  /** After so long it is given up, whatever is known. */
  readonly giveUpMs: number;
  /** So many bytes of device state are a millisecond more of that. */
  readonly bytesPerMs: number;
}

/** Milliseconds. */
export const SILENCE = {
  /**
   * From the first bytes to any answer. A QEMU answers the first PING within milliseconds, and within a second on a busy machine.
   * What has multifd on, expects TLS, or is no destination at all never does.
   */
  firstAnswer: {
    socket: 10_000,
    /** A command may log in somewhere first, and be asked for a password. */
    command: 60_000,
    /** The wait for a preempt channel's turn knows best why nothing comes, and is over after `preempt`. */
    preempting: 15_000,
  },

  /** For a PONG before there is a preempt channel. An idle QEMU answers at once, one before 8.0 not without that channel. */
  preempt: 10_000,

  /** For whoever owes an answer, or does not take what is written, before the guest runs there. Pages may be slow to write. */
  stall: 60_000,

  /**
   * A guest that comes from a file: nobody waits but its user. QEMU loads in some milliseconds; at load 30 healthy ones were silent
   * for more than a second, and none for 5. A QEMU from 11.1 on that cannot load them says nothing before it is left, but its
   * monitor tells (src/qemu/load-witness.ts). Devices are loaded at 100 MB/s at the least.
   */
  loadServed: { askMs: 1000, giveUpMs: 5000, bytesPerMs: 1e5 },

  /**
   * A guest that is relayed: it stands still at its origin meanwhile, goes on there if this is over, and nothing is lost. The device
   * state is on its way over a link that may be slow, at a MiB/s. Nobody has a monitor to ask.
   */
  loadHeld: { askMs: 1500, giveUpMs: 1500, bytesPerMs: 1024 },
  /** The same behind all of its memory, of which a whole buffer may still be on the line. */
  loadHeldBehindMemory: { askMs: 10_000, giveUpMs: 10_000, bytesPerMs: 1024 },

  /**
   * For the confirmation of a destination that has everything, by a migration that is given up: one that confirms runs the guest.
   * Loading takes milliseconds. The guest stands still until then.
   */
  confirmation: 10_000,

  /**
   * For the origin of a relay to let go of its guest once it is told to; QEMU takes milliseconds. The guest stands still, and if
   * it does not come to that, nobody but the origin knows where it is.
   */
  lettingGo: 30_000,
} as const;

/** For how long a destination with so much device state may be silent. */
export const loadLimitMs = ({ giveUpMs, bytesPerMs }: LoadLimits, stateBytes: number): number =>
  giveUpMs + Math.ceil(stateBytes / bytesPerMs);
