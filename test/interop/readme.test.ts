// The README, typed as a newcomer does: every command in its order, in one shell, with the QEMU that is there. What is shown of
// the output is of another guest, and not compared; that each command works is.

import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { interopTest, type Lab, poll } from './lab.js';

const root = fileURLToPath(new URL('../../../', import.meta.url));

/** What takes long, and has tests of its own. */
const NOT_TYPED = /^(npm |ramferry demo)/;

/** What fails with the guest of the README, as the README says. */
const REFUSED: ReadonlyMap<string, RegExp> = new Map([
  ['ramferry kernel guest.mig', /No Linux kernel is in the memory/],
]);

/** The commands of a Markdown text, a block at a time: all of a block `sh`, what is behind `$ ` in a block `console`. */
export const commandsIn = (markdown: string): string[] =>
  [...markdown.matchAll(/^```(sh|console)\n([\s\S]*?)^```$/gm)].flatMap(([, kind, block = '']) =>
    kind === 'sh' ? [block.trimEnd()] : [...block.matchAll(/^\$ (.*(?:\\\n.*)*)$/gm)].map((match) => match[1]!),
  );

/** A shell that is typed into. */
class Shell {
  readonly #child: ChildProcess;
  #printed = '';
  #typed = 0;

  constructor(lab: Lab, env: NodeJS.ProcessEnv) {
    // A group of its own: what it has started ends with it.
    this.#child = spawn('/bin/bash', ['--norc'], { cwd: root, env, detached: true, stdio: ['pipe', 'pipe', 'pipe'] });
    for (const stream of [this.#child.stdout!, this.#child.stderr!]) {
      stream.setEncoding('utf8').on('data', (text: string) => (this.#printed += text));
    }
    lab.onClose(() => {
      process.kill(-this.#child.pid!, 'SIGKILL');
    });
  }

  /** What has been printed from `position` on. */
  printed(position = 0): string {
    return this.#printed.slice(position);
  }

  get position(): number {
    return this.#printed.length;
  }

  /** Resolves with the status of the command, and what it printed until then. */
  async type(command: string): Promise<{ status: number; printed: string }> {
    const begin = this.position;
    const end = `typed-${(this.#typed += 1)}`;
    this.#child.stdin!.write(`${command}\necho "${end} $?"\n`);
    const match = await this.says(new RegExp(`${end} (\\d+)\n`), begin);
    return { status: Number(match[1]), printed: this.printed(begin) };
  }

  says(pattern: RegExp, position: number): Promise<RegExpExecArray> {
    return poll(
      () => pattern.exec(this.printed(position)) ?? undefined,
      () => `it has not said ${pattern}: ${this.printed(position)}`,
      60_000,
    );
  }
}

interopTest(
  'the README can be typed, from its first command to its last',
  async (lab) => {
    const qemu = await lab.program();
    assert.equal(path.basename(qemu), 'qemu-system-x86_64');
    const folder = lab.path('first');
    const typed = commandsIn(fs.readFileSync(path.join(root, 'README.md'), 'utf8'))
      .filter((command) => !NOT_TYPED.test(command))
      .map((command) => command.replaceAll('/tmp/first', folder).replaceAll('/dev/shm/guest', `${folder}/spool`));
    assert.ok(typed.length > 20, `${typed.length} commands`);
    const environment = {
      ...process.env,
      PATH: `${path.dirname(qemu)}:${path.dirname(process.execPath)}:/usr/bin:/bin`,
    };
    const shell = new Shell(lab, environment);
    /** What a verb that goes on in the background says when it is done. */
    let awaited: { readonly end: RegExp; readonly from: number } | undefined;
    for (const command of typed) {
      const from = shell.position;
      const { status, printed } = await shell.type(command);
      const refusal = REFUSED.get(command);
      assert.equal(status, refusal === undefined ? 0 : 1, `${command}: ${printed}`);
      assert.match(printed, refusal ?? /(?:)/);
      // Whoever types looks at what comes of it before the next command.
      if (command.startsWith('ramferry') && command.endsWith('&')) {
        await shell.says(/listening on|clones run/, from);
        awaited = command.startsWith('ramferry clone')
          ? undefined
          : { from, end: command.startsWith('ramferry receive') ? /throughput/ : /: completed/ };
      } else if (command.endsWith('&')) {
        const socket = path.join(folder, /unix:(\w+\.qmp)/.exec(command)![1]!);
        await poll(
          () => fs.existsSync(socket) || undefined,
          () => `${socket} is not there: ${shell.printed(from)}`,
        );
      } else if (command.startsWith('qmp') && command.includes('<<')) {
        const sent = command.split('\n').filter((line) => line.startsWith('{')).length;
        assert.equal(printed.match(/\{"return"/g)?.length, sent, printed);
        assert.match(command, /^qmp .*\n\{"execute":"qmp_capabilities"\}/);
        if (awaited !== undefined) {
          await shell.says(awaited.end, awaited.from);
          awaited = undefined;
        }
      }
    }
    assert.match(shell.printed(), /guest\.mig: valid/);
    assert.match(shell.printed(), /8 clones run/);
  },
  ['10'],
);
