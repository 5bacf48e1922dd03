"""The test kit: what tests of your actions and services can use. Nothing of dotdo imports it.

`TestDo` is a client with an engine and a store of its own, virtual time and fakes; `ManualClock` is time for a client
of your own; `record` and `replay` make a unit test of a run that there has been. The pytest plugin is in plugin.py.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dotdo.testing.client import Stuck, TestDo
    from dotdo.testing.clock import ManualClock
    from dotdo.testing.faking import Fake, Sent
    from dotdo.testing.recording import record, replay

__all__ = ["Fake", "ManualClock", "Sent", "Stuck", "TestDo", "record", "replay"]


def __getattr__(name: str) -> Any:
    # When it is asked for: pytest loads the plugin of this package in every session, also where nothing uses it.
    if name == "ManualClock":
        from dotdo.testing import clock as place
    elif name in ("Fake", "Sent"):
        from dotdo.testing import faking as place
    elif name in ("Stuck", "TestDo"):
        from dotdo.testing import client as place
    elif name in ("record", "replay"):
        from dotdo.testing import recording as place
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(place, name)
