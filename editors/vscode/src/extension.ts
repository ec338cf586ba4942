// Activation: registers commands and connects the session with the user interface.

import * as vscode from 'vscode';
import { openWalkthrough, openWalkthroughOnce, tryCompletion } from './firstUse';
import { askForToken } from './machine';
import { chooseProgram, chooseRoute, showMenu, toggleCompletions } from './menu';
import { offerModel } from './model';
import { showCanvases } from './preview';
import { doctor, explain, statistics } from './report';
import { Session } from './session';
import { noticeOnce, showStatus } from './status';
import { completeWhatWaits } from './waiting';

const STARTERS = ['fimserver.path', 'fimserver.args', 'fimserver.connect']; // need a restart of the process
let session: Session | undefined;

export async function activate(context: vscode.ExtensionContext): Promise<void> {
  const log = vscode.window.createOutputChannel('fimserver', { log: true });
  const here = (session = new Session(context.secrets, log));
  context.subscriptions.push(log, showStatus(here), noticeOnce(here), showCanvases(here.onCanvas), completeWhatWaits(here), ...watch(here, context));
  for (const [name, run] of Object.entries(commands(here, context, log))) {
    context.subscriptions.push(vscode.commands.registerCommand(`fimserver.${name}`, run));
  }
  here.restart();
  await openWalkthroughOnce(context.globalState).catch((error: unknown) => { log.warn(String(error)); });
}

export async function deactivate(): Promise<void> {
  await session?.end();
}

function commands(here: Session, context: vscode.ExtensionContext, log: vscode.LogOutputChannel): Record<string, () => unknown> {
  return {
    menu: () => showMenu(here),
    chooseRoute: () => chooseRoute(here),
    explainLast: () => explain(here),
    showStatistics: () => statistics(here, context.globalStorageUri),
    runDoctor: () => doctor(here),
    getModel: () => offerModel(here),
    completeNow: () => vscode.commands.executeCommand('editor.action.inlineSuggest.trigger'),
    notNow: () => vscode.commands.executeCommand('fimserver.snooze').then(() => vscode.commands.executeCommand('editor.action.inlineSuggest.hide')),
    pauseModels: async () => vscode.window.showInformationMessage(`fimserver: ${await vscode.commands.executeCommand<string>('fimserver.pause')}`),
    clearRemembered: () => vscode.commands.executeCommand('fimserver.clearCache'),
    restartServer: () => { here.restart(); },
    showLog: () => { log.show(); },
    openSettings: () => vscode.commands.executeCommand('workbench.action.openSettings', '@ext:fimserver.fimserver'),
    setToken: () => askForToken(context.secrets),
    toggleCompletions,
    chooseProgram,
    openWalkthrough,
    tryCompletion,
  };
}

function watch(here: Session, context: vscode.ExtensionContext): vscode.Disposable[] {
  return [
    vscode.workspace.onDidChangeConfiguration((event) => {
      if (STARTERS.some((name) => event.affectsConfiguration(name))) here.restart();
      else if (event.affectsConfiguration('fimserver')) void here.tellSettings();
    }),
    vscode.window.onDidChangeTextEditorSelection(({ textEditor }) => { here.tellCursor(textEditor); }),
    vscode.window.onDidChangeActiveTextEditor((editor) => { if (editor) here.tellCursor(editor); }),
    vscode.workspace.onDidGrantWorkspaceTrust(() => { here.restart(); }),
    context.secrets.onDidChange(() => { here.restart(); }),
  ];
}
