"""Speculative decoding: rounds, verification, draft policy."""
