"""A worker: a process that runs handlers and reaches the platform over HTTP only. See contract/worker-protocol.md."""
