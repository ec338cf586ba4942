"""Prompt context: prefix, suffix, snippets of other files, and what must stay out of a prompt."""
