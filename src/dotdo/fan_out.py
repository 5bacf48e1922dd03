"""`map`: one action or service for many items, a bounded number of them at a time.

It is made of what any service may use (a TaskGroup on the run's own loop), so it replays as a service does.
"""

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar, cast, overload

from dotdo.action import Action
from dotdo.context import call, runner_for
from dotdo.errors import ActionFailed, DefinitionError
from dotdo.service import Service

R = TypeVar("R")


@overload
async def map(
    action: Action[..., R] | Service[..., R],
    items: Iterable[Any],
    *,
    limit: int = 50,
    return_exceptions: Literal[False] = False,
) -> list[R]: ...
@overload
async def map(
    action: Action[..., R] | Service[..., R], items: Iterable[Any], *, limit: int = 50, return_exceptions: Literal[True]
) -> list[R | ActionFailed]: ...
@overload
async def map(
    action: str, items: Iterable[Mapping[str, Any]], *, limit: int = 50, return_exceptions: bool = False
) -> list[Any]: ...
async def map(
    action: Action[..., R] | Service[..., R] | str,
    items: Iterable[Any],
    *,
    limit: int = 50,
    return_exceptions: bool = False,
) -> Any:
    """Calls an action or child service for each item, inside a service; returns the outputs in the order of the items.

    action: also by name (`"charge"`, `"charge@2"`), as in `call`; then all items are mappings.
    items: an item that is a mapping (a dict) is the parameters by name; any other is the first parameter. Taken one by
        one, as there is room.
    limit: how many are under way at a time.
    return_exceptions: as in `asyncio.gather`: an item that failed for good gives its ActionFailed in its place, and
        the others go on.

    Otherwise the first failure ends it, as in a TaskGroup: no further item is begun, those under way are cancelled,
    and once they have ended that first ActionFailed is raised (itself, not in a group). Each item is a step of its
    own, so what was done is not done again when the run is retried.
    """
    runner_for("map()")
    if not isinstance(limit, int) or limit < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise DefinitionError(f"map(limit={limit!r}): a whole number from 1 is needed.")
    if not isinstance(action, Action | Service | str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise DefinitionError(f"map({action!r:.80}, ...): an action or service is needed, or the name of one.")
    results: list[Any] = []
    waiting = iter(items)
    failures: list[BaseException] = []

    async def work() -> None:
        # One task for each place, not for each item. All places share one iterator, so that items are called in
        # order, and equal ones are told apart alike on every replay.
        for item in waiting:
            place = len(results)
            results.append(None)
            try:
                results[place] = await _call(action, item)
            except ActionFailed as error:
                if not return_exceptions:
                    failures.append(error)
                    raise
                results[place] = error

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(limit):
                group.create_task(work())
    except BaseExceptionGroup as group:
        # What is first in the group is what happened first; the others only followed from being cancelled.
        raise (failures or list(group.exceptions))[0] from None
    return results


def _call(action: Any, item: Any) -> Any:
    if isinstance(action, str):
        if not isinstance(item, Mapping):
            what = f"map({action!r}, ...)"
            raise DefinitionError(f"{what}: each item is a mapping of parameters by name, not {repr(item)[:100]}.")
        return call(action, **cast("Mapping[str, Any]", item))
    return action(**cast("Mapping[str, Any]", item)) if isinstance(item, Mapping) else action(item)
