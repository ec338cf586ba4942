"""Error codes of JSON-RPC and LSP, and the states in the life of a server."""

from __future__ import annotations

from enum import Enum


class Code(Enum):
    """Error codes of JSON-RPC and LSP, with their messages."""

    PARSE = (-32700, "not JSON")
    REQUEST = (-32600, "not a request that can be served now")
    METHOD = (-32601, "no such method")
    PARAMS = (-32602, "the parameters do not fit the method")
    INTERNAL = (-32603, "internal error")
    NOT_INITIALIZED = (-32002, "not initialized")
    CANCELLED = (-32800, "cancelled")


class Life(Enum):
    """State in the life cycle of a server."""

    NEW = "new"
    RUNNING = "running"
    SHUT_DOWN = "shut down"
