"""Statistics: the store, its summaries and the Prometheus metrics."""
