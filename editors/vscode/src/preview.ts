// Knows how a canvas is drawn behind the cursor while the model denoises it, and when it goes.
// Knows nothing of where canvases come from.

import * as vscode from 'vscode';

export type Slot = Readonly<{ text: string; masked: boolean; fresh: boolean }>;
/** Notification `fimserver/canvas`; no slots: it is over. */
export type Canvas = Readonly<{ uri: string; position: { line: number; character: number }; slots: readonly Slot[] }>;

const COLOURS = { masked: 'editorLineNumber.foreground', fresh: 'charts.green', settled: 'editorGhostText.foreground' };

export function showCanvases(onCanvas: vscode.Event<Canvas | undefined>): vscode.Disposable {
  const type = vscode.window.createTextEditorDecorationType({});
  const clear = (): void => { vscode.window.visibleTextEditors.forEach((editor) => { editor.setDecorations(type, []); }); };
  return vscode.Disposable.from(
    type,
    onCanvas((canvas) => { if (canvas) draw(type, canvas); else clear(); }),
    vscode.workspace.onDidChangeTextDocument(clear),
    vscode.window.onDidChangeTextEditorSelection(clear),
    vscode.window.onDidChangeActiveTextEditor(clear),
    vscode.window.onDidChangeWindowState(({ focused }) => { if (!focused) clear(); }),
  );
}

function draw(type: vscode.TextEditorDecorationType, { uri, position, slots }: Canvas): void {
  const editor = vscode.window.activeTextEditor;
  if (editor?.document.uri.toString() !== vscode.Uri.parse(uri).toString()) return;
  const at = new vscode.Position(position.line, position.character);
  if (!vscode.window.state.focused || !editor.selection.active.isEqual(at)) return; // it is of an earlier request
  editor.setDecorations(type, firstLine(slots).map(({ tone, text }) => ({
    range: new vscode.Range(at, at),
    renderOptions: { after: { contentText: text, color: new vscode.ThemeColor(COLOURS[tone]) } },
  })));
}

/** The first line of a canvas, neighbours of one tone together. Spaces are hard: decorations swallow others. */
export function firstLine(slots: readonly Slot[]): { tone: keyof typeof COLOURS; text: string }[] {
  const runs: ReturnType<typeof firstLine> = [];
  for (const { text, masked, fresh } of slots) {
    const [shown = '', ...more] = masked ? ['▒▒'] : text.replace(/\t/g, '    ').replace(/ /g, '\u00a0').split('\n');
    const tone = masked ? 'masked' : fresh ? 'fresh' : 'settled';
    const before = runs.at(-1)?.tone === tone ? (runs.pop()?.text ?? '') : '';
    runs.push({ tone, text: before + shown });
    if (more.length > 0) break;
  }
  return runs.filter(({ text }) => text);
}
