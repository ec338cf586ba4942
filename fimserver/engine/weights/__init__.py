"""Weight formats: where the files of a checkpoint are, and how they become tensors."""
