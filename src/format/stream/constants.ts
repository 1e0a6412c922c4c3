// The numbers of QEMU's migration stream, with the grammar they belong to (spec/qemu-wire-format.md 1, 2, 5).
//
//   stream        := "QEVM" be32(3) [configuration] element* EOF [description]
//   configuration := 07 be32(n) machine[n] subsection*
//   subsection    := 05 str8(name) be32(version) body
//   element       := START be32(id) str8("ram") be32(instance) be32(4) ram-setup footer       once
//                  | PART  be32(id) ram-body footer
//                  | END   be32(id) ram-body footer                                           once
//                  | FULL  be32(id) str8(name) be32(instance) be32(version) body footer       devices
//                  | COMMAND be16(command) be16(n) payload[n]
//   footer        := [7e be32(id)]
//   Machine types up to 2.3 have no configuration and no footers.
//
//   description   := 06 be32(n) json[n]
//
//   ram-setup     := be64(total|MEM_SIZE) { str8(block) be64(length) [be64(address)] }* ram-body
//   ram-body      := record* be64(EOS)
//   record        := be64(offset|flag|CONTINUE)             payload
//                  | be64(offset|flag) str8(block)          payload
//   payload       := 00  (ZERO)  |  byte[page]  (PAGE)  |  01 be16(n) byte[n]  (XBZRLE)
//
//   63                                12 11            0
//   +-----------------------------------+---------------+
//   |  byte offset in the block         |     flags     |   flags end at bit 9, on AVR's pages of 256 bytes at bit 7
//   +-----------------------------------+---------------+

/** "QEVM". */
export const STREAM_MAGIC = 0x5145564d;
export const STREAM_VERSION = 3;

/** Version of the RAM section's grammar; 4 since 2009. */
export const RAM_SECTION_VERSION = 4;

export const ElementType = {
  EOF: 0x00,
  SECTION_START: 0x01,
  SECTION_PART: 0x02,
  SECTION_END: 0x03,
  SECTION_FULL: 0x04,
  SUBSECTION: 0x05,
  VMDESCRIPTION: 0x06,
  CONFIGURATION: 0x07,
  COMMAND: 0x08,
  SECTION_FOOTER: 0x7e,
} as const;

/** Flags in the low bits of a record head. Exactly one is set, besides CONTINUE. */
export const RecordFlag = {
  ZERO: 0x002,
  MEM_SIZE: 0x004,
  PAGE: 0x008,
  EOS: 0x010,
  /** Modifier of page records: same block as the page record before it. */
  CONTINUE: 0x020,
  XBZRLE: 0x040,
  /** RDMA only; no payload. */
  HOOK: 0x080,
  /** Until QEMU 9.0. */
  COMPRESS_PAGE: 0x100,
  MULTIFD_FLUSH: 0x200,
} as const;

export const Command = {
  OPEN_RETURN_PATH: 1,
  PING: 2,
  POSTCOPY_ADVISE: 3,
  POSTCOPY_LISTEN: 4,
  POSTCOPY_RUN: 5,
  POSTCOPY_RAM_DISCARD: 6,
  PACKAGED: 7,
  ENABLE_COLO: 8,
  POSTCOPY_RESUME: 9,
  RECV_BITMAP: 10,
  SWITCHOVER_START: 11,
} as const;

/** Messages from the destination to the source (5.5). */
export const ReturnPathMessage = {
  SHUT: 1,
  PONG: 2,
  REQ_PAGES_ID: 3,
  REQ_PAGES: 4,
  RECV_BITMAP: 5,
  RESUME_ACK: 6,
  SWITCHOVER_ACK: 7,
} as const;

/** Capabilities that change the stream's grammar; the only ones QEMU writes into the configuration element (1.2). */
export const Capability = {
  IGNORE_SHARED: 'x-ignore-shared',
  MAPPED_RAM: 'mapped-ram',
} as const;

/** Target page size of x86, and of every machine that does not say otherwise and that we have met. */
export const DEFAULT_TARGET_PAGE_SIZE = 4096;

/** Smallest and largest target page any QEMU target has: 256 bytes (AVR), 1 KiB (old Arm) to 64 KiB. */
export const TARGET_PAGE_BITS = { smallest: 8, largest: 16 } as const;
