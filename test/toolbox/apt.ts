// A private apt: its own lists, cache and (empty) package database in a folder, the machine's own mirrors, keys, proxy
// and authentication. With an empty database the closure of a package is complete, so what it downloads runs without
// the libraries of the machine.

import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { mapMachineSources, releaseOf } from './apt-sources.js';

/** Runs a program; an error says what it printed. */
export const run = (
  program: string,
  programArguments: readonly string[],
  environment: NodeJS.ProcessEnv = {},
): string => {
  try {
    return execFileSync(program, programArguments, {
      encoding: 'utf8',
      env: { ...process.env, LC_ALL: 'C', DEBIAN_FRONTEND: 'noninteractive', ...environment },
      stdio: ['ignore', 'pipe', 'pipe'],
      maxBuffer: 64 * 1024 * 1024,
    });
  } catch (error) {
    const { stdout = '', stderr = '' } = error as { stdout?: string; stderr?: string };
    throw new Error(`${program} failed: ${`${stdout}${stderr}`.trim().slice(-1000)}`, { cause: error });
  }
};

/** What QEMU's own packages need in versions of their own; everything else of a closure comes from the release itself. */
const BACKPORTED = 'qemu-* seabios ipxe-qemu';

/** apt for one suite of Debian, `trixie` or `trixie-backports`, whatever release the machine is. */
export class PrivateApt {
  readonly #folder: string;
  readonly #suite: string;
  readonly #options: readonly string[];

  /** `machineRelease` is a code name, as `suite` begins with one; `folder` takes everything and may be deleted afterwards. */
  constructor(machineRelease: string, suite: string, folder: string) {
    this.#folder = folder;
    this.#suite = suite;
    for (const name of ['lists/partial', 'archives/partial', 'sources']) {
      mkdirSync(join(folder, name), { recursive: true });
    }
    const sources = mapMachineSources(machineRelease, suite);
    if (sources.deb822 === '' && sources.oneLine === '') {
      throw new Error(`the machine's apt sources name no Debian ${machineRelease} archive`);
    }
    writeFileSync(join(folder, 'sources', 'debian.sources'), sources.deb822);
    writeFileSync(join(folder, 'sources', 'debian.list'), sources.oneLine);
    writeFileSync(join(folder, 'status'), '');
    // apt takes nothing from backports by itself.
    const pin = `Package: ${BACKPORTED}\nPin: release n=${suite}\nPin-Priority: 990\n`;
    writeFileSync(join(folder, 'preferences'), suite === releaseOf(suite) ? '' : pin);
    this.#options = Object.entries({
      'Dir::State': folder,
      'Dir::State::status': join(folder, 'status'),
      'Dir::Cache': folder,
      'Dir::Etc::sourcelist': '/dev/null',
      'Dir::Etc::sourceparts': join(folder, 'sources'),
      'Dir::Etc::preferences': join(folder, 'preferences'),
      'Dir::Etc::preferencesparts': '/dev/null',
      // The download user of apt may not enter the checkout.
      'APT::Sandbox::User': 'root',
      'APT::Install-Recommends': 'false',
      'Acquire::Languages': 'none',
      'Acquire::Retries': '2',
    }).flatMap(([name, value]) => ['-o', `${name}=${value}`]);
    const output = this.#get('update');
    if (/NO_PUBKEY/.test(output)) {
      throw new Error(`the debian-archive-keyring of this machine does not know the keys of Debian ${suite}`);
    }
    // Only a warning for apt: any one source may fail, so look whether there is anything of the suite to install from.
    if (!run('apt-cache', [...this.#options, 'policy', 'qemu-system-x86']).includes(` ${suite}/main `)) {
      const problem = /^[WE]: .*/m.exec(output)?.[0].slice(0, 300) ?? '';
      throw new Error(`no package list of Debian ${suite} could be had. ${problem}`);
    }
  }

  /** Package files of a package and everything it depends on. */
  downloadClosure(...packages: readonly string[]): string[] {
    const install = ['install', '--download-only', ...packages];
    try {
      this.#get(...install);
    } catch {
      // A backport may begin to need another one: then all of the closure may come from there.
      this.#get('--target-release', this.#suite, ...install);
    }
    const archives = join(this.#folder, 'archives');
    return readdirSync(archives)
      .filter((name) => name.endsWith('.deb'))
      .map((name) => join(archives, name));
  }

  /** Package file of one package alone. */
  download(name: string): string {
    const folder = mkdtempSync(join(this.#folder, 'download-'));
    // apt-get downloads into its working directory.
    run('/bin/sh', [
      '-c',
      'cd "$1" && shift && exec apt-get "$@"',
      'sh',
      folder,
      ...this.#options,
      '-q',
      '-y',
      'download',
      name,
    ]);
    return join(folder, readdirSync(folder)[0]!);
  }

  /** What a package depends on directly. */
  dependencies(name: string): string[] {
    const text = run('apt-cache', [...this.#options, 'depends', '--important', name]);
    return [...text.matchAll(/^\s*Depends:\s+(\S+)/gm)].map((match) => match[1]!);
  }

  #get(...command: readonly string[]): string {
    return run('/bin/sh', ['-c', 'exec apt-get "$@" 2>&1', 'sh', ...this.#options, '-q', '-y', ...command]);
  }
}

/** Unpacks package files into a folder; no maintainer script runs, nothing is installed. */
export const unpack = (files: readonly string[], folder: string): void => {
  mkdirSync(folder, { recursive: true });
  for (const file of files) {
    run('dpkg-deb', ['--extract', file, folder]);
    rmSync(file);
  }
};
