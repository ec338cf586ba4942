"""Knows what the editor talks to. Knows nothing of models: they are behind a line to the host."""
