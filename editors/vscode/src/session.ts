// Session of a window: the program in use, its process, its last status.

import { execFile } from 'node:child_process';
import * as vscode from 'vscode';
import { DidChangeConfigurationNotification, State, type LanguageClient } from 'vscode-languageclient/node';
import { makeClient } from './client';
import { find, type Found } from './find';
import { places, surroundings } from './machine';
import type { Canvas } from './preview';
import { CRASHED, failed, isOld, missing, old, unusable, type Problem } from './problem';
import { Limiter, coalesced, within } from './restart';
import { options, setting } from './settings';
import type { Status } from './status';

export class Session {
  found: Found | undefined;
  problem: Problem | undefined;
  status: Status | undefined;
  version: string | undefined; // of the running server
  private client: LanguageClient | undefined;
  private readonly limiter = new Limiter(4, 3 * 60_000);
  private readonly soon = coalesced(() => this.begin(), 300);
  private readonly changes = new vscode.EventEmitter<void>();
  private readonly canvases = new vscode.EventEmitter<Canvas | undefined>();
  readonly onDidChange = this.changes.event;
  readonly onCanvas = this.canvases.event;

  constructor(private readonly secrets: vscode.SecretStorage, private readonly log: vscode.LogOutputChannel) {}

  /** Start or restart soon. */
  restart(): void {
    this.limiter.forget();
    this.soon();
  }

  /** Send a request to the server. Throws if none is running. */
  async ask(method: string): Promise<object> {
    if (!this.client || !this.version) throw new Error(this.problem?.title ?? 'fimserver is starting');
    return await this.client.sendRequest<object>(method);
  }

  /** Tell the server that settings changed; it then asks for them. */
  async tellSettings(): Promise<void> {
    if (this.version) await this.client?.sendNotification(DidChangeConfigurationNotification.type, { settings: null });
  }

  /** Tell the server where the cursor is: it prefills the prompt where the cursor rests. */
  tellCursor({ document, selection }: vscode.TextEditor): void {
    if (!this.client || !this.version) return;
    const convert = this.client.code2ProtocolConverter;
    const place = { textDocument: convert.asTextDocumentIdentifier(document), position: convert.asPosition(selection.active) };
    this.client.sendNotification('textDocument/didFocus', place).catch(() => undefined); // it may just have ended
  }

  /** Run a verb of the program to its end. Never throws: an error is in the output. */
  async run(words: readonly string[], timeout: number, more = options()): Promise<{ isGood: boolean; output: string }> {
    const [program, how] = [this.found?.program, { ...(await surroundings(this.secrets)), timeout }];
    if (!program) return { isGood: false, output: this.problem?.title ?? 'fimserver is starting' };
    return await new Promise((resolve) => {
      execFile(program, [...words, ...more], how, (error, stdout, stderr) => {
        resolve({ isGood: !error, output: `${stdout}${stderr}`.trimEnd() || (error?.message ?? '') });
      });
    });
  }

  async end(): Promise<void> {
    const client = this.client;
    this.canvases.fire(undefined);
    this.client = this.version = this.status = undefined;
    await client?.stop().catch(() => undefined); // it may not have started yet
  }

  private async begin(): Promise<void> {
    const ended = this.end();
    this.found = this.problem = undefined;
    this.changes.fire(); // the status of the old server is no longer valid
    await ended;
    try {
      const [found, path] = [find(await places()), setting('path', '')];
      this.found = found;
      if (found) await this.start(found.program);
      else this.give(path ? unusable(path) : missing(vscode.workspace.isTrusted));
    } catch (error) { // for example a setting of the wrong type
      this.give({ ...failed('fimserver'), title: `fimserver cannot be started: ${String(error)}` });
    }
  }

  private async start(program: string): Promise<void> {
    const client = (this.client = makeClient(program, await surroundings(this.secrets), this.log));
    this.listen(client);
    try {
      await within(30_000, client.start());
    } catch (error) {
      this.log.error(String(error));
      this.died(client, failed(program));
      return;
    }
    if (this.client !== client) return; // it died meanwhile
    const version = client.initializeResult?.serverInfo?.version;
    if (isOld(version)) await this.end().then(() => { this.give(old(version)); });
    else {
      this.version = version;
      await this.tellSettings(); // they may have changed while it started
      if (vscode.window.activeTextEditor) this.tellCursor(vscode.window.activeTextEditor);
    }
    this.changes.fire();
  }

  private listen(client: LanguageClient): void {
    client.onDidChangeState(({ newState }) => { if (newState === State.Stopped) this.died(client, CRASHED); });
    const isCurrent = (): boolean => this.client === client; // a client that is being stopped may still send
    client.onNotification('fimserver/canvas', (canvas: Canvas) => { if (isCurrent()) this.canvases.fire(canvas); });
    client.onNotification('fimserver/status', (status: Status) => {
      if (!isCurrent()) return;
      this.status = status;
      this.changes.fire();
    });
  }

  /** Handle the unexpected exit of the process. */
  private died(client: LanguageClient, problem: Problem): void {
    if (this.client !== client) return;
    void this.end();
    if (this.limiter.allows()) this.soon();
    else this.give(problem);
    this.changes.fire();
  }

  private give(problem: Problem): void {
    this.problem = problem;
    this.log.error(`${problem.title}. ${problem.advice}`);
    this.changes.fire();
  }
}
