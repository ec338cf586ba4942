"""HTTP endpoints of the host, in its own dialect and in those of other servers."""
