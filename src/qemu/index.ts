// Public surface of ramferry/qemu: driving a stock QEMU.

export { type FoundQemu, findQemu, qemuVersion } from './find-qemu.js';
export { FIRST_LENT_DESCRIPTOR, type QemuExit, QemuProcess, type QemuStartOptions } from './qemu-process.js';
export {
  type QemuVersion,
  QmpClient,
  QmpCommandError,
  type QmpConnectOptions,
  type QmpEvent,
  type QmpExecuteOptions,
  type QmpWaitOptions,
} from './qmp-client.js';
export type {
  MigrationCapability,
  MigrationInfo,
  MigrationRam,
  MigrationStatus,
  QmpCommands,
  XbzrleCache,
} from './qmp-commands.js';
