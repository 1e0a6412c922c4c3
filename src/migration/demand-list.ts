// What guests in postcopy ask for, remembered for the next time that one is started from the same file.

import type { GuestPage } from '../source/postcopy.js';

/** Guests that want more than these want everything. */
const MOST = 65_536;

/** The pages that were asked for, in that order; pages come several times. */
export class DemandList {
  /** The first of them. */
  readonly pages: GuestPage[] = [];
  /** Of all. */
  count = 0;

  readonly add = (page: GuestPage): void => {
    this.count += 1;
    if (this.pages.length < MOST) {
      this.pages.push(page);
    }
  };
}
