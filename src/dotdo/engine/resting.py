"""Whether anything moves in an engine. Tests ask, before they let time pass or look at what has come about."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dotdo.engine.engine import Engine


async def rests(engine: "Engine") -> bool:
    """Whether nothing moves in an engine until a time comes, or somebody outside does something."""
    if not _at_rest(engine):
        return False
    # What one of the threads has on its way is back after this, and has told whoever waits for it.
    await engine.write(lambda: None)
    due = await engine.read(engine.store.next_due)
    if due is not None and due <= engine.clock.now():
        engine.claimer.hint()  # else the next poll would find it
        return False
    return _at_rest(engine)


def _at_rest(engine: "Engine") -> bool:
    if engine.intake.fresh or engine.background or not (engine.committer.at_rest and engine.claimer.at_rest):
        return False
    # One that has not begun waits for its turn among those that may have crashed a node.
    moving = (run for run in engine.live.values() if run.busy or run.over or not run.began)
    return not any(moving) and all(run.journal.is_durable for run in engine.live.values())
