"""Where a middle ends: rules on text alone, for both routes, the host and the editor."""
