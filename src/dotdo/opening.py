"""Opens what a client talks to, and loads no more than that takes."""

import os
from collections.abc import Callable
from typing import Any

from dotdo.platform import Platform


async def embed(store: str | None, moved: Callable[[Platform], None], *, engine: bool, **options: Any) -> Platform:
    """An engine in this process, or a line to the one of another process. Raises StoreError, DefinitionError."""
    # Imported here: whoever only defines actions, or talks to a server, need not load an engine and a database.
    from dotdo.embedding import Opening, open_platform

    return await open_platform(store, Opening(**options), engine=engine, moved=moved)


async def connect(url: str, api_key: str | None) -> Platform:
    """A server that runs the engine."""
    # Imported here: whoever is embedded needs no HTTP.
    from dotdo.remote import RemotePlatform

    return RemotePlatform(url, api_key or os.environ.get("DOTDO_API_KEY"))
