"""What other live nodes define: a step whose action is not defined here goes there, as a child run of kind "action".

Whoever defines the action claims that run, so effects, retries, settlement and undo of it happen there, as for any run.
The version that a call without one takes is in the entry that accepts the child. A step of which no live node has the
action waits, out of memory, and is due again as soon as one comes.
"""

import difflib
from typing import TYPE_CHECKING, Any, cast

from dotdo.catalogue import described
from dotdo.engine import requesting
from dotdo.engine.children import run_child
from dotdo.engine.failing import Block
from dotdo.engine.step_call import OWN_STEPS
from dotdo.engine.waiting import Pause
from dotdo.engine.working import WORKER, until_defined
from dotdo.errors import DefinitionError
from dotdo.offer import ExpectedAction, OfferedAction, Remote
from dotdo.records import Definition, ErrorRecord, WaitingFor

if TYPE_CHECKING:
    from dotdo.engine.engine import Engine
    from dotdo.engine.running import LiveRun
    from dotdo.engine.serving import Serving
    from dotdo.engine.stepping import StepRun
    from dotdo.store.sharing_protocol import SharedStore

ACTION = "action"  # what a run waits for


class Elsewhere:
    """What this node knows of the definitions of others that are alive."""

    def __init__(self) -> None:
        self._found: dict[str, dict[int, Definition]] = {}
        self._waiting: list[Pause[None]] = []

    def learn(self, definitions: list[Definition]) -> None:
        """What the others define now."""
        self._found = {}
        for each in definitions:
            self._found.setdefault(each.name, {})[each.version] = each

    def find(self, name: str, version: int | None = None, kind: str | None = None) -> Definition | None:
        """The definition of that name and version (None: the newest), if a live node has it."""
        versions = self._found.get(name)
        if not versions:
            return None
        found = versions.get(max(versions) if version is None else version)
        return found if found is not None and kind in (None, found.kind) else None

    def all(self, kind: str) -> list[Definition]:
        """Every definition of a kind."""
        return [one for versions in self._found.values() for one in versions.values() if one.kind == kind]

    def versions(self, name: str) -> list[int]:
        """The versions of a name that live nodes have."""
        return sorted(self._found.get(name, {}))

    def near(self, name: str, others: list[str]) -> list[str]:
        """Names that may have been meant."""
        return difflib.get_close_matches(name, {*self._found, *others} - {name}, n=2)

    def changed(self) -> None:
        """Somebody has come, or gone: steps that wait look again."""
        waiting, self._waiting = self._waiting, []
        for pause in waiting:
            if not pause.done():
                pause.set_result(None)

    async def until_changed(self, run: "LiveRun") -> None:
        """Returns when somebody has come, or gone. run: is less busy by one meanwhile."""
        pause = Pause[None](run)
        self._waiting.append(pause)
        await pause.over()


def defined_anywhere(engine: "Engine", kind: str, name: str, version: int | None) -> Any:
    """What a run is to be of: a definition of this node's, or a Remote of what only other live nodes have. Raises
    UnknownName when nobody defines it, DefinitionError when that cannot be used."""
    own = engine.catalogue.find(kind, name, version)
    if own is not None and not is_left_to_others(engine, own):
        return own
    found = engine.elsewhere.find(name, version, kind) if engine.elsewhere is not None else None
    return Remote(found) if found is not None else engine.catalogue.get(kind, name, version)


async def look_for_others(platform: "Serving", kind: str, name: str, version: int | None) -> Remote:
    """What only other nodes define, for a process without one: it asks the store who is alive. Raises UnknownName,
    DefinitionError."""
    store, elsewhere = cast("SharedStore", platform.store), Elsewhere()
    nodes = [one for one in await platform.read(store.list_nodes) if one.lease > 0]
    told = await platform.read(lambda: store.published([one.id for one in nodes]))
    elsewhere.learn([each for one in nodes for each in as_offered(one.offers, told.get(one.id, []))])
    found = elsewhere.find(name, version, kind)
    return Remote(found) if found is not None else platform.catalogue.get(kind, name, version)


def is_left_to_others(engine: "Engine", definition: Any) -> bool:
    """Whether a definition is here, but all who can run it now are on other nodes: the worker that offers it is."""
    if engine.elsewhere is None or not isinstance(definition, OfferedAction):
        return False
    what = ("action", definition.name, definition.version)
    found = engine.elsewhere.find(definition.name, definition.version)
    return found is not None and not engine.workers.is_offered(what)


async def went_elsewhere(step: "StepRun") -> bool:
    """Has a step of a service done as a child run, by a node that can, if this one cannot. Else it can be done here."""
    run, record, wanted, elsewhere = step.run, step.record, step.definition, step.run.engine.elsewhere
    if elsewhere is None:
        if isinstance(wanted, ExpectedAction):
            step.definition = await until_defined(run, step.id, wanted)
        return False
    if run.accepted.kind == "action" or step.id.startswith(OWN_STEPS):
        return False  # the run itself is where that can be done
    assert isinstance(wanted, OfferedAction), "others are here"
    found = await _find(step, wanted, elsewhere)
    if found is None:
        return False
    if (record.requests or record.failures) and not await _leave_attempts(step):
        return True
    remote = _remote(step, found)
    # What does not fit is a bug of the service, as in a call of an action of its own.
    await run_child(run, step.id, remote, remote.schema.accept(step.input), step.overrides)
    return True


async def _find(step: "StepRun", wanted: OfferedAction, elsewhere: Elsewhere) -> Definition | None:
    """The definition that another node has, or None when the step can be done here. Waits until there is either."""
    run, engine, record = step.run, step.run.engine, step.record
    name = wanted.name
    expected = isinstance(wanted, ExpectedAction)
    version = (wanted.wanted or _kept(run, name)) if isinstance(wanted, ExpectedAction) else wanted.version
    while True:
        here = engine.catalogue.find("action", name, version)
        if here is not None and not isinstance(here, OfferedAction):
            step.definition = here  # it was defined meanwhile
            return None
        if here is not None:
            begun = not record.is_blank or bool(record.requests)
            if begun or engine.workers.is_offered(("action", name, here.version)):
                step.definition = here
                return None
        found = elsewhere.find(name, version)
        if found is not None:
            return found
        run.waiting.now[step.id] = _what_is_missing(engine, step.id, name, version, here, expected=expected)
        try:
            await elsewhere.until_changed(run)
        finally:
            run.waiting.now.pop(step.id, None)


def _kept(run: "LiveRun", name: str) -> int | None:
    """The version that a run took when it first called a name: it keeps that one."""
    steps = run.history.steps.values()
    return next((step.child.version for step in steps if step.child is not None and step.child.name == name), None)


def missing(engine: "Engine", what: str, name: str, version: int | None) -> str:
    """Says that no live node defines something, and what there is instead."""
    elsewhere = engine.elsewhere
    text = f"a node that defines the {what}: none that is alive does"
    if elsewhere is None:
        return text
    own = {each.name: each for kind in ("action", "service") for each in engine.catalogue.all(kind)}
    known = {*elsewhere.versions(name), *(each.version for each in own.values() if each.name == name)}
    if version is not None and known:
        return f"{text}; versions that are: {', '.join(map(str, sorted(known)))}"
    near = elsewhere.near(name, list(own))
    return f"{text}. Was {' or '.join(near)} meant?" if near else text


def _what_is_missing(
    engine: "Engine", step: str, name: str, version: int | None, here: Any, *, expected: bool
) -> WaitingFor:
    if here is not None or not expected:
        what = described("action", name, here.version if here is not None else version or 1)
        return WaitingFor(WORKER, f"a worker: none that is connected offers the {what}", None, step)
    what = f"action {name}" if version is None else described("action", name, version)
    return WaitingFor(ACTION, missing(engine, what, name, version), None, step)


async def _leave_attempts(step: "StepRun") -> bool:
    """Attempts were made where the action was defined, and failed: what they asked for is taken back, and it is begun
    anew elsewhere. False when its retries had been used up."""
    record = step.record
    await requesting.take_back(step.run, record, goes_on=True)
    if record.failures and record.next_at is None:
        step.fail(record.last_error or ErrorRecord("Error", "failed"), [])
        return False
    return True


def _remote(step: "StepRun", found: Definition) -> Remote:
    try:
        return Remote(found)
    except DefinitionError as error:
        raise Block(error.code, error.message, step=step.id) from None


def as_offered(offers: list[str], told: list[Definition]) -> list[Definition]:
    """What a node offers, with what it says of it, if it is of a version of dotdo that does."""
    by_name = {described(one.kind, one.name, one.version): one for one in told}
    return [by_name.get(offer) or _bare(offer) for offer in offers]


def _bare(offer: str) -> Definition:
    kind, _, named = offer.partition(" ")
    name, _, version = named.rpartition("@")
    return Definition(kind="service" if kind == "service" else "action", name=name, version=int(version))
