"""Metrics and statistics of a comparison."""
