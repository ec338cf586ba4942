"""Drafters, one file each; ``DRAFTERS`` in ``registry.py`` names them."""
