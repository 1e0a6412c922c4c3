// The configuration element: what both ends must agree on before any state (spec/qemu-wire-format.md 1.2).

import { RamferryError } from '../../memory/errors.js';
import type { ByteWriter } from '../byte-writer.js';
import { ElementType } from './constants.js';

export interface StreamConfiguration {
  /** Machine type name, e.g. `pc-i440fx-10.0`; empty where the configuration is missing. */
  readonly machine: string;
  /** The stream has none, as with machine types up to 2.3: no reader with another machine type takes it. */
  readonly isMissing?: true;
  /** log2 of the target page size; undefined where the stream leaves it to the architecture (always on x86). */
  readonly targetPageBits: number | undefined;
  /** Capabilities that change the grammar and are on: `x-ignore-shared`, `mapped-ram`. */
  readonly capabilities: readonly string[];
  /** Textual UUID. */
  readonly uuid: string | undefined;
}

/** Names of the three subsections that exist. */
export const ConfigurationSubsection = {
  TARGET_PAGE_BITS: 'configuration/target-page-bits',
  CAPABILITIES: 'configuration/capabilities',
  UUID: 'configuration/uuid',
} as const;

/** Appends the element. Subsections come in QEMU's order; one that holds nothing is left out, as QEMU does. */
export const writeConfiguration = (out: ByteWriter, configuration: StreamConfiguration): void => {
  const { machine, targetPageBits, capabilities, uuid } = configuration;
  out.u8(ElementType.CONFIGURATION).be32(machine.length).ascii(machine);
  const subsection = (name: string): ByteWriter => out.u8(ElementType.SUBSECTION).str8(name).be32(1);
  if (targetPageBits !== undefined) {
    subsection(ConfigurationSubsection.TARGET_PAGE_BITS).be32(targetPageBits);
  }
  if (capabilities.length > 0) {
    subsection(ConfigurationSubsection.CAPABILITIES).be32(capabilities.length);
    for (const capability of capabilities) {
      out.str8(capability);
    }
  }
  if (uuid !== undefined) {
    subsection(ConfigurationSubsection.UUID).bytes(uuidBytes(uuid));
  }
};

const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i;

/** The 16 bytes of a textual UUID, in the order of the text. */
export const uuidBytes = (text: string): Uint8Array => {
  if (!UUID.test(text)) {
    throw new RamferryError('usage', 'USAGE_UUID', `"${text}" is not a UUID.`, { value: text });
  }
  const digits = text.replaceAll('-', '');
  return Uint8Array.from({ length: 16 }, (_, index) => Number.parseInt(digits.slice(index * 2, index * 2 + 2), 16));
};

/** The textual form of 16 UUID bytes. */
export const uuidText = (bytes: Uint8Array): string => {
  const digits = Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
  return [0, 8, 12, 16, 20].map((start, index, starts) => digits.slice(start, starts[index + 1])).join('-');
};
