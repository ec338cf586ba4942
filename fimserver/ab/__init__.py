"""Comparison of two configurations on the same items."""
