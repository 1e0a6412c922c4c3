// `tcp:HOST:PORT[,OPTION…]`, with the options of QEMU that mean something here.

/** Where to listen or to connect to. */
export interface TcpEndpoint {
  readonly kind: 'tcp';
  /** Empty when listening: every address. */
  readonly host: string;
  readonly port: number;
  /** Only addresses of this version of IP (`ipv4=on`, `ipv6=on`). */
  readonly family?: 4 | 6;
  /** When listening: the last port to try where those before it are taken (`to=PORT`). */
  readonly lastPort?: number;
  /** Have the system notice a peer that is gone (`keep-alive=on`). */
  readonly keepAlive?: true;
}

/** What is wrong with an address, and what to do about it. */
export interface TcpComplaint {
  readonly complaint: string;
  readonly hint?: string;
}

const MAX_PORT = 65535;

const OPTIONS = 'ipv4=on|off, ipv6=on|off, to=PORT and keep-alive=on|off';

const portOf = (text: string): number | undefined =>
  /^[0-9]+$/.test(text) && Number(text) <= MAX_PORT ? Number(text) : undefined;

/** `on`, `off`, or the name of the option alone, as QEMU has it. */
const switchOf = (text: string | undefined): boolean | undefined =>
  text === undefined || text === 'on' ? true : text === 'off' ? false : undefined;

/** `rest` is what follows `tcp:`. */
export const parseTcp = (rest: string): TcpEndpoint | TcpComplaint => {
  const [address = '', ...options] = rest.split(',');
  const match = /^(?:\[([^\]]*)\]|([^:[\]]*)):([^:]*)$/.exec(address);
  if (match === null) {
    const hint = address.includes(':')
      ? 'write an IPv6 address in brackets, as in tcp:[::1]:4444'
      : 'give both, as in tcp:host2:4444; to listen on every address, tcp::4444';
    return { complaint: 'tcp: takes HOST:PORT', hint };
  }
  const port = portOf(match[3]!);
  if (port === undefined) {
    return { complaint: `the port "${match[3]}" is not a number from 0 to ${MAX_PORT}` };
  }
  const endpoint = { kind: 'tcp' as const, host: match[1] ?? match[2]!, port };
  return options.length === 0 ? endpoint : withOptions(endpoint, options);
};

const withOptions = (endpoint: TcpEndpoint, options: readonly string[]): TcpEndpoint | TcpComplaint => {
  const values = new Map<string, string | undefined>();
  for (const option of options) {
    const [name = '', value] = option.split(/=(.*)/s);
    values.set(name, value);
  }
  const switches = { ipv4: undefined, ipv6: undefined, 'keep-alive': undefined } as Record<string, boolean | undefined>;
  for (const [name, value] of values) {
    if (name === 'to') {
      continue;
    }
    if (!(name in switches)) {
      return {
        complaint: `it has the option "${name}", which is not known here`,
        hint: `options of tcp: are ${OPTIONS}`,
      };
    }
    switches[name] = switchOf(value);
    if (switches[name] === undefined) {
      return { complaint: `"${name}" is on or off, not "${value}"` };
    }
  }
  const { ipv4, ipv6 } = switches;
  if (ipv4 === false && ipv6 === false) {
    return { complaint: 'with ipv4=off and ipv6=off there is no address left' };
  }
  // As QEMU: both on is as if neither had been said, and one off is the other on.
  const family = ipv4 === ipv6 ? undefined : ipv6 === true || ipv4 === false ? 6 : 4;
  let lastPort: number | undefined;
  if (values.has('to')) {
    lastPort = portOf(values.get('to') ?? '');
    if (lastPort === undefined || lastPort < endpoint.port) {
      return { complaint: `to=${values.get('to') ?? ''} is not a port from ${endpoint.port} to ${MAX_PORT}` };
    }
  }
  return {
    ...endpoint,
    ...(family !== undefined && { family }),
    ...(lastPort !== undefined && { lastPort }),
    ...(switches['keep-alive'] === true && { keepAlive: true as const }),
  };
};

/** What `parseTcp` turns into an equal endpoint, with `tcp:` before it. */
export const formatTcp = ({ host, port, family, lastPort, keepAlive }: TcpEndpoint): string =>
  [
    `tcp:${host.includes(':') ? `[${host}]` : host}:${port}`,
    ...(lastPort === undefined ? [] : [`to=${lastPort}`]),
    ...(family === undefined ? [] : [`ipv${family}=on`]),
    ...(keepAlive === true ? ['keep-alive=on'] : []),
  ].join(',');
