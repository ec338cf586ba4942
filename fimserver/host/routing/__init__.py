"""Choice of the route: policies, latency model, length model."""
