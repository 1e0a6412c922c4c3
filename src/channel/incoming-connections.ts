// Whoever connects is told from strangers by what it says first. Connections are looked at side by side, so that one that
// says nothing keeps nobody waiting.
//
//   accept ──▶ candidate ── its first bytes ──▶ judge ── yes ──▶ the one that was looked for; the others are dropped
//          ──▶ candidate                          ├──── no ───▶ dropped
//          ──▶ candidate (nothing to hear)        └──── more ─▶ waits, within a limit (or longer, where that is asked for)

import type { RamferryError } from '../memory/errors.js';
import type { ByteChannel } from './channel.js';
import { PeekedChannel } from './peeked-channel.js';

const RETRY_MS = 100;

/** Whether it is the one, as far as these bytes tell; a connection that ended says nothing more. */
export type Verdict = 'yes' | 'no' | 'more';
export type Judge = (channel: ByteChannel, firstBytes: Uint8Array) => Verdict;

/** A connection that is not, or not yet, the one that is looked for. */
export interface Stranger {
  /** `silent`: it has not said enough within the limit. */
  readonly why: 'said something else' | 'left' | 'silent';
  readonly channel: ByteChannel;
  /** All it has said so far. */
  readonly said: Uint8Array;
}

export interface IncomingConnectionsOptions {
  /** How long a connection may take to say who it is; default 10 s. */
  readonly limitMs?: number;
  /** Whoever is silent for longer is reported and still listened to, until its place is needed. By default it is dropped. */
  readonly isPatient?: boolean;
  readonly onStranger?: (stranger: Stranger) => void;
  /** How many are listened to at a time; the oldest makes room. Default 64. */
  readonly most?: number;
}

interface Candidate {
  readonly channel: PeekedChannel;
  readonly timer: ReturnType<typeof setTimeout>;
}

/** What is looked for at present. */
interface Search {
  readonly judge: Judge;
  readonly found: (channel: ByteChannel) => void;
  readonly failed: (error: unknown) => void;
}

export class IncomingConnections {
  /** Connections that were dropped: strangers. */
  refused = 0;
  readonly #accept: () => Promise<ByteChannel>;
  readonly #limitMs: number;
  readonly #most: number;
  readonly #isPatient: boolean;
  readonly #onStranger: (stranger: Stranger) => void;
  readonly #candidates = new Set<Candidate>();
  /** Came while nothing was looked for. */
  readonly #early: ByteChannel[] = [];
  #search: Search | undefined;
  #isAccepting = false;
  #isClosed = false;

  /** `accept` resolves with the next connection, and rejects when there will be none. */
  constructor(accept: () => Promise<ByteChannel>, options: IncomingConnectionsOptions = {}) {
    const { limitMs = 10_000, most = 64, isPatient = false, onStranger = () => {} } = options;
    this.#accept = accept;
    this.#limitMs = limitMs;
    this.#most = most;
    this.#isPatient = isPatient;
    this.#onStranger = onStranger;
  }

  /** Resolves with the first connection that `judge` says yes to. Rejects with why there will be none. One search at a time. */
  find(judge: Judge, signal?: AbortSignal): Promise<ByteChannel> {
    const cancel = (): void => this.#search?.failed(signal!.reason);
    return new Promise<ByteChannel>((found, failed) => {
      this.#search = { judge, found, failed };
      signal?.addEventListener('abort', cancel);
      if (signal?.aborted === true) {
        cancel();
      }
      for (const channel of this.#early.splice(0)) {
        this.#examine(channel);
      }
      this.#acceptNext();
    }).finally(() => {
      signal?.removeEventListener('abort', cancel);
      this.#search = undefined;
      this.#dropCandidates();
    });
  }

  /** Nobody is looked for any more. */
  close(): void {
    this.#isClosed = true;
    for (const channel of this.#early.splice(0)) {
      channel.destroy();
    }
    this.#dropCandidates();
  }

  #acceptNext(): void {
    if (this.#isAccepting) {
      return;
    }
    this.#isAccepting = true;
    this.#accept().then(
      (channel) => {
        this.#isAccepting = false;
        if (this.#isClosed) {
          channel.destroy();
        } else if (this.#search === undefined) {
          this.#early.push(channel);
        } else {
          this.#examine(channel);
          this.#acceptNext();
        }
      },
      (error) => {
        this.#isAccepting = false;
        if ((error as Partial<RamferryError>).code === 'CHANNEL_FAILED' && !this.#isClosed) {
          // No descriptor was free, for example: whoever listens goes on.
          setTimeout(() => this.#search !== undefined && this.#acceptNext(), RETRY_MS);
        } else {
          this.#search?.failed(error);
        }
      },
    );
  }

  #examine(channel: ByteChannel): void {
    if (this.#candidates.size >= this.#most) {
      const [oldest] = this.#candidates;
      this.#refuse(oldest!, 'silent');
    }
    const timer = setTimeout(() => this.#silent(candidate), this.#limitMs);
    const candidate: Candidate = { channel: new PeekedChannel(channel), timer };
    this.#candidates.add(candidate);
    candidate.channel.peek(() => this.#heard(candidate));
  }

  #heard(candidate: Candidate): void {
    const search = this.#search;
    if (search === undefined || !this.#candidates.has(candidate)) {
      return;
    }
    const { channel } = candidate;
    const verdict = search.judge(channel, channel.first);
    if (verdict === 'yes') {
      channel.hold();
      this.#forget(candidate);
      this.#search = undefined;
      search.found(channel);
    } else if (verdict === 'no') {
      this.#refuse(candidate, 'said something else');
    } else if (channel.hasEnded) {
      this.#refuse(candidate, 'left');
    }
  }

  #silent(candidate: Candidate): void {
    if (this.#isPatient) {
      this.#report(candidate, 'silent');
    } else {
      this.#refuse(candidate, 'silent');
    }
  }

  #report({ channel }: Candidate, why: Stranger['why']): void {
    this.#onStranger({ why, channel, said: channel.first });
  }

  /** Without a reason it is nobody's fault, and not reported: the search is over. */
  #refuse(candidate: Candidate, why?: Stranger['why']): void {
    if (this.#forget(candidate)) {
      this.refused += 1;
      if (why !== undefined) {
        this.#report(candidate, why);
      }
      candidate.channel.destroy();
    }
  }

  #forget(candidate: Candidate): boolean {
    clearTimeout(candidate.timer);
    return this.#candidates.delete(candidate);
  }

  #dropCandidates(): void {
    for (const candidate of [...this.#candidates]) {
      this.#refuse(candidate);
    }
  }
}
