// A monitor that a test plays: greets, accepts the negotiation and gives every other command to the test.

import { createServer, type Server, type Socket } from 'node:net';

const greeting =
  '{"QMP":{"version":{"qemu":{"micro":22,"minor":2,"major":7},"package":"x"},"capabilities":["oob"]}}\r\n';

export interface Command {
  readonly execute: string;
  readonly arguments?: Record<string, unknown>;
  readonly id: number;
}

/** Runs `use` with the address of a monitor that gives every command to `answer`. */
export const monitor = async (
  answer: (command: Command, socket: Socket) => void,
  use: (uri: string) => Promise<void>,
  hello = greeting,
): Promise<void> => {
  const sockets = new Set<Socket>();
  const server: Server = createServer((socket) => {
    sockets.add(socket);
    socket.on('error', () => {});
    socket.write(hello);
    let text = '';
    socket.on('data', (chunk) => {
      text += String(chunk);
      const lines = text.split('\n');
      text = lines.pop()!;
      for (const line of lines) {
        const command = JSON.parse(line) as Command;
        if (command.execute === 'qmp_capabilities') {
          socket.write(`${JSON.stringify({ return: {}, id: command.id })}\r\n`);
        } else {
          answer(command, socket);
        }
      }
    });
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as { port: number };
  try {
    await use(`tcp:127.0.0.1:${port}`);
  } finally {
    for (const socket of sockets) {
      socket.destroy();
    }
    server.close();
  }
};

export const send = (socket: Socket, message: unknown): void => {
  socket.write(`${JSON.stringify(message)}\r\n`);
};
