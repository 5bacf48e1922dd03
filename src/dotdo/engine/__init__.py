"""Executes runs: claims them, replays services, makes attempts, commits, delivers, undoes. Knows no SQL and no HTTP."""
