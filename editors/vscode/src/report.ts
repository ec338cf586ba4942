// Pages on demand: doctor, the last answer, statistics.

import { mkdir, readFile } from 'node:fs/promises';
import * as vscode from 'vscode';
import { factRows, page, recoloured, type Part, type Remedy, type Row } from './page';
import type { Session } from './session';

const WAIT = 'Models are loaded and tried. This takes 20 seconds, on a busy machine more.';
const REMEDIES: Readonly<Record<string, Remedy>> = {
  off: ['Turn completions on', 'toggleCompletions'],
  refused: ['Set token…', 'setToken'],
  host_failed: ['Restart', 'restartServer'],
  no_host: ['Restart', 'restartServer'],
};
const LINKS = ['chooseProgram', ...Object.values(REMEDIES).map(([, command]) => command)].map((name) => `fimserver.${name}`);
const OTHERS = ['GitHub.copilot', 'Continue.continue', 'ggml-org.llama-vscode', 'TabbyML.vscode-tabby', 'Codeium.codeium',
  'TabNine.tabnine-vscode', 'supermaven.supermaven', 'HuggingFace.huggingface-vscode', 'twinny.twinny'];
const panels = new Map<string, vscode.WebviewPanel>();

let examining: ReturnType<Session['run']> | undefined; // at most one at a time: it loads models

/** Show local facts at once, then the server's answer, then the result of `fimserver doctor`. */
export async function doctor(session: Session): Promise<void> {
  const write = open('doctor');
  const parts: Part[] = [{ title: 'Program', rows: programRows(session) }, { title: 'Editor', rows: editorRows() }];
  const examined = session.found && (examining ??= session.run(['doctor'], 300_000).finally(() => { examining = undefined; }));
  const waiting = examined ? [{ title: 'fimserver doctor', text: WAIT }] : [];
  write([...parts, ...waiting]);
  if (session.version) parts.push({ title: 'Server and models', rows: await said(session, 'fimserver/health') });
  write([...parts, ...waiting]);
  const ended = await examined;
  if (ended) parts.push({ title: `fimserver doctor${ended.isGood ? '' : ': something is wrong'}`, text: ended.output });
  write(parts);
}

export async function explain(session: Session): Promise<void> {
  open('last answer')([{ title: 'Why it ended as it did', rows: await said(session, 'fimserver/explain') }]);
}

export async function statistics(session: Session, folder: vscode.Uri): Promise<void> {
  const write = open('statistics');
  write([{ title: 'Counting…' }]);
  await mkdir(folder.fsPath, { recursive: true });
  const file = vscode.Uri.joinPath(folder, 'statistics.html').fsPath;
  const { isGood, output } = await session.run(['stats', '--html', file], 60_000);
  write(isGood ? recoloured(await readFile(file, 'utf8')) : [{ title: 'There are none', text: output }]);
}

/** Bring the panel of that name to the front, and return a function that writes to it while it exists. */
function open(name: string): (content: string | readonly Part[]) => void {
  const title = `fimserver: ${name}`;
  const { createWebviewPanel } = vscode.window;
  const panel = panels.get(name) ?? createWebviewPanel(title, title, vscode.ViewColumn.Active, { enableCommandUris: LINKS });
  panels.set(name, panel);
  panel.onDidDispose(() => panels.delete(name));
  panel.reveal();
  return (content) => {
    if (panels.get(name) === panel) panel.webview.html = typeof content === 'string' ? content : page(title, content);
  };
}

function programRows({ found, problem, version }: Session): Row[] {
  const rows: Row[] = found ? [['✓', 'program', found.program], ['', 'found by', found.how]] : [];
  const remedy = found ? REMEDIES['host_failed'] : (['Choose the program…', 'chooseProgram'] as const);
  if (problem) return [...rows, ['✗', 'server', `${problem.title}. ${problem.advice}`, remedy]];
  return [...rows, version ? ['✓', 'server', `runs, version ${version}`] : ['', 'server', 'starting']];
}

function editorRows(): Row[] {
  const isOn = vscode.workspace.getConfiguration('editor').get<boolean>('inlineSuggest.enabled');
  const trust = vscode.workspace.isTrusted ? 'trusted' : 'restricted: its .venv and its Python environment are not used';
  const ghost = isOn ? ['✓', 'on'] as const : ['✗', 'off: set editor.inlineSuggest.enabled'] as const;
  const others = OTHERS.filter((id) => vscode.extensions.getExtension(id)?.isActive);
  const rivals = others.map((id): Row => ['✗', 'another one', `${id} shows ghost text too: disable one of them`]);
  return [['', 'VS Code', vscode.version], [ghost[0], 'inline suggestions', ghost[1]], ['', 'workspace', trust], ...rivals];
}

/** The server's answer to a request as rows, with a mark and a remedy for its state. */
async function said(session: Session, request: string): Promise<Row[]> {
  const answer = await session.ask(request).catch((error: unknown) => ({ state: String(error) }));
  const verdict = (value: string): Row => [value === 'ready' ? '✓' : '✗', 'state', value, REMEDIES[value]];
  return factRows(answer).map((row) => (row[1] === 'state' ? verdict(row[2]) : row));
}
