"""One file per drafter; ``DRAFTERS`` in ``registry.py`` names them."""
