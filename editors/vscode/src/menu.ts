// The menu of the status bar item, and the choice of a route and of a program.

import * as vscode from 'vscode';
import type { Session } from './session';
import { change, setting } from './settings';

type Entry = vscode.QuickPickItem & { readonly run?: () => unknown };

const ROUTES = {
  auto: 'the policy picks for each request',
  dllm: 'diffusion: a canvas of masks, denoised in parallel',
  ar: 'autoregressive, with speculative decoding',
};
const CHOOSE = entry('folder-opened', 'Choose the program…', 'chooseProgram');
const REPAIRS = [CHOOSE, entry('book', 'How to install', 'openWalkthrough')];
const ANSWERS = [entry('question', 'Explain the last answer', 'explainLast'), entry('graph', 'Statistics', 'showStatistics')];
const UPKEEP = [
  entry('cloud-download', 'Get a model…', 'getModel'), entry('pulse', 'Doctor', 'runDoctor'), entry('refresh', 'Restart', 'restartServer'),
  entry('output', 'Show log', 'showLog'), entry('gear', 'Settings', 'openSettings'),
];

export async function showMenu(session: Session): Promise<void> {
  const { problem } = session;
  const toggle = isOn() ? entry('circle-slash', 'Turn completions off') : entry('sparkle', 'Turn completions on');
  const usual = [toggle, separator('Route'), ...routes(session), separator('Answers'), ...ANSWERS];
  await pick('fimserver', problem?.title ?? '', [...(problem ? REPAIRS : usual), separator('fimserver'), ...UPKEEP]);
}

export async function chooseRoute(session: Session): Promise<void> {
  await pick('FIM: Choose route', 'Which route should answer?', routes(session));
}

export async function toggleCompletions(): Promise<void> {
  await change('enabled', !isOn());
}

export async function chooseProgram(): Promise<void> {
  const [file] = (await vscode.window.showOpenDialog({ title: 'Choose the program fimserver', openLabel: 'Choose' })) ?? [];
  if (file) await change('path', file.fsPath);
}

async function pick(title: string, placeHolder: string, entries: Entry[]): Promise<void> {
  await (await vscode.window.showQuickPick(entries, { title, placeHolder }))?.run?.();
}

function isOn(): boolean {
  return setting('enabled', true);
}

function routes({ status }: Session): Entry[] {
  const current = status?.setRoute ?? setting('model', 'auto');
  return Object.entries(ROUTES).map(([route, description]) => {
    const label = `$(${route === current ? 'check' : 'blank'}) ${route}`;
    return { label, description, run: () => change('model', route) };
  });
}

function entry(icon: string, words: string, command = 'toggleCompletions'): Entry {
  return { label: `$(${icon}) ${words}`, run: () => vscode.commands.executeCommand(`fimserver.${command}`) };
}

function separator(label: string): Entry {
  return { label, kind: vscode.QuickPickItemKind.Separator };
}
