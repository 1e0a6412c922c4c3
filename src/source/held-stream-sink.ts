// A precopy stream that stops in front of its end.

import type { ByteChannel } from '../channel/channel.js';
import type { DeviceTail } from '../format/stream/device-tail.js';
import { PostcopyPing } from '../format/stream/postcopy-commands.js';
import type { ReturnPathHandler } from '../format/stream/return-path.js';
import { ping, streamEnd } from '../format/stream/write.js';
import { StreamSink } from './stream-sink.js';

export interface HeldStreamOptions {
  /** The first eight bytes of the stream have left already. */
  readonly isBegun: boolean;
  /** All pages and devices have left. */
  readonly onDevices: () => void;
  /** The destination has loaded them, and waits for the end. */
  readonly onLoaded: () => void;
}

/**
 * Sends all of a guest but the end of its stream, which follows when it is released. A QEMU has everything loaded then and answers
 * for it; only the end makes it take the guest's disks, and start it if the stream says that it ran.
 */
export class HeldStreamSink extends StreamSink {
  readonly #options: HeldStreamOptions;
  #description = '';
  #isLoaded = false;
  #isReleased = false;

  constructor(channel: ByteChannel, options: HeldStreamOptions) {
    super(channel, { returnPath: true, isBegun: options.isBegun });
    this.#options = options;
  }

  protected override returnPathHandler(): Partial<ReturnPathHandler> {
    return {
      pong: (value) => {
        this.#isLoaded ||= value === PostcopyPing.DEVICES_LOADED;
        this.wake();
      },
    };
  }

  override writeDevices({ sections, description }: DeviceTail): void {
    this.#description = description;
    this.append(sections);
    this.append(ping(PostcopyPing.DEVICES_LOADED));
  }

  override async finish(): Promise<void> {
    this.#options.onDevices();
    await this.until(() => this.#isLoaded);
    this.#options.onLoaded();
    await this.until(() => this.#isReleased);
    this.appendEnd(streamEnd(this.#description));
    await this.flush();
    await super.finish();
  }

  /** The guest is the destination's. */
  release(): void {
    this.#isReleased = true;
    this.wake();
  }
}
