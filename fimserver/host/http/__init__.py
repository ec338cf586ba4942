"""HTTP endpoints of the host, in its own dialect and those of other servers."""
