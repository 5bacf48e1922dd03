"""The application of a server that has its actions done by workers: nothing of its own that is measured."""

from dotdo import service


@service("of-the-server")
async def of_the_server() -> None:
    """So that there is something to serve."""
