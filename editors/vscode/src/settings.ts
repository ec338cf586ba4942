// User settings: reading, changing, and the part that is sent to the server.

import * as vscode from 'vscode';

const TOLD = ['enabled', 'model', 'routes', 'maxTokens', 'delayMs', 'deadlineMs', 'exclude', 'disabledLanguages', 'snippets',
  'prefetch', 'preview', 'stats', 'trigger', 'triggers', 'battery', 'calmDelayMs', 'shownPerMinute',
  'minAcceptance'];
const sent = new Set<string>();

export function setting<T>(name: string, otherwise: T): T {
  return vscode.workspace.getConfiguration('fimserver').get<T | null>(name) ?? otherwise; // null where somebody wrote that
}

/**
 * What the server is told: only what was set, so that its own configuration and `fimserver.args` hold for the rest.
 * A setting that was sent once is sent for good, as the server keeps what it was started with.
 */
export function forServer(): Record<string, unknown> {
  const config = vscode.workspace.getConfiguration('fimserver');
  const isSet = (name: string): boolean => config.inspect(name)?.globalValue !== undefined || isLocal(name);
  TOLD.filter(isSet).forEach((name) => sent.add(name));
  return { ...Object.fromEntries([...sent].map((name) => [name, config.get(name)])), status: true };
}

/** Change a setting where it is set: in the workspace if it is there, else for the user. */
export async function change(name: string, value: unknown): Promise<void> {
  const { Global, Workspace } = vscode.ConfigurationTarget;
  await vscode.workspace.getConfiguration('fimserver').update(name, value, isLocal(name) ? Workspace : Global);
}

/** Options of the program, behind a verb if there is one. */
export function options(): string[] {
  const connect = setting('connect', '').trim();
  return [...setting<string[]>('args', []), ...(connect ? ['--connect', connect] : [])];
}

function isLocal(name: string): boolean {
  return vscode.workspace.getConfiguration('fimserver').inspect(name)?.workspaceValue !== undefined;
}
