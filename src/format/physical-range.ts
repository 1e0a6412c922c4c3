// What a map of the guest-physical address space is made of.

/** Bytes [offset, offset + bytes) of a block lie at this guest-physical address. */
export interface PhysicalRange {
  readonly address: number;
  /** Position in `setup.blocks`. */
  readonly block: number;
  readonly offset: number;
  readonly bytes: number;
}

/** A block that has no address here. */
export interface UnplacedBlock {
  readonly block: number;
  /**
   * `memory`: the guest has it at an address, which the file does not say; `device`: memory of a device, where the guest has put it
   * if it uses it; `blob`: never in the address space.
   */
  readonly kind: 'memory' | 'device' | 'blob';
  /** A sentence. */
  readonly reason: string;
  readonly hint?: string;
}
