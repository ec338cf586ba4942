"""Knows how two configurations are compared on the same items. Knows nothing of editors or of engines' insides."""
