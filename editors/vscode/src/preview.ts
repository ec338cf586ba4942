// Draws a canvas after the cursor while the model denoises it.

import * as vscode from 'vscode';

export type Slot = Readonly<{ text: string; masked: boolean; fresh: boolean }>;
/** Notification `fimserver/canvas`; without slots the preview ends. */
export type Canvas = Readonly<{ uri: string; position: { line: number; character: number }; slots: readonly Slot[] }>;

const COLOURS = { masked: 'editorLineNumber.foreground', fresh: 'charts.green', settled: 'editorGhostText.foreground' };

export function showCanvases(onCanvas: vscode.Event<Canvas | undefined>): vscode.Disposable {
  const type = vscode.window.createTextEditorDecorationType({});
  let latest: Canvas | undefined;
  const show = (canvas: Canvas | undefined): void => {
    latest = canvas;
    vscode.window.visibleTextEditors.forEach((editor) => { editor.setDecorations(type, drawn(editor, latest)); });
  };
  const again = (): void => { if (latest) show(latest); };
  return vscode.Disposable.from(
    type,
    onCanvas(show),
    vscode.workspace.onDidChangeTextDocument(({ document, contentChanges }) => {
      if (contentChanges.length > 0 && isOf(latest, document)) show(undefined); // it belongs to the old text
    }),
    // The event of a cursor move may come after the canvas for the new position, so the canvas is kept.
    vscode.window.onDidChangeTextEditorSelection(again),
    vscode.window.onDidChangeActiveTextEditor(again),
    vscode.window.onDidChangeWindowState(again),
  );
}

/** Decorations for a canvas: none unless the editor's cursor is at the canvas. */
function drawn(editor: vscode.TextEditor, canvas: Canvas | undefined): vscode.DecorationOptions[] {
  if (!canvas || editor !== vscode.window.activeTextEditor || !vscode.window.state.focused) return [];
  const at = new vscode.Position(canvas.position.line, canvas.position.character);
  if (!isOf(canvas, editor.document) || !editor.selection.active.isEqual(at)) return [];
  return firstLine(canvas.slots).map(({ tone, text }) => ({
    range: new vscode.Range(at, at),
    renderOptions: { after: { contentText: text, color: new vscode.ThemeColor(COLOURS[tone]) } },
  }));
}

function isOf(canvas: Canvas | undefined, document: vscode.TextDocument): boolean {
  return canvas !== undefined && document.uri.toString() === vscode.Uri.parse(canvas.uri).toString();
}

/** The first line of a canvas, adjacent slots of one tone merged. Spaces are non-breaking: decorations drop others. */
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
