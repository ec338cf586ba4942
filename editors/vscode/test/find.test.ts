// Search for the program, place by place, with made-up files.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { find, type Places } from '../src/find';

const HERE: Places = { setting: '', python: '/py/bin/python', folder: '/work', search: '/usr/bin::bin:/opt/bin', home: '/home/me', isWindows: false };
const WINDOWS: Places = { setting: '', python: 'C:\\py\\python.exe', folder: 'C:\\work', search: 'C:\\bin', home: 'C:\\me', isWindows: true };

const CASES: [string, Places, string[], string | undefined][] = [
  ['beside the active Python first', HERE, ['/py/bin/fimserver', '/work/.venv/bin/fimserver'], '/py/bin/fimserver'],
  ['then in .venv', HERE, ['/work/.venv/bin/fimserver', '/opt/bin/fimserver'], '/work/.venv/bin/fimserver'],
  ['then in PATH, in its order', HERE, ['/opt/bin/fimserver', '/usr/bin/fimserver'], '/usr/bin/fimserver'],
  ['never in a relative folder of PATH', HERE, ['bin/fimserver'], undefined],
  ['nowhere', HERE, [], undefined],
  ['only .venv is the workspace\'s: without it, PATH', { ...HERE, python: undefined, folder: undefined }, ['/work/.venv/bin/fimserver'], undefined],
  ['a setting', { ...HERE, setting: '/x/fim' }, ['/x/fim', '/usr/bin/fimserver'], '/x/fim'],
  ['a setting that names nothing is not replaced', { ...HERE, setting: '/x/fim' }, ['/usr/bin/fimserver'], undefined],
  ['a setting with ~', { ...HERE, setting: '~/fim' }, ['/home/me/fim'], '/home/me/fim'],
  ['~user is no home of ours', { ...HERE, setting: '~you/fim' }, ['/home/meyou/fim'], undefined],
  ['a relative setting', { ...HERE, setting: 'bin/fim' }, ['bin/fim'], undefined],
  ['Windows: Scripts of .venv', WINDOWS, ['C:\\work\\.venv\\Scripts\\fimserver.exe'], 'C:\\work\\.venv\\Scripts\\fimserver.exe'],
  ['Windows: Scripts below a Python', WINDOWS, ['C:\\py\\Scripts\\fimserver.exe'], 'C:\\py\\Scripts\\fimserver.exe'],
  ['Windows: PATH', WINDOWS, ['C:\\bin\\fimserver.exe'], 'C:\\bin\\fimserver.exe'],
  ['Windows: a setting with ~', { ...WINDOWS, setting: '~\\fim.exe' }, ['C:\\me\\fim.exe'], 'C:\\me\\fim.exe'],
];

for (const [name, places, programs, expected] of CASES) {
  test(`find: ${name}`, () => {
    assert.equal(find(places, (path) => programs.includes(path))?.program, expected);
  });
}
