"""Measures dotdo against its bars: `make bench`, or `python -m benchmarks --help`.

One module per benchmark; its docstring says how it measures. docs/benchmarks.md has the method and its limits.
"""
