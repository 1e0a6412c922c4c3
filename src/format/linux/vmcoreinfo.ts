// What a Linux kernel writes down for those who read its memory: addresses of symbols, sizes and offsets of structures, as lines of text.
//
//   OSRELEASE=6.1.0-57-cloud-amd64       SYMBOL(prb)=ffffffffbd6622c0        SIZE(prb_desc)=24
//   KERNELOFFSET=3ac00000                OFFSET(prb_desc.state_var)=0        NUMBER(phys_base)=-882900992

import { latin1 } from '../bytes.js';

/** Most bytes of such a text. The kernel keeps a page, of 64 KiB at the most. */
export const VMCOREINFO_LIMIT = 64 * 1024;

/** How each of them begins. */
export const VMCOREINFO_START = 'OSRELEASE=';

const BEGINNING = new RegExp(`^${VMCOREINFO_START}\\d[\\w.+~-]{0,128}\\n`);
const LINE = /^(?:(SYMBOL|SIZE|OFFSET|LENGTH|NUMBER)\(([\w.$]{1,256})\)|([A-Z][\w-]{0,63}))=(.{1,512})$/;

/** The VMCOREINFO of one kernel. */
export class Vmcoreinfo {
  /** All lines, as the kernel wrote them. */
  readonly text: string;
  readonly #values = new Map<string, string>();

  /** Use `parseVmcoreinfo`. */
  constructor(text: string) {
    this.text = text;
    for (const line of text.split('\n')) {
      const match = LINE.exec(line);
      if (match !== null) {
        const [, kind, name, plain, value] = match;
        this.#values.set(plain ?? `${kind}(${name})`, value!);
      }
    }
  }

  /** As `uname -r` says it. */
  get release(): string {
    return this.#values.get('OSRELEASE') ?? '';
  }

  /** A line without parentheses, such as `BUILD-ID`. */
  value(name: string): string | undefined {
    return this.#values.get(name);
  }

  /** Virtual address of a symbol. */
  symbol(name: string): bigint | undefined {
    return hexadecimal(this.#values.get(`SYMBOL(${name})`));
  }

  /** Size of a structure, bytes. */
  size(name: string): number | undefined {
    return small(this.#values.get(`SIZE(${name})`));
  }

  /** Offset of a member, as in `offset('prb_desc.state_var')`, bytes. */
  offset(name: string): number | undefined {
    return small(this.#values.get(`OFFSET(${name})`));
  }

  number(name: string): bigint | undefined {
    const text = this.#values.get(`NUMBER(${name})`);
    return text !== undefined && /^-?\d{1,20}$/.test(text) ? BigInt(text) : undefined;
  }

  /** By how far KASLR has moved the kernel's virtual addresses; 0 if it has not. */
  get kernelOffset(): bigint | undefined {
    return hexadecimal(this.#values.get('KERNELOFFSET'));
  }

  /** Size of a pointer. */
  get wordBytes(): 4 | 8 {
    return this.size('list_head') === 8 ? 4 : 8;
  }
}

const hexadecimal = (text: string | undefined): bigint | undefined =>
  text !== undefined && /^[0-9a-f]{1,16}$/.test(text) ? BigInt(`0x${text}`) : undefined;

/** Structures are not larger than the kernel's largest arrays in them. */
const small = (text: string | undefined): number | undefined =>
  text !== undefined && /^\d{1,7}$/.test(text) ? Number(text) : undefined;

/** @returns undefined if it is no VMCOREINFO, but for instance the format strings of a program that writes one */
export const parseVmcoreinfo = (bytes: Uint8Array): Vmcoreinfo | undefined => {
  const text = latin1(bytes, 0, Math.min(bytes.length, VMCOREINFO_LIMIT));
  return BEGINNING.test(text) && /\nPAGESIZE=\d{1,9}\n/.test(text)
    ? new Vmcoreinfo(text.slice(0, text.lastIndexOf('\n') + 1))
    : undefined;
};
