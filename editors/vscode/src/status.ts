// The status bar item, and one notice for each new problem.

import * as vscode from 'vscode';
import type { Problem } from './problem';
import type { Session } from './session';

/** Notification `fimserver/status`; optional fields are set after the first answer. */
export type Status = Readonly<{ kind: keyof typeof ICONS; state: string; busy: boolean; message: string; setRoute: string }> &
  Readonly<{ route?: string; model?: string; latencyMs?: number; why?: string }>;

const ICONS = { Normal: 'sparkle', Inactive: 'circle-slash', Warning: 'warning', Error: 'error' };
const ACTIONS = { 'Choose the program…': 'chooseProgram', 'How to install': 'openWalkthrough' };
// If a program was found but does not work.
const REPAIRS = { 'Choose the program…': 'chooseProgram', Restart: 'restartServer', 'Show log': 'showLog' };

export function showStatus(session: Session): vscode.Disposable {
  const item = vscode.window.createStatusBarItem('fimserver.status', vscode.StatusBarAlignment.Right, 100);
  Object.assign(item, { name: 'fimserver', command: 'fimserver.menu' });
  paint(item, session);
  item.show();
  return vscode.Disposable.from(item, session.onDidChange(() => { paint(item, session); }));
}

function paint(item: vscode.StatusBarItem, { problem, status, version }: Session): void {
  const [colour, [title = '', ...facts]] = [colourOf(problem, status), factsOf(problem, status)];
  item.text = textOf(problem, status);
  item.backgroundColor = colour && new vscode.ThemeColor(`statusBarItem.${colour}Background`);
  item.accessibilityInformation = { label: `fimserver: ${title}`, role: 'button' };
  item.tooltip = new vscode.MarkdownString([`**fimserver:** ${plain(title)}`, ...facts.map(plain)].join('\n\n'));
  void vscode.commands.executeCommand('setContext', 'fimserver.isRunning', version !== undefined);
  void vscode.commands.executeCommand('setContext', 'fimserver.isReady', status?.state === 'ready');
}

/** Text of the item. Without a problem and a status the server is starting. */
export function textOf(problem: Problem | undefined, status: Status | undefined): string {
  if (problem) return '$(error) FIM';
  if (!status || status.busy) return '$(loading~spin) FIM';
  const { kind, setRoute, route = setRoute, latencyMs } = status;
  if (kind !== 'Normal') return `$(${ICONS[kind]}) FIM`;
  return `$(${ICONS[kind]}) ${latencyMs === undefined ? setRoute : `${route} ${latencyMs.toFixed(0)} ms`}`;
}

/** Colour of the item. Loading is not a warning. */
export function colourOf(problem: Problem | undefined, status: Status | undefined): 'error' | 'warning' | undefined {
  if (problem || (status?.kind === 'Error' && !status.busy)) return 'error';
  return status?.kind === 'Warning' && !status.busy ? 'warning' : undefined;
}

/** A line about the state, then lines about the route and the last answer. */
export function factsOf(problem: Problem | undefined, status: Status | undefined): string[] {
  if (problem) return [problem.title, problem.advice];
  if (!status) return ['starting'];
  const { setRoute, route = '', model = '', latencyMs, why } = status;
  const state = status.state === 'off' ? 'completions are off' : status.message || status.state;
  const facts = [state, `Route: ${setRoute === 'auto' ? 'chosen for each request' : setRoute}`];
  if (latencyMs !== undefined) facts.push(`Last answer: ${route}, model ${model}, ${latencyMs.toFixed(0)} ms`);
  return why ? [...facts, `Why: ${why}`] : facts;
}

/** Escape text for Markdown. */
function plain(text: string): string {
  return text.replace(/[^\p{L}\p{N}\s]/gu, '\\$&');
}

/** Show one notification per session, at the first problem, after three seconds without typing. */
export function noticeOnce(session: Session): vscode.Disposable {
  let timer: NodeJS.Timeout | undefined;
  const wait = (): void => {
    clearTimeout(timer);
    timer = setTimeout(() => {
      if (!session.problem) return;
      listeners.dispose();
      void say(session.problem, session.found ? REPAIRS : ACTIONS);
    }, 3000);
  };
  const listeners = vscode.Disposable.from(session.onDidChange(wait), vscode.workspace.onDidChangeTextDocument(wait));
  return new vscode.Disposable(() => { clearTimeout(timer); listeners.dispose(); });
}

async function say({ title, advice }: Problem, actions: Readonly<Record<string, string>>): Promise<void> {
  const picked = await vscode.window.showWarningMessage(`${title}. ${advice}`, ...Object.keys(actions));
  const command = picked && actions[picked];
  if (command) await vscode.commands.executeCommand(`fimserver.${command}`);
}
