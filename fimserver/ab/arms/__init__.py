"""Arms of a comparison: an engine in this process, or a host by its URL."""
