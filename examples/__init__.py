"""Examples, each a small program of its own."""
