// Text of states, canvases and pages.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { factRows, page, recoloured } from '../src/page';
import { firstLine } from '../src/preview';
import { missing } from '../src/problem';
import { colourOf, factsOf, textOf, type Status } from '../src/status';

const READY: Status = { kind: 'Normal', state: 'ready', busy: false, message: '', setRoute: 'auto' };
const ANSWERED: Status = { ...READY, route: 'ar', model: 'nano', latencyMs: 12.4, why: 'because' };

const LOOKS: [string, Status | undefined, string, string | undefined][] = [
  ['starting', undefined, '$(loading~spin) FIM', undefined],
  ['loading', { ...READY, kind: 'Warning', state: 'loading', busy: true }, '$(loading~spin) FIM', undefined],
  ['ready', READY, '$(sparkle) auto', undefined],
  ['answered', ANSWERED, '$(sparkle) ar 12 ms', undefined],
  ['off', { ...ANSWERED, kind: 'Inactive', state: 'off' }, '$(circle-slash) FIM', undefined],
  ['a warning', { ...ANSWERED, kind: 'Warning', state: 'dirty' }, '$(warning) FIM', 'warning'],
  ['an error', { ...ANSWERED, kind: 'Error', state: 'no_model' }, '$(error) FIM', 'error'],
];
for (const [name, status, text, colour] of LOOKS) {
  test(`status: ${name}`, () => {
    assert.deepEqual([textOf(undefined, status), colourOf(undefined, status)], [text, colour]);
  });
}

test('status: a problem comes before what the server said last', () => {
  assert.equal(textOf(missing(true), ANSWERED), '$(error) FIM');
  assert.equal(factsOf(missing(false), ANSWERED).length, 2);
  assert.match(missing(false).advice, /not trusted/);
});

test('status: facts', () => {
  assert.deepEqual(factsOf(undefined, ANSWERED), ['ready', 'Route: chosen for each request', 'Last answer: ar, model nano, 12 ms', 'Why: because']);
});

test('canvas: one line, neighbours together, spaces hard', () => {
  const slot = (text: string, masked = false, fresh = false): { text: string; masked: boolean; fresh: boolean } => ({ text, masked, fresh });
  const slots = [slot('a'), slot(' b'), slot('', true), slot('', true), slot('c\td', false, true), slot('e\nf'), slot('g')];
  assert.deepEqual(firstLine(slots).map(({ tone, text }) => `${tone} ${text}`), ['settled a\u00a0b', 'masked ▒▒▒▒', 'fresh c\u00a0\u00a0\u00a0\u00a0d', 'settled e']);
  assert.deepEqual(firstLine([slot('\n'), slot('x')]), []);
});

test('page: nothing of what is shown is markup', () => {
  assert.doesNotMatch(page('<b>', [{ title: '"', rows: [['✓', '<i>', "'&"]], text: '</pre><script>' }]), /<b>|<i>|<script>/);
});

test('page: facts have names of words, and none is empty', () => {
  const said = { setRoute: 'ar', totalMs: 0, why: '', models: { ar: 'nano' }, log: null };
  assert.deepEqual(factRows(said).map((row) => row.slice(1)), [['set route', 'ar'], ['total ms', '0'], ['models', 'ar: nano'], ['log', 'null']]);
});

test('page: the policy of a page that the program made is replaced', () => {
  const made = `<head><meta http-equiv="Content-Security-Policy" content="style-src &#39;sha256-x&#39;"></head>`;
  assert.doesNotMatch(recoloured(made), /sha256/);
});
