// Completes text that was typed before the server was ready as soon as it is, without another key.

import * as vscode from 'vscode';
import type { Session } from './session';
import { setting } from './settings';

type Change = Readonly<{ rangeOffset: number; text: string }>;

/** The offset after typed text; `undefined` if text was only removed. */
export function typedUpTo(changes: readonly Change[]): number | undefined {
  const last = changes[0]; // changes of one keystroke are listed from the end of the document
  return last?.text ? last.rangeOffset + last.text.length : undefined;
}

/** VS Code asks only on typing, and gets no answer while the server starts or its model is loading. */
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
    // An older VS Code can only send an explicit request, which would ignore the setting `trigger`.
    if (!becameReady || !isThere() || setting<string>('trigger', 'automatic') !== 'automatic') return;
    // Without the name of a provider VS Code sends nothing, as it has already asked at this position.
    const how = { providerId: 'fimserver.fimserver:*', explicit: false };
    void vscode.commands.executeCommand('editor.action.inlineSuggest.trigger', how).then(undefined, () => undefined);
  };
  return vscode.Disposable.from(vscode.workspace.onDidChangeTextDocument(remember), session.onDidChange(look));
}
