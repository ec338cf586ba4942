"""Open documents and notebooks, exactly as the editor has them."""
