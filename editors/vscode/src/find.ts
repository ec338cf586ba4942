// Finds the program fimserver: candidate paths in order, without running anything.

import { accessSync, constants, statSync } from 'node:fs';
import { posix, win32 } from 'node:path';

export type Found = Readonly<{ program: string; how: string }>;

/** Facts of this machine and window; empty or undefined: unknown, or must not be used. */
export interface Places {
  readonly setting: string; // fimserver.path
  readonly python: string | undefined; // the active interpreter
  readonly folder: string | undefined; // the first workspace folder
  readonly search: string; // PATH
  readonly home: string;
  readonly isWindows: boolean;
}

/** The first candidate that is a program. Relative paths are ignored: they would depend on the folder. */
export function find(places: Places, has = isProgram): Found | undefined {
  const path = places.isWindows ? win32 : posix;
  return candidates(places).find(({ program }) => path.isAbsolute(program) && has(program));
}

/** Where to look, best first. If the setting has a path, only that is used. */
export function candidates({ setting, python, folder, search, home, isWindows }: Places): Found[] {
  const path = isWindows ? win32 : posix;
  if (setting) return [{ program: setting.replace(/^~(?=$|[\\/])/, () => home), how: 'the setting fimserver.path' }];
  const [name, scripts] = isWindows ? ['fimserver.exe', 'Scripts'] : ['fimserver', 'bin'];
  const beside = python ? [path.dirname(python), ...(isWindows ? [path.join(path.dirname(python), scripts)] : [])] : [];
  const inside = (folders: string[], how: string): Found[] => folders.map((each) => ({ program: path.join(each, name), how }));
  return [
    ...inside(beside, 'the active Python environment'), // on Windows its programs may be in a subfolder
    ...inside(folder ? [path.join(folder, '.venv', scripts)] : [], '.venv of the workspace folder'),
    ...inside(search.split(path.delimiter).filter(Boolean), 'PATH'),
  ];
}

function isProgram(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    return statSync(path).isFile();
  } catch {
    return false;
  }
}
