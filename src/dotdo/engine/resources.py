"""Resources: what an application gives its handlers by type, opened once and closed in reverse order."""

import inspect
from contextlib import AsyncExitStack
from typing import Any

from dotdo.errors import DefinitionError


async def open_resource(given: Any, resources: dict[type, Any], stack: AsyncExitStack) -> None:
    """Makes and enters one resource, and files it by its type. Raises DefinitionError for a second of one type."""
    if inspect.isfunction(given) or inspect.isclass(given):
        given = given()
    if hasattr(given, "__aenter__"):
        given = await stack.enter_async_context(given)
    elif hasattr(given, "__enter__"):
        given = stack.enter_context(given)
    if type(given) in resources:
        raise DefinitionError(
            f"Two resources of type {type(given).__name__} were given, and handlers ask for them by type: make a "
            "type of its own for each."
        )
    resources[type(given)] = given
