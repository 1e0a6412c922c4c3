// The own fields of a balloon in its device state as QEMU lays them out (hw/virtio/virtio-balloon.c; read from real streams):
//
//   NAME/virtio-balloon    virtio state (virtio-state.ts) with the fields: num_pages u32  actual u32, then
//     05 "virtio-balloon-device/free-page-report" version u32 = 1   command id u32  status u32   if hints were negotiated
//     05 "virtio-balloon-device/page-poison"      version u32 = 1   poison value u32             if poison was negotiated
//
// The configuration space in the virtio state is what the guest last read of it, so it may say something older.

import { ByteWriter } from '../byte-writer.js';
import { be32, latin1 } from '../bytes.js';
import { invalid } from '../invalid.js';

export const BALLOON_SECTION = 'virtio-balloon';

const FIXED_BYTES = 8;
const SUBSECTION = 5;
const PREFIX = 'virtio-balloon-device/';
const HINT_SUBSECTION = `${PREFIX}free-page-report`;
const POISON_SUBSECTION = `${PREFIX}page-poison`;

export interface BalloonFields {
  /** Pages that the guest shall give away. */
  readonly targetPages: number;
  /** Pages that it has given away. */
  readonly actualPages: number;
  /** `status`: 0 stop, 1 requested, 2 start, 3 done. */
  readonly freePageHint?: { readonly commandId: number; readonly status: number };
  readonly poisonValue?: number;
}

export const encodeBalloonFields = ({
  targetPages,
  actualPages,
  freePageHint,
  poisonValue,
}: BalloonFields): Uint8Array => {
  const out = new ByteWriter().be32(targetPages).be32(actualPages);
  if (freePageHint !== undefined) {
    out.u8(SUBSECTION).str8(HINT_SUBSECTION).be32(1).be32(freePageHint.commandId).be32(freePageHint.status);
  }
  if (poisonValue !== undefined) {
    out.u8(SUBSECTION).str8(POISON_SUBSECTION).be32(1).be32(poisonValue);
  }
  return out.copy();
};

/** Bytes of the fields that `bytes` starts with. */
export const balloonFieldBytes = (bytes: Uint8Array): number => {
  let at = FIXED_BYTES;
  for (let name = subsectionAt(bytes, at); name !== undefined; name = subsectionAt(bytes, at)) {
    at += headBytes(name) + (name === HINT_SUBSECTION ? 8 : 4);
  }
  return at;
};

/**
 * `fields`: `balloonFieldBytes` bytes.
 * @throws RamferryError `invalid`, BALLOON_STATE
 */
export const decodeBalloonFields = (fields: Uint8Array): BalloonFields => {
  if (fields.length !== balloonFieldBytes(fields)) {
    throw broken('fields that end too early', fields.length, fields.length);
  }
  let freePageHint: BalloonFields['freePageHint'];
  let poisonValue: number | undefined;
  let at = FIXED_BYTES;
  for (let name = subsectionAt(fields, at); name !== undefined; name = subsectionAt(fields, at)) {
    const version = be32(fields, at + headBytes(name) - 4);
    if (version !== 1) {
      throw broken(`version ${version} of "${name}"`, at, version);
    }
    at += headBytes(name);
    if (name === HINT_SUBSECTION) {
      freePageHint = { commandId: be32(fields, at), status: be32(fields, at + 4) };
      if (freePageHint.status > 3) {
        throw broken(`free page hint status ${freePageHint.status}`, at + 4, freePageHint.status);
      }
      at += 8;
    } else {
      poisonValue = be32(fields, at);
      at += 4;
    }
  }
  return {
    targetPages: be32(fields, 0),
    actualPages: be32(fields, 4),
    ...(freePageHint !== undefined && { freePageHint }),
    ...(poisonValue !== undefined && { poisonValue }),
  };
};

const headBytes = (name: string): number => 1 + 1 + name.length + 4;

const subsectionAt = (bytes: Uint8Array, at: number): string | undefined =>
  [HINT_SUBSECTION, POISON_SUBSECTION].find(
    (name) =>
      bytes[at] === SUBSECTION &&
      bytes[at + 1] === name.length &&
      latin1(bytes, at + 2, Math.min(at + 2 + name.length, bytes.length)) === name,
  );

const broken = (what: string, at: number, value: number): Error =>
  invalid('BALLOON_STATE', `The state of a balloon device has ${what}`, at, { value });
