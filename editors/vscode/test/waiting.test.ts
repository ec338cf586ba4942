// Where the cursor is after a change.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { typedUpTo } from '../src/waiting';

test('waiting: the cursor is after what was typed', () => {
  assert.equal(typedUpTo([{ rangeOffset: 3, text: 'x' }]), 4);
  assert.equal(typedUpTo([{ rangeOffset: 9, text: '\n    ' }]), 14);
  assert.equal(typedUpTo([]), undefined);
});

test('waiting: what was only removed waits for nothing', () => {
  assert.equal(typedUpTo([{ rangeOffset: 3, text: '' }]), undefined);
});
