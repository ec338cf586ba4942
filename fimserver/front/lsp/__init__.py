"""Language Server Protocol: transport, messages and the handlers of each method."""
