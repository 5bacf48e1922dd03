"""Says which unfinished runs of a store would block with the definitions at hand, and why.

Each is replayed from its journal up to where it stands, and nothing is started or written. It cannot tell what a run
would do after that.
"""

from collections.abc import Iterator
from typing import Any

import msgspec

from dotdo.action import Action
from dotdo.catalogue import Catalogue, Snapshot, described
from dotdo.engine.continuing import continuation
from dotdo.engine.failing import Block, is_failure, message_of
from dotdo.engine.finishing import block_of
from dotdo.engine.history import History
from dotdo.engine.secrets import Unkept, Vault, arguments_of
from dotdo.engine.service_code import ServiceCode
from dotdo.engine.step_record import COMMITTED, OPEN
from dotdo.errors import DotdoError, InputError, ReplayError
from dotdo.journal import Accepted
from dotdo.offer import OfferedCatalogue
from dotdo.service import Service
from dotdo.store.protocol import Store

PAGE = 100


class Outlook(msgspec.Struct, frozen=True):
    """What would become of one unfinished run. reason, text: why it would block; empty if it would go on. blocked: it
    is blocked now, so it goes on only when it is retried."""

    run: str
    name: str
    version: int
    status: str
    blocked: bool
    reason: str = ""
    text: str = ""


def foresee(store: Store, catalogue: Catalogue, vault: Vault) -> Iterator[Outlook]:
    """The outlook of every unfinished run, in order of ids. Raises StoreError."""
    after, pins = "", dict[str, Snapshot]()
    own, catalogue = catalogue, OfferedCatalogue(catalogue)
    catalogue.has_peers = store.shared
    while page := store.open_runs(after, PAGE):
        journals = store.read_journals(page)
        for id in page:
            run = store.get_run(id)
            if run is None or run.ended or not journals[id]:
                continue  # it has ended meanwhile
            history = History()
            history.load(journals[id])
            assert history.accepted is not None, "every journal begins so"
            if store.shared and run.kind == "action" and run.parent is not None and own.kind_of(run.name) is None:
                continue  # a step that went to a node with other code
            kept = history.accepted.pins or ""
            if kept not in pins:
                pins[kept] = Snapshot(kept, store.load_definitions(kept) if kept else {})
            reason, text = _why_blocked(id, history, history.accepted, pins[kept], catalogue, vault)
            yield Outlook(id, run.name, run.version, run.status, run.status == "blocked", reason, text)
        after = page[-1]


def _why_blocked(
    id: str, history: History, accepted: Accepted, pins: Snapshot, catalogue: Catalogue, vault: Vault
) -> tuple[str, str]:
    """Reason and text; both empty if the run would go on."""
    kind, name, version = accepted.kind, accepted.name, accepted.version
    definition: Action[..., Any] | Service[..., Any] | None = catalogue.find(kind, name, version)
    if definition is None:
        there = ", ".join(str(one.version) for one in catalogue.all(kind) if one.name == name)
        known = f"only version {there} of it is" if there else f"no {kind} of that name is"
        return "missing definition", f"It is a run of the {described(kind, name, version)}, and {known} defined."
    missing = _missing_for_what_is_done(history, catalogue)
    if missing:
        return "missing definition", missing
    if history.stopping is not None or history.ended is not None:
        return "", ""  # none of its own code runs any more
    keeper = Unkept(vault, id)
    try:
        if isinstance(definition, Action):
            arguments_of(keeper, definition.schema, bytes(accepted.input))
            return "", ""
        return _replay(ServiceCode(id, definition, history, pins, catalogue, None, keeper), history)
    except Block as block:
        return block.reason, block.message
    except (ReplayError, InputError) as error:
        return error.code.replace("_", " "), error.message


def _missing_for_what_is_done(history: History, catalogue: Catalogue) -> str:
    """Definitions that what the journal has already begun needs for its end."""
    for id in history.plan or []:
        record = history.steps[id]
        done = record.completion
        if record.undone or done is None or record.child is not None:
            continue
        action = catalogue.find("action", done.action, done.version)
        if action is None or action.undo_action is None:
            return (
                f"It undoes the step {id}, and the undo of {described('action', done.action, done.version)} is missing."
            )
    for record in history.steps.values():
        if record.state != COMMITTED or record.completion is None:
            continue
        for effect, delivery in zip(record.completion.effects, record.deliveries, strict=True):
            open_still = not (delivery.delivered or delivery.given_up)
            if open_still and catalogue.find("effect", effect.effect, effect.version) is None:
                what = described("effect", effect.effect, effect.version)
                return f"The step {record.id} has the {what} still to send, which is not defined."
    return ""


def _replay(code: ServiceCode, history: History) -> tuple[str, str]:
    try:
        code.start()
        code.hand_over(history.handovers)
        if not code.main.done():
            mismatch = code.mismatch(code.unmatched(), code.new) or _left_open(code, history)
        else:
            _, error = code.outcome()
            if error is not None and continuation(error) is None:
                if is_failure(error) or code.service.on_bug != "block":
                    return "", ""
                block = block_of(error)
                return block.reason, block.message
            mismatch = code.leftover(fresh=False)
        return ("", "") if mismatch is None else (mismatch.code.replace("_", " "), mismatch.message)
    except DotdoError as error:
        return error.code.replace("_", " "), message_of(error)
    finally:
        code.end()


def _left_open(code: ServiceCode, history: History) -> ReplayError | None:
    """A step under way that the code has not asked for yet: perhaps it will, later; perhaps it never does again."""
    return next(
        (
            ReplayError(
                f"The step {record.id} is under way, and the code has not asked for it up to where the run stands. "
                "Bring that call back, or make sure that the code comes to it."
            )
            for record in code.unmatched()
            if record.state in (OPEN, COMMITTED)
        ),
        None,
    )
