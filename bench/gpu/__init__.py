"""Every figure that a CUDA machine can give, by one command (``python -m bench.gpu``)."""
