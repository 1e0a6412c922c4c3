// `ramferry/channel`: byte channels, what opens them, and the rate limit.

export type { ByteChannel, ChannelListener, ChannelReader } from './channel.js';
export {
  IncomingConnections,
  type IncomingConnectionsOptions,
  type Judge,
  type Verdict,
} from './incoming-connections.js';
export { listen } from './listen-node.js';
export { type OpenOptions, openChannel } from './open-channel-node.js';
export type { PositionedFile } from './positioned-file.js';
export { openPositionedFile, type PositionedFileOptions } from './positioned-file-node.js';
export { RATE_WINDOW_MS, RateLimit } from './rate-limit.js';
export { type Endpoint, formatUri, parseUri } from './uri.js';
