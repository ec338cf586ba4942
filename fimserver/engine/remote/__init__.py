"""Remote engines: other servers fill the middles, each asked in its own dialect of HTTP."""
