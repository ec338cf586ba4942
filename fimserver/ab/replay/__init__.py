"""Replay of keystroke traces against a language server."""
