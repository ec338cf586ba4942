"""Language server that an editor talks to; the models are in the host, another process."""
