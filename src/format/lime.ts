// LiME dumps, version 1: what Volatility and the like read. Ranges of memory in ascending order of their addresses, each behind a
// header of its own; what lies between two ranges is not in the file.
//
//   0  "EMiL", which is 0x4c694d45   4  version   8  first address   16  last address   24  reserved

import { LittleEndianWriter } from './little-endian-writer.js';

const MAGIC = 0x4c69_4d45;
const VERSION = 1;

export const LIME_HEADER_BYTES = 32;

/** What stands before `bytes` bytes of memory at a guest-physical address. */
export const limeHeader = (address: number, bytes: number): Uint8Array =>
  new LittleEndianWriter(LIME_HEADER_BYTES)
    .u32(MAGIC)
    .u32(VERSION)
    .u64(address)
    .u64(address + bytes - 1)
    .skip(8).written;
