// Facts of this machine and window for finding and running the program: folders, environment, token.

import { homedir } from 'node:os';
import * as vscode from 'vscode';
import type { Places } from './find';
import { within } from './restart';
import { setting } from './settings';

interface Environments {
  getActiveEnvironmentPath(): { readonly path: string };
  resolveEnvironment(at: { readonly path: string }): Promise<{ executable: { uri?: vscode.Uri } } | undefined>;
}

/** Where the program may be. In an untrusted workspace, nothing that belongs to the workspace is used. */
export async function places(): Promise<Places> {
  const { isTrusted, workspaceFolders } = vscode.workspace;
  const path = setting('path', '').trim();
  const python = isTrusted && !path ? await within(5000, activePython()).catch(() => undefined) : undefined;
  const folder = isTrusted ? workspaceFolders?.[0]?.uri.fsPath : undefined;
  const machine = { search: process.env['PATH'] ?? '', home: homedir(), isWindows: process.platform === 'win32' };
  return { setting: path, python, folder, ...machine };
}

/** The active interpreter of the Python extension, if that is installed. */
async function activePython(): Promise<string | undefined> {
  const extension = vscode.extensions.getExtension<{ environments: Environments }>('ms-python.python');
  const known = (await extension?.activate())?.environments;
  return (await known?.resolveEnvironment(known.getActiveEnvironmentPath()))?.executable.uri?.fsPath;
}

/** Working directory and environment of the program: the home folder, and the token of a remote host if one is set. */
export async function surroundings(secrets: vscode.SecretStorage): Promise<{ cwd: string; env: NodeJS.ProcessEnv }> {
  const token = await Promise.resolve(secrets.get('token')).catch(() => undefined); // there may be no keyring
  return { cwd: homedir(), env: { ...process.env, ...(token ? { FIMSERVER_TOKEN: token } : {}) } };
}

export async function askForToken(secrets: vscode.SecretStorage): Promise<void> {
  const prompt = 'The token that fimserver serve printed. Leave it empty to forget the one that was set.';
  const token = await vscode.window.showInputBox({ title: 'FIM: Set token', prompt, password: true, ignoreFocusOut: true });
  if (token !== undefined) await (token.trim() ? secrets.store('token', token.trim()) : secrets.delete('token'));
}
