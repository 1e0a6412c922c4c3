// All non-RAM sections of a stream, as bytes: ramferry passes device state through untouched (spec/qemu-wire-format.md
// 1.10) and never interprets it.

/** Device state as stream bytes, with the description that says where each section ends. */
export interface DeviceTail {
  /** FULL sections that go between RAM START and the first PART (virtio-mem's early section), footers included; often empty. */
  readonly early: Uint8Array;
  /** FULL sections after RAM END, footers included, without the EOF element. */
  readonly sections: Uint8Array;
  /** The VM description: the JSON text that follows EOF; empty if the stream had none. */
  readonly description: string;
}
