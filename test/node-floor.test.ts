// The oldest Node and npm that ramferry is installed with: Node 20.19 and npm 9, as Debian 13 has them.

import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';

const floor = [20, 19, 0] as const;

/** Runs a script of the checkout with a Node that says it is another one. */
const runWithNode = (version: string, script: string, ...args: readonly string[]) => {
  const pretend = `Object.defineProperty(process.versions, 'node', { value: '${version}' })`;
  return spawnSync(
    process.execPath,
    ['--import', `data:text/javascript,${encodeURIComponent(pretend)}`, script, ...args],
    {
      encoding: 'utf8',
    },
  );
};

for (const script of ['bin/ramferry.js', 'scripts/build.mjs']) {
  test(`${script}: an older Node is told which one it takes`, () => {
    for (const version of ['18.20.4', '20.18.3']) {
      const { status, stdout, stderr } = runWithNode(version, script, 'version');
      assert.deepEqual([status, stdout, stderr], [1, '', `ramferry needs Node 20.19 or newer; this is ${version}.\n`]);
    }
  });
}

test('bin/ramferry.js: the oldest Node that is promised, and newer ones, are taken', () => {
  for (const version of ['20.19.0', '22.0.0', '100.1.0']) {
    assert.equal(runWithNode(version, 'bin/ramferry.js', 'version').status, 0);
  }
});

test('what is installed asks for no newer Node', () => {
  const lock = JSON.parse(readFileSync('package-lock.json', 'utf8')) as {
    readonly packages: Readonly<Record<string, { readonly engines?: { readonly node?: string } }>>;
  };
  for (const [path, { engines }] of Object.entries(lock.packages)) {
    const least = /^>=\s*(\d+)(?:\.(\d+))?(?:\.(\d+))?$/.exec(engines?.node ?? '>=0');
    assert.ok(least !== null, `${path}: ${engines?.node} is not understood by this test`);
    const [major, minor, patch] = least.slice(1).map((number) => Number(number ?? 0)) as [number, number, number];
    const excess = major - floor[0] || minor - floor[1] || patch - floor[2];
    assert.ok(excess <= 0, `${path} asks for Node ${engines?.node}`);
  }
});

test('npm refuses nothing for the sake of packages that only build: AssemblyScript asks for npm 10, Debian 13 has 9', () => {
  assert.doesNotMatch(readFileSync('.npmrc', 'utf8'), /engine-strict/);
});
