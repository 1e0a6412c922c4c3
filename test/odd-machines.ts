// Streams of odd machines that several tests use.

import { ByteWriter } from '../src/format/byte-writer.js';
import { ElementType } from '../src/format/stream/constants.js';
import { footer, sectionHeader, streamEnd } from '../src/format/stream/write.js';
import { patternPage, StreamBuilder } from './streams.js';

/** An ISA-only PC: two of its devices have one name and one instance, and are as long as they like. */
export const described = (
  pageSize: number,
  change: (description: string) => string = (text) => text,
): StreamBuilder => {
  const sections = new ByteWriter();
  const entries = ['first', 'the second', 'cpu'].map((data, index) => {
    const name = index < 2 ? 'isa-ide' : 'cpu';
    sectionHeader(sections, ElementType.SECTION_FULL, 7 + index, name, 0, 3).ascii(data);
    footer(sections, 7 + index);
    const field = `{"name": "data", "type": "buffer", "size": ${data.length}}`;
    return `{"name": "${name}", "instance_id": 0, "vmsd_name": "${name}", "version": 3, "fields": [${field}]}`;
  });
  return new StreamBuilder(2, pageSize)
    .header({ machine: 'isapc' })
    .ramStart([{ name: 'ram', usedLength: 4 * pageSize }])
    .part([{ block: 'ram', page: 1, kind: 'normal', content: patternPage(1, pageSize) }])
    .end()
    .raw(sections.copy())
    .raw(streamEnd(change(`{"page_size": ${pageSize}, "devices": [${entries.join(', ')}]}`)));
};
