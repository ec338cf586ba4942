"""Host: the process that owns the models and serves completions over HTTP."""
