"""Rules on plain text that decide where a middle ends, for both routes, the host and the front."""
