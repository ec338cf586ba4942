// Facts of this machine and window that are needed to find and run the program: folders, environment, token.

import { homedir } from 'node:os';
import * as vscode from 'vscode';
import type { Places } from './find';
import { within } from './restart';
import { setting } from './settings';

interface Environments {
  getActiveEnvironmentPath(): { readonly path: string };
  resolveEnvironment(at: { readonly path: string }): Promise<{ executable: { uri?: vscode.Uri } } | undefined>;
}

/** Where the program may lie. In a workspace that is not trusted, nothing that belongs to it counts. */
export async function places(): Promise<Places> {
  const { isTrusted, workspaceFolders } = vscode.workspace;
  const path = setting('path', '').trim();
  const python = isTrusted && !path ? await within(5000, activePython()).catch(() => undefined) : undefined;
  const folder = isTrusted ? workspaceFolders?.[0]?.uri.fsPath : undefined;
  const machine = { search: process.env['PATH'] ?? '', home: homedir(), isWindows: process.platform === 'win32' };
  return { setting: path, python, folder, ...machine };
}

/** The interpreter that the Python extension has made active, where that extension is installed. */
async function activePython(): Promise<string | undefined> {
  const extension = vscode.extensions.getExtension<{ environments: Environments }>('ms-python.python');
  const known = (await extension?.activate())?.environments;
  return (await known?.resolveEnvironment(known.getActiveEnvironmentPath()))?.executable.uri?.fsPath;
}

/** How the program runs: in the home folder, which nobody else fills, with the token of a host elsewhere if one was set. */
export async function surroundings(secrets: vscode.SecretStorage): Promise<{ cwd: string; env: NodeJS.ProcessEnv }> {
  const token = await Promise.resolve(secrets.get('token')).catch(() => undefined); // there may be no keyring
  return { cwd: homedir(), env: { ...process.env, ...(token ? { FIMSERVER_TOKEN: token } : {}) } };
}

export async function askForToken(secrets: vscode.SecretStorage): Promise<void> {
  const prompt = 'The token that fimserver serve printed. Leave it empty to forget the one that was set.';
  const token = await vscode.window.showInputBox({ title: 'FIM: Set token', prompt, password: true, ignoreFocusOut: true });
  if (token !== undefined) await (token.trim() ? secrets.store('token', token.trim()) : secrets.delete('token'));
}
