// crash, drgn and gdb on cores of a guest with Debian's kernel, each asked the same questions in its own language.

import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import type { Debuggers } from '../toolbox/toolbox.js';
import type { Lab } from './lab.js';

/** Where the kernel's text is without KASLR. */
const TEXT = 0xffff_ffff_8100_0000n;

/** Reading 0.6 GB of symbols takes half a minute on a busy machine. */
const TIMEOUT_MS = 300_000;

/** What the guest of test/debugger-kit said about itself. */
export class GuestReport {
  readonly #parts = new Map<string, string[]>();

  /** @param serial what it printed, up to `== end` */
  constructor(serial: string) {
    const [, ...parts] = serial.replaceAll('\r', '').split(/^== /m);
    for (const part of parts) {
      const [name = '', ...lines] = part.trimEnd().split('\n');
      this.#parts.set(name, lines);
    }
  }

  lines(name: string): string[] {
    return this.#parts.get(name) ?? [];
  }

  /** By how far KASLR moved the kernel. */
  get kaslrOffset(): bigint {
    const text = this.lines('symbols').find((line) => line.endsWith(' _text'))!;
    return BigInt(`0x${text.split(' ')[0]}`) - TEXT;
  }

  /**
   * Tasks that were there and stay: `pid name`, names as the kernel cuts them. The kernel's workers come and go, and have longer
   * names in /proc.
   */
  get tasks(): string[] {
    return this.lines('tasks').flatMap((line) => {
      const [, pid, name] = /^(\d+) \((.*?)\)? /.exec(line) ?? [];
      return name === undefined || name.startsWith('kworker') ? [] : [`${pid} ${name.slice(0, 15)}`];
    });
  }

  /** The process with this name that was started first. */
  pid(name: string): string {
    return this.tasks.find((task) => task.endsWith(` ${name}`))!.split(' ')[0]!;
  }
}

/** What drgn says, and what of it gdb can be compared with. */
export interface DrgnAnswer {
  /** `pid name`. */
  readonly tasks: readonly string[];
  readonly jiffies: string;
  readonly release: string;
  readonly commandLine: string;
  readonly log: readonly string[];
  /** Function names of the stack of a task. */
  readonly stack: readonly string[];
  /** Function names of what each vCPU does, from its saved registers. */
  readonly running: readonly (readonly string[])[];
}

const DRGN_SCRIPT = `
import json, sys
from drgn.helpers.linux.cpumask import for_each_online_cpu
from drgn.helpers.linux.pid import find_task, for_each_task
from drgn.helpers.linux.printk import get_printk_records
from drgn.helpers.linux.sched import cpu_curr
# Above the kernel's frames is the program, whose stack is not looked for.
def names(trace):
    return [str(frame.name) for frame in trace if not str(frame.name).startswith('0x')]
def active(cpu):
    try:
        return names(prog.stack_trace(cpu_curr(prog, cpu)))
    except Exception as error:
        return [str(error)]
print(json.dumps({
    'tasks': ['%d %s' % (task.pid.value_(), task.comm.string_().decode()) for task in for_each_task(prog)],
    'jiffies': str(prog['jiffies_64'].value_()),
    'release': prog['init_uts_ns'].name.release.string_().decode(),
    'commandLine': prog['saved_command_line'].string_().decode(),
    'log': ['[%5d.%06d] %s' % (r.timestamp // 10**9, r.timestamp // 1000 % 10**6, line) for r in get_printk_records(prog) for line in r.text.decode().split('\\n')],
    'stack': names(prog.stack_trace(find_task(prog, int(sys.argv[1])))),
    'running': [active(cpu) for cpu in for_each_online_cpu(prog)],
}))
`;

/** What crash says. */
export interface CrashAnswer {
  /** `pid name`. */
  readonly tasks: readonly string[];
  readonly log: readonly string[];
  /** Its `ps`, its `bt` of the tasks asked for, and `bt -a`, in full. */
  readonly ps: string;
  readonly stacks: string;
}

/** The debuggers, with the kernel's symbols. */
export class DebuggerSet {
  readonly #lab: Lab;
  readonly #paths: Debuggers;
  #runs = 0;

  constructor(lab: Lab, paths: Debuggers) {
    this.#lab = lab;
    this.#paths = paths;
  }

  /** @returns what crash printed, if it does not get to its prompt */
  crash(core: string, pids: readonly string[]): CrashAnswer | string {
    const path = (name: string): string => this.#lab.path(`crash-${this.#runs}-${name}`);
    this.#runs += 1;
    const commands = [
      `ps > ${path('ps')}`,
      `log > ${path('log')}`,
      ...pids.map((pid) => `bt ${pid} >> ${path('bt')}`),
      `bt -a >> ${path('bt')}`,
      'quit',
    ];
    // Nobody panicked: crash would look through all stacks for the task that did.
    const words = ['-s', '--no_panic', this.#paths.vmlinux, core];
    const printed = this.#run(this.#paths.crash, words, `${commands.join('\n')}\n`);
    if (!['ps', 'log', 'bt'].every((name) => existsSync(path(name)))) {
      return `crash did not get to its prompt with ${core}: ${printed}`;
    }
    const [ps, log, stacks] = ['ps', 'log', 'bt'].map((name) => readFileSync(path(name), 'utf8')) as [
      string,
      string,
      string,
    ];
    return {
      ps,
      stacks,
      tasks: [...ps.matchAll(/^>? +(\d+) +\S+ +\d+ +[0-9a-f]+ +\S+ +\S+ +\d+ +\d+ +(\S.*?) *$/gm)].map(
        ([, pid, name]) => `${pid} ${name!.replace(/^\[(.*)\]$/, '$1')}`,
      ),
      log: log.trimEnd().split('\n'),
    };
  }

  /** The kernel's log, by makedumpfile, which reads cores of both formats. */
  makedumpfileLog(core: string): string[] {
    const log = this.#lab.path('makedumpfile-log');
    const printed = this.#run(this.#paths.makedumpfile, ['-f', '--dump-dmesg', core, log]);
    if (!existsSync(log)) {
      throw new Error(`makedumpfile did not answer with ${core}: ${printed}`);
    }
    return readFileSync(log, 'utf8').trimEnd().split('\n');
  }

  /** Writes a compressed dump of a core, without zero pages, pages of caches, of programs and free ones. */
  makedumpfile(core: string, output: string): string {
    const printed = this.#run(this.#paths.makedumpfile, ['-f', '-c', '-d', '31', core, output]);
    if (!existsSync(output)) {
      throw new Error(`makedumpfile did not write ${output}: ${printed}`);
    }
    return output;
  }

  drgn(core: string, pid: string): DrgnAnswer {
    const script = this.#lab.path('ask-drgn.py');
    writeFileSync(script, DRGN_SCRIPT);
    const printed = this.#run(this.#paths.drgn, ['-q', '-c', core, '-s', this.#paths.vmlinux, script, pid]);
    const json = printed.split('\n').find((line) => line.startsWith('{'));
    if (json === undefined) {
      throw new Error(`drgn did not answer with ${core}: ${printed}`);
    }
    return JSON.parse(json) as DrgnAnswer;
  }

  /** Values of expressions. The core needs virtual addresses. */
  gdb(core: string, kaslrOffset: bigint, expressions: readonly string[]): string[] {
    const printed = this.#run(this.#paths.gdb, [
      ...['-q', '-batch', '-nx', '-ex', `symbol-file -o ${kaslrOffset} ${this.#paths.vmlinux}`],
      ...['-ex', `core-file ${core}`],
      ...expressions.flatMap((expression) => ['-ex', `print ${expression}`]),
    ]);
    const values = [...printed.matchAll(/^\$\d+ = (.*)$/gm)].map(([, value]) => value!);
    if (values.length !== expressions.length) {
      throw new Error(`gdb did not answer with ${core}: ${printed}`);
    }
    return values;
  }

  #run(program: string, words: readonly string[], input = ''): string {
    const { stdout, stderr, error } = spawnSync(program, words, {
      encoding: 'utf8',
      input,
      timeout: TIMEOUT_MS,
      maxBuffer: 64 * 2 ** 20,
    });
    if (error !== undefined) {
      throw error;
    }
    return stdout + stderr;
  }
}
