"""Remote engines: servers elsewhere fill the middles, each asked in its own dialect."""
