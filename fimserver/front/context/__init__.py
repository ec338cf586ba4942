"""Prompt context: prefix, suffix, snippets of other files, and what is kept out of prompts."""
