// Problems with the program, each with a title and advice.

export const MINIMUM = '0.1.0';
export type Problem = Readonly<{ title: string; advice: string }>;

export const missing = (isTrusted: boolean): Problem => ({
  title: 'The program fimserver was not found',
  advice: `Install it from a checkout with make try, then choose .venv/bin/fimserver there.${isTrusted ? '' : RESTRICTED}`,
});
const RESTRICTED = ' This workspace is not trusted, so its .venv and its Python environment are not looked at.';

export const unusable = (path: string): Problem => ({
  title: `fimserver.path names no program: ${path}`,
  advice: 'Choose the program again, or clear the setting. A path is absolute or starts with ~.',
});

export const failed = (program: string): Problem => ({
  title: `${program} does not start`,
  advice: 'Ask the doctor, or read the log. If this is not fimserver, choose another program.',
});

export const old = (version = 'of an unknown version'): Problem => ({
  title: `fimserver ${version} is too old for this extension`,
  advice: `It needs ${MINIMUM} or newer: update the checkout and install it again, or choose another program.`,
});

export const CRASHED: Problem = {
  title: 'fimserver stopped five times within three minutes',
  advice: 'It is left alone now. The log has what it said last; restart it from the menu.',
};

/** Whether a version is too old for this extension. An unknown one counts as too old. */
export function isOld(version: string | undefined): boolean {
  return !version || version.localeCompare(MINIMUM, 'en', { numeric: true }) < 0;
}
