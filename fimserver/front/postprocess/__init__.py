"""Filters that turn generated text into a suggestion that may be shown."""
