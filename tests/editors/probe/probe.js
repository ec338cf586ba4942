// Lets a test look at and move this window from inside: one JSON call a request, on a port of this machine.
// Keys come through the browser, as a person's do.
const http = require('node:http');
const fs = require('node:fs');
const vscode = require('vscode');

const editor = () => vscode.window.activeTextEditor;

const calls = {
  open: async (path) => {
    const shown = await vscode.window.showTextDocument(vscode.Uri.file(path), { preview: false });
    const end = shown.document.lineAt(shown.document.lineCount - 1).range.end;
    shown.selection = new vscode.Selection(end, end);
    shown.revealRange(new vscode.Range(end, end));
    await vscode.commands.executeCommand('workbench.action.focusActiveEditorGroup');
  },
  text: () => ({
    text: editor()?.document.getText() ?? '',
    name: editor()?.document.fileName ?? '',
    dirty: editor()?.document.isDirty ?? false,
    line: editor()?.selection.active.line ?? 0,
    column: editor()?.selection.active.character ?? 0,
  }),
  place: (line, column) => {
    const place = new vscode.Position(line, column);
    editor().selection = new vscode.Selection(place, place);
    editor().revealRange(new vscode.Range(place, place)); // ghost text is drawn in lines that are seen
  },
  clear: async () => {
    for (const document of vscode.workspace.textDocuments.filter(({ isDirty }) => isDirty)) {
      await vscode.window.showTextDocument(document);
      await vscode.commands.executeCommand('workbench.action.revertAndCloseActiveEditor');
    }
    await vscode.commands.executeCommand('workbench.action.closeAllEditors');
    await vscode.commands.executeCommand('notifications.clearAll');
  },
  save: () => editor().document.save(),
  run: (command, ...args) => vscode.commands.executeCommand(command, ...args),
  repeat: (times, command) => Promise.all(Array.from({ length: times }, () => vscode.commands.executeCommand(command))),
  set: (section, value) => vscode.workspace.getConfiguration().update(section, value ?? undefined, vscode.ConfigurationTarget.Global),
  clipboard: () => vscode.env.clipboard.readText(),
};

exports.activate = () => {
  const server = http.createServer(async (request, response) => {
    let body = '';
    for await (const chunk of request) body += chunk;
    try {
      const { call, args } = JSON.parse(body);
      response.end(JSON.stringify({ result: (await calls[call](...args)) ?? null }));
    } catch (error) {
      response.end(JSON.stringify({ error: String(error && error.stack) }));
    }
  });
  server.listen(0, '127.0.0.1', () => {
    const folder = vscode.workspace.workspaceFolders?.[0]?.uri.fsPath ?? '';
    fs.appendFileSync(process.env.PROBE_PORTS, `${JSON.stringify({ folder, port: server.address().port, pid: process.pid })}\n`);
  });
};
