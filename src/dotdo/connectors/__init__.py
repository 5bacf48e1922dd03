"""Connectors: ready-made effects for outside systems, one module each: `from dotdo.connectors import email, http`.

They use the public API of dotdo only, so they are also the example to follow for a connector of your own. Importing one
registers its effects; the library behind it (an extra: `pip install "dotdo[email,http]"`) is loaded with the first use.
"""
