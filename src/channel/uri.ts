// Channel addresses as QEMU spells them, so that one string works on both command lines:
//
//   tcp:HOST:PORT           tcp:[::1]:4444   tcp::4444 (listening: on every address)   port 0: any free one
//                           options of QEMU: ,ipv4=on ,ipv6=on ,to=PORT ,keep-alive=on
//   unix:PATH
//   file:PATH[,offset=N]    N decimal or 0x…
//   exec:COMMAND            run by /bin/sh -c
//   fd:N                    a descriptor this process inherited
//   -                       stdin and stdout (ours, not QEMU's)
//
// and as libvirt spells them: tcp://HOST:PORT, unix:///PATH.

import { byteSize } from '../memory/byte-size.js';
import { RamferryError } from '../memory/errors.js';
import { formatTcp, parseTcp, type TcpEndpoint } from './uri-tcp.js';

export type Endpoint =
  | TcpEndpoint
  | { readonly kind: 'unix'; readonly path: string }
  | { readonly kind: 'file'; readonly path: string; readonly offset: number }
  | { readonly kind: 'exec'; readonly command: string }
  | { readonly kind: 'fd'; readonly descriptor: number }
  | { readonly kind: 'stdio' };

export const URI_FORMS = 'tcp:HOST:PORT, unix:PATH, file:PATH[,offset=N], exec:COMMAND, fd:N or -';

/** `sun_path` of Linux has 108 bytes, one of them the terminating zero; a longer path would be cut silently. */
const MAX_UNIX_PATH_BYTES = 107;

/** QEMU looks for the first occurrence, so a path that contains this text cannot be named in either program. */
const OFFSET_OPTION = ',offset=';

const MAX_DESCRIPTOR = 2 ** 31 - 1;

/** The error for an address that cannot be used, with what it is meant for in the complaint. */
export const usageError = (uri: string, complaint: string, hint = `use ${URI_FORMS}`): RamferryError =>
  new RamferryError('usage', 'INVALID_URI', `"${uri}" is not a usable address: ${complaint}.`, { value: uri, hint });

/** The number that `text` spells in decimal digits, if it is at most `maximum`. */
const decimal = (text: string, maximum: number): number | undefined =>
  /^[0-9]+$/.test(text) && Number(text) <= maximum ? Number(text) : undefined;

const parseTcpUri = (uri: string, rest: string): Endpoint => {
  const parsed = parseTcp(rest);
  if ('complaint' in parsed) {
    throw usageError(uri, parsed.complaint, parsed.hint);
  }
  return parsed;
};

const parseUnix = (uri: string, path: string): Endpoint => {
  const byteCount = new TextEncoder().encode(path).length;
  if (byteCount === 0) {
    throw usageError(uri, 'unix: takes a path');
  }
  if (byteCount > MAX_UNIX_PATH_BYTES) {
    throw usageError(
      uri,
      `a socket path may have ${MAX_UNIX_PATH_BYTES} bytes, this one has ${byteCount}`,
      'use a shorter path, or change to the directory and give a relative one',
    );
  }
  return { kind: 'unix', path };
};

const parseFile = (uri: string, rest: string): Endpoint => {
  const at = rest.indexOf(OFFSET_OPTION);
  const path = at < 0 ? rest : rest.slice(0, at);
  const offsetText = at < 0 ? '0' : rest.slice(at + OFFSET_OPTION.length);
  const offset = byteSize(offsetText);
  if (path === '') {
    throw usageError(uri, 'file: takes a path');
  }
  if (offset === undefined) {
    throw usageError(uri, `the offset "${offsetText}" is not a number of bytes below 2^53, such as 4096, 0x1000 or 4K`);
  }
  return { kind: 'file', path, offset };
};

/** Throws a `usage` error with code `INVALID_URI` or `UNSUPPORTED_URI`. */
export const parseUri = (uri: string): Endpoint => {
  if (uri === '-') {
    return { kind: 'stdio' };
  }
  const colon = uri.indexOf(':');
  const rest = uri.slice(colon + 1);
  const scheme = colon < 0 ? '' : uri.slice(0, colon);
  switch (scheme) {
    case 'tcp':
      return parseTcpUri(uri, /^\/\/(.*?)\/?$/s.exec(rest)?.[1] ?? rest);
    case 'unix':
      // Three slashes or two, the system takes them as one.
      return parseUnix(uri, rest.replace(/^\/{2,}/, '/'));
    case 'file':
      return parseFile(uri, rest);
    case 'exec':
      if (rest.trim() === '') {
        throw usageError(uri, 'exec: takes a command');
      }
      return { kind: 'exec', command: rest };
    case 'fd': {
      const descriptor = decimal(rest, MAX_DESCRIPTOR);
      if (descriptor === undefined) {
        throw usageError(
          uri,
          `"${rest}" is not the number of a descriptor`,
          'inherit the descriptor and give its number, as in fd:3',
        );
      }
      return { kind: 'fd', descriptor };
    }
    case 'vsock':
    case 'rdma':
      throw new RamferryError('usage', 'UNSUPPORTED_URI', `"${uri}": ${scheme}: addresses are not supported.`, {
        value: uri,
        hint:
          scheme === 'vsock' ? 'bridge it, as in exec:socat - VSOCK-CONNECT:CID:PORT' : 'use tcp: over the same link',
      });
    default:
      throw scheme === ''
        ? usageError(
            uri,
            'it names no transport',
            uri.includes('/') ? `a socket is unix:${uri}, a file file:${uri}` : undefined,
          )
        : usageError(uri, `there is no transport "${scheme}"`);
  }
};

/** The URI that `parseUri` turns into an equal endpoint. */
export const formatUri = (endpoint: Endpoint): string => {
  switch (endpoint.kind) {
    case 'tcp':
      return formatTcp(endpoint);
    case 'unix':
      return `unix:${endpoint.path}`;
    case 'file':
      return `file:${endpoint.path}${endpoint.offset === 0 ? '' : `${OFFSET_OPTION}${endpoint.offset}`}`;
    case 'exec':
      return `exec:${endpoint.command}`;
    case 'fd':
      return `fd:${endpoint.descriptor}`;
    case 'stdio':
      return '-';
  }
};
