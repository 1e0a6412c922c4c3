// `ramferry device FILE [NAME]`: what a saved guest's devices hold, by name.

import { DescribedDevices, type DeviceFields } from '../format/stream/device-fields.js';
import type { DeviceSection } from '../format/stream/device-sections.js';
import { type FieldsDocument, fieldsDocument } from '../format/stream/field-json.js';
import { RamferryError } from '../memory/errors.js';
import { shellCommand } from '../memory/shell-command.js';
import { findSections } from './device-names.js';
import { bytesText, fieldsText } from './device-text.js';
import { formatCount } from './format.js';
import { deviceText } from './inspect-text.js';
import { type FileOptions, INDEX_HELP, pageSizeOption, readWholeMemoryFile } from './read-memory-file.js';
import { oneLine } from './safe-text.js';
import { terminalColors, terminalColumns } from './terminal.js';
import type { Verb, VerbResult } from './verb.js';

interface DeviceOptions extends FileOptions {
  readonly full?: true;
  readonly raw?: true;
}

/** Most bytes of device state in one answer: text is several times as long, and has to fit one string. */
const MOST_BYTES = 32 * 1024 * 1024;

/** Most fields in one answer, for the same reason. A vCPU has 450, with AMX 9,000. */
const MOST_FIELDS = 2_000_000;

export const device: Verb<DeviceOptions> = {
  configure: (command) =>
    command
      .option('--full', 'whole buffers and arrays, which are cut otherwise; JSON always has all of them')
      .option('--raw', 'the bytes of the section as they are, without names')
      .addOption(pageSizeOption())
      .addHelpText(
        'after',
        '\nNAME is that of a section, with or without the number of an instance ("cpu", "cpu/1"), a pattern with * and ?, or\n' +
          'the end of just one name ("virtio-net"). Without NAME the sections are listed.\n' +
          `"fields" of the JSON are those that QEMU's analyze-migration.py prints.${INDEX_HELP}`,
      ),
  examples: [
    ['guest.mig', 'which devices there are, with the size of each section'],
    ['guest.mig cpu/0', 'the registers of the first vCPU as QEMU saved them'],
    ['guest.mig virtio-net --full', 'a device by the end of its name, with all of its buffers'],
    ["guest.mig '*' --json", 'everything, for a program'],
  ],

  async run({ operands, options, signal, progress }) {
    const [file, name] = operands as [string, string?];
    const opened = await readWholeMemoryFile(file, { signal, progress }, options);
    try {
      const devices = new DescribedDevices(opened.snapshot.summary);
      return name === undefined
        ? list(file, devices)
        : show(file, devices, findSections(devices.sections, name), options);
    } catch (error) {
      throw error instanceof RamferryError && error.kind !== 'usage' ? error.with({ file }) : error;
    } finally {
      opened.close();
    }
  },
};

const list = (file: string, devices: DescribedDevices): VerbResult => {
  const { sections, isDescribed } = devices;
  const colors = terminalColors(process.stdout);
  const note = isDescribed
    ? ''
    : `\n${colors.yellow('warning:')} The file has no VM description: what the sections consist of is not known.\n`;
  return {
    document: { file, described: isDescribed, devices: sections },
    text:
      (sections.length === 0 ? 'The file has no device sections.\n' : deviceText({ devices: sections }, colors)) + note,
  };
};

/** A section as it goes into the JSON. */
interface ShownSection extends DeviceSection {
  readonly vmsd?: string;
  readonly fields?: FieldsDocument;
  readonly hex?: string;
  readonly error?: { readonly code: string; readonly message: string; readonly offset?: number | undefined };
}

/** Of several sections, one that cannot be decoded does not keep the others from being shown. */
const show = (
  file: string,
  devices: DescribedDevices,
  sections: readonly DeviceSection[],
  options: DeviceOptions,
): VerbResult => {
  const bytes = sections.reduce((sum, section) => sum + section.bytes, 0);
  if (bytes > MOST_BYTES) {
    throw tooMuch(`${sections.length} sections have ${bytes} bytes, and ${MOST_BYTES}`, bytes);
  }
  const colors = terminalColors(process.stdout);
  const columns = terminalColumns(process.stdout);
  const full = options.full === true;
  const documents: ShownSection[] = [];
  const texts: string[] = [];
  let failure: RamferryError | undefined;
  let fields = 0;
  for (const section of sections) {
    const { name, instance, version, offset } = section;
    const place = `(instance ${instance}, version ${version}, ${formatCount(section.bytes)} bytes at 0x${offset.toString(16)})`;
    const head = `${colors.bold(name)} ${place}\n`;
    if (options.raw) {
      const body = devices.body(section);
      documents.push({ ...section, hex: Buffer.from(body).toString('hex') });
      texts.push(head + bytesText(body, full));
      continue;
    }
    try {
      const decoded: DeviceFields = devices.fields(section);
      fields += decoded.count;
      if (fields > MOST_FIELDS) {
        throw tooMuch(`sections have ${fields} fields, and ${MOST_FIELDS}`, fields);
      }
      documents.push({ ...section, vmsd: decoded.vmsd, fields: fieldsDocument(decoded) });
      texts.push(head + fieldsText(decoded, { colors, columns, full }));
    } catch (error) {
      if (!(error instanceof RamferryError) || error.kind === 'usage') {
        throw error;
      }
      const wanted = `${name}/${instance}`;
      const hint = `Its bytes, without names: ${shellCommand`ramferry device ${file} ${wanted} --raw`}`;
      failure ??= error.with({ file, hint });
      documents.push({ ...section, error: { code: error.code, message: error.message, offset: error.offset } });
      texts.push(`${head}  ${colors.red(oneLine(error.message))}\n`);
    }
  }
  return { document: { file, described: devices.isDescribed, devices: documents }, text: texts.join('\n'), failure };
};

const tooMuch = (statement: string, value: number): RamferryError =>
  new RamferryError('usage', 'TOO_MUCH_DEVICE_STATE', `The ${statement} can be shown at once.`, {
    value,
    hint: 'name fewer devices',
  });
