// First use: the walkthrough, and a first completion.

import * as vscode from 'vscode';

const BEFORE = 'class Box:\n    def __init__(self, width, height):\n        self.width = width\n        self.height = ';
const AFTER = '\n\n    def area(self):\n        return self.width * self.height\n';

export async function openWalkthrough(): Promise<void> {
  await vscode.commands.executeCommand('workbench.action.openWalkthrough', 'fimserver.fimserver#start', false);
}

/** Open the walkthrough at the first activation, unless the user has switched that off. */
export async function openWalkthroughOnce(memory: vscode.Memento): Promise<void> {
  const isWanted = vscode.workspace.getConfiguration('workbench').get<boolean>('welcomePage.walkthroughs.openOnInstall');
  if (isWanted && !memory.get<boolean>('walkthroughSeen')) await openWalkthrough();
  await memory.update('walkthroughSeen', true);
}

/** Open an example with the cursor where code is missing, and request a completion. */
export async function tryCompletion(): Promise<void> {
  const document = await vscode.workspace.openTextDocument({ language: 'python', content: BEFORE + AFTER });
  const at = document.positionAt(BEFORE.length);
  await vscode.window.showTextDocument(document, { selection: new vscode.Range(at, at) });
  await vscode.commands.executeCommand('editor.action.inlineSuggest.trigger');
}
