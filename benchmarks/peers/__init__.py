"""The same job in other systems. Each module runs in an environment of its own, where that system is installed."""
