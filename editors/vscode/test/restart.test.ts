// Limits of restarts.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isOld } from '../src/problem';
import { Limiter, coalesced, within } from '../src/restart';

test('limiter: four in three minutes, and again when the first is long ago', () => {
  let now = 0;
  const limiter = new Limiter(4, 180, () => now);
  const at = (time: number): boolean => { now = time; return limiter.allows(); };
  assert.deepEqual([0, 10, 20, 30, 40, 179, 180, 181, 190].map(at), [true, true, true, true, false, false, true, false, true]);
  limiter.forget();
  assert.equal(at(191), true);
});

test('coalesced: requests within a moment are one', async () => {
  let count = 0;
  const soon = coalesced(() => { count += 1; return Promise.resolve(); }, 10);
  soon(); soon(); soon();
  await pause(40);
  assert.equal(count, 1);
});

test('coalesced: never twice at the same time, and failures do not end it', async () => {
  const seen: string[] = [];
  const work = async (): Promise<void> => { seen.push('in'); await pause(30); seen.push('out'); throw new Error('no'); };
  const soon = coalesced(work, 1);
  soon();
  await pause(15);
  soon();
  await pause(90);
  assert.deepEqual(seen, ['in', 'out', 'in', 'out']);
});

test('within: what comes in time, and what does not', async () => {
  assert.equal(await within(50, Promise.resolve('here')), 'here');
  await assert.rejects(within(10, new Promise(() => undefined)), /no answer within 0.01 s/);
});

const VERSIONS: [string | undefined, boolean][] = [
  ['0.1.0', false], ['0.1.1', false], ['0.10.0', false], ['1.0', false], ['0.1.0.dev1', false], ['0.0.9', true], ['0.0.10', true], [undefined, true], ['', true],
];
for (const [version, expected] of VERSIONS) {
  test(`version ${String(version)} is ${expected ? 'too old' : 'new enough'}`, () => { assert.equal(isOld(version), expected); });
}

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => { setTimeout(resolve, ms); });
}
