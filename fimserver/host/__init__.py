"""Knows what owns the models. Knows nothing of editors."""
