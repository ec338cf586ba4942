"""Tensors only: no URI, no position in a file, no socket."""
