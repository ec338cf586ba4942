// Language client of one fimserver process: its options at start, and where its messages go.

import { createInterface } from 'node:readline';
import type { Readable } from 'node:stream';
import type { LogOutputChannel } from 'vscode';
import * as lsp from 'vscode-languageclient/node';
import { forServer, options } from './settings';

/** A language client that shows no notifications: errors are in the log and in the status bar. */
class QuietClient extends lsp.LanguageClient {
  override error(message: string, data?: unknown): void {
    super.error(message, data, false);
  }
}

export function makeClient(command: string, how: lsp.ExecutableOptions, log: LogOutputChannel): lsp.LanguageClient {
  const client = new QuietClient('fimserver', 'fimserver', { command, args: options(), options: how }, clientOptions(log));
  client.onNotification(lsp.ShowMessageNotification.type, ({ message }) => { log.warn(message); });
  return client;
}

function clientOptions(log: LogOutputChannel): lsp.LanguageClientOptions {
  const print = (from: Readable): void => { createInterface(from).on('line', (line) => { log.info(line); }); };
  return {
    documentSelector: [{ scheme: 'file' }, { scheme: 'untitled' }, { scheme: 'vscode-notebook-cell' }],
    initializationOptions: forServer,
    outputChannel: log,
    stdioOptions: { stdout: print, stderr: print },
    revealOutputChannelOn: lsp.RevealOutputChannelOn.Never,
    initializationFailedHandler: () => false,
    errorHandler: {
      error: () => ({ action: lsp.ErrorAction.Continue, handled: true }),
      closed: () => ({ action: lsp.CloseAction.DoNotRestart, handled: true }), // the session counts restarts
    },
    middleware: {
      workspace: { configuration: ({ items }) => items.map(({ section }) => (section === 'fimserver' ? forServer() : null)) },
    },
  };
}
