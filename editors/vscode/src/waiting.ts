// Text that was typed before the server was ready is completed once it is, without another key.

import * as vscode from 'vscode';
import type { Session } from './session';
import { setting } from './settings';

type Change = Readonly<{ rangeOffset: number; text: string }>;

/** The offset after text that was typed; `undefined` where text was only removed. */
export function typedUpTo(changes: readonly Change[]): number | undefined {
  const last = changes[0]; // those of one keystroke are listed from the end of the document on
  return last?.text ? last.rangeOffset + last.text.length : undefined;
}

/** VS Code asks when one types, and nobody answers while the server starts or its model is loaded. */
export function completeWhatWaits(session: Session): vscode.Disposable {
  let typed: { document: vscode.TextDocument; version: number; offset: number } | undefined;
  let wasReady = false;
  const remember = ({ document, contentChanges }: vscode.TextDocumentChangeEvent): void => {
    if (document !== vscode.window.activeTextEditor?.document || !contentChanges.length) return;
    const offset = typedUpTo(contentChanges);
    typed = offset === undefined ? undefined : { document, version: document.version, offset };
  };
  const isThere = (): boolean => {
    const editor = vscode.window.activeTextEditor;
    return editor !== undefined && editor.document === typed?.document && editor.document.version === typed.version &&
      editor.selection.isEmpty && editor.document.offsetAt(editor.selection.active) === typed.offset;
  };
  const look = (): void => {
    const isReady = session.version !== undefined && session.status?.state === 'ready';
    const becameReady = isReady && !wasReady;
    wasReady = isReady;
    // An older VS Code knows no other than an explicit request, which comes also where nothing is wanted by itself.
    if (!becameReady || !isThere() || setting<string>('trigger', 'automatic') !== 'automatic') return;
    // Without the name of a provider VS Code asks nobody, as it takes the place for one that it has asked about.
    const how = { providerId: 'fimserver.fimserver:*', explicit: false };
    void vscode.commands.executeCommand('editor.action.inlineSuggest.trigger', how).then(undefined, () => undefined);
  };
  return vscode.Disposable.from(vscode.workspace.onDidChangeTextDocument(remember), session.onDidChange(look));
}
