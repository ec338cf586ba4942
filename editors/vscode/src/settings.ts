// User settings: reads and changes them, and selects those that are sent to the server.

import * as vscode from 'vscode';

const TOLD = ['enabled', 'model', 'routes', 'maxTokens', 'delayMs', 'deadlineMs', 'exclude', 'disabledLanguages', 'snippets',
  'prefetch', 'preview', 'stats', 'trigger', 'triggers', 'battery', 'calmDelayMs', 'shownPerMinute',
  'minAcceptance'];
const sent = new Set<string>();

export function setting<T>(name: string, otherwise: T): T {
  return vscode.workspace.getConfiguration('fimserver').get<T | null>(name) ?? otherwise; // the user may have written null
}

/**
 * Settings for the server: only those that were set, so that its own configuration and `fimserver.args` apply otherwise.
 * A setting that was sent once is always sent, as the server would keep its initial value.
 */
export function forServer(): Record<string, unknown> {
  const config = vscode.workspace.getConfiguration('fimserver');
  const isSet = (name: string): boolean => config.inspect(name)?.globalValue !== undefined || isLocal(name);
  TOLD.filter(isSet).forEach((name) => sent.add(name));
  return { ...Object.fromEntries([...sent].map((name) => [name, config.get(name)])), status: true };
}

/** Change a setting in the workspace if it is set there, else for the user. */
export async function change(name: string, value: unknown): Promise<void> {
  const { Global, Workspace } = vscode.ConfigurationTarget;
  await vscode.workspace.getConfiguration('fimserver').update(name, value, isLocal(name) ? Workspace : Global);
}

/** Options of the program, which follow a verb if there is one. */
export function options(): string[] {
  const connect = setting('connect', '').trim();
  return [...setting<string[]>('args', []), ...(connect ? ['--connect', connect] : [])];
}

function isLocal(name: string): boolean {
  return vscode.workspace.getConfiguration('fimserver').inspect(name)?.workspaceValue !== undefined;
}
