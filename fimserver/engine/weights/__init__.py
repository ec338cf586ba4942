"""Weight formats: presence, size, hash, and tensors of a checkpoint."""
