// QEMU's migration stream: writer, reader, return path (package subpath `ramferry/format/stream`).

export { type StreamConfiguration, writeConfiguration } from './configuration.js';
export * from './constants.js';
export { DescribedDevices, type DeviceFields, deviceFields } from './device-fields.js';
export type { DeviceSection } from './device-sections.js';
export { buildDeviceTail, type DeviceState, type DeviceTail, deviceStates, pickRamSectionId } from './device-tail.js';
export { DEVICE_TAIL_LIMIT_BYTES } from './device-tail-collector.js';
export { type DeviceField, FieldGroup, type FieldValue, type Subsection } from './field-group.js';
export { fieldsDocument } from './field-json.js';
export { type SavedRunState, savedRunState, withRunState } from './global-state.js';
export * from './postcopy-commands.js';
export { LONGEST_UNIT_BYTES, StreamReader, type StreamReaderOptions } from './read.js';
export * from './return-path.js';
export { StreamSnapshot } from './snapshot.js';
export type { PostcopyHandler, RamSetup, ReadRamBlock, StreamHandler, StreamSummary } from './stream-handler.js';
export * from './write.js';
export { decodeXbzrle, encodeXbzrle, XBZRLE_OVERFLOW } from './xbzrle.js';
