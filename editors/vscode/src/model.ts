// Offers the best model for this machine, with its size. Downloads nothing unless the user agrees.

import * as vscode from 'vscode';
import type { Session } from './session';

type Advice = Readonly<{ route: string; name: string; here: boolean; size: string; why: string }>;

/** Ask the program for the best coder, and download it in a terminal if the user agrees. */
export async function offerModel(session: Session): Promise<void> {
  const { isGood, output } = await session.run(['models', 'best', '--json'], 30_000, []);
  const best = isGood ? (JSON.parse(output) as Advice[]).find(({ route }) => route === 'ar') : undefined;
  if (!best) void vscode.window.showErrorMessage(`fimserver cannot say which model fits: ${output}`);
  else if (best.here) void vscode.window.showInformationMessage(`${best.name} is on this machine: ${best.why}.`);
  else if (await isWanted(best)) await get(session, best.name);
}

async function isWanted({ name, size, why }: Advice): Promise<boolean> {
  const detail = `It is ${why}. A terminal shows the progress; you may stop it and go on later.`;
  const question = `Download ${name} (${size})?`;
  return (await vscode.window.showInformationMessage(question, { modal: true, detail }, 'Download')) === 'Download';
}

async function get(session: Session, name: string): Promise<void> {
  if (!session.found) return;
  const run = new vscode.ProcessExecution(session.found.program, ['models', 'get', name]);
  const task = new vscode.Task({ type: 'fimserver' }, vscode.TaskScope.Global, `get ${name}`, 'fimserver', run);
  await vscode.tasks.executeTask(task);
}
