// Replaces the module vscode in unit tests, which call pure functions only.
export {};
