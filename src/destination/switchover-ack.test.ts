// Sources that wait for the destination's agreement, and those that would stumble over it.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ScriptedChannel } from '../../test/scripted-channel.js';
import { patternPage, StreamBuilder, testDevice } from '../../test/streams.js';
import { Command } from '../format/stream/constants.js';
import { command, ping } from '../format/stream/write.js';
import { RamBlockList } from '../memory/ram-block-list.js';
import { MemoryTarget } from './memory-target.js';
import { MigrationDestination } from './migration-destination.js';

const PAGE = 4096;
const ACK = '00070000';

/** What the destination answers to a source of that machine type that sends so many sections without a page. */
const answerTo = async (machine: string, emptySections: number, busySections = 0): Promise<string> => {
  const builder = new StreamBuilder()
    .header({ machine })
    .raw(command(Command.OPEN_RETURN_PATH))
    .raw(ping(1))
    .ramStart([{ name: 'pc.ram', usedLength: 4 * PAGE }]);
  for (let section = 0; section < busySections; section += 1) {
    builder.part([{ block: 'pc.ram', page: 2, kind: 'normal', content: patternPage(section) }]);
  }
  for (let section = 0; section < emptySections; section += 1) {
    builder.part([]);
  }
  const channel = new ScriptedChannel().send([builder.end().devices([testDevice('cpu', 500)]).bytes]);
  const target = new MemoryTarget({ blocks: RamBlockList.create({ segmentBytes: 64 * PAGE }), memoryLimit: 2 ** 24 });
  assert.equal((await new MigrationDestination({ channel, target }).run()).status, 'completed');
  return channel.answer;
};

test('switchover: a source that knows the message hears that it may as soon as it listens, and once', async () => {
  for (const machine of ['pc-i440fx-10.0', 'pc-q35-8.1', 'virt-11.0']) {
    const answer = await answerTo(machine, 500);
    assert.ok(answer.startsWith(ACK), answer);
    assert.equal(answer.split(ACK).length, 2);
  }
});

test('switchover: a source of 11.1 or later, which fails on an answer that it has not asked for, hears nothing', async () => {
  for (const machine of ['pc-i440fx-11.1', 'virt-12.0']) {
    assert.ok(!(await answerTo(machine, 500)).includes(ACK), machine);
  }
});

test('switchover: any other source hears it only when it has nothing to send and does not switch', async () => {
  for (const machine of ['pc-i440fx-8.0', 'pc-q35-7.2', 'pc-q35-rhel9.6.0', 'microvm']) {
    assert.ok(!(await answerTo(machine, 50, 500)).includes(ACK), machine);
    const answer = await answerTo(machine, 500, 20);
    assert.equal(answer.split(ACK).length, 2, machine);
    assert.ok(!answer.startsWith(ACK), machine);
  }
});
