"""Every service of the guarantees and of the docs, found by looking: what it is started with, or why it is left out.

A service added later is found, too, and started with inputs made up from its parameters; if that will not do, its
inputs belong in `INPUTS`, or it in `LEFT_OUT` with the reason.
"""

import ast
import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from dotdo import Catalogue, EffectCall
from dotdo.service import Service
from tests.guarantees import crash_services, killed_server_app, lab
from tests.guarantees.documented import shown_services, source_of

FOLDER = Path(__file__).parent
OWN = ("every_service", "documented", "test_every_service_killed_everywhere", "conftest")

# By `module:service`, `module` for all of a module, or `module:function` for those that a function defines. The module
# of what a page of the docs shows is the page.
LEFT_OUT = {
    "docs/limits.md:endless": "keeps the loop busy until it is interrupted",
    "docs/service.md:impatient": "is not deterministic, which its sample shows",
    "docs/workers.md:invoice": "needs a worker, which tests/worker kills",
    "canary_app": "says secrets to a file of its test's; test_secrets_appear_nowhere kills it",
    "crash_services:beside": "stands beside a poison",
    "crash_services:hurries": "its steps are cancelled by real time; test_killed_anywhere_resumes kills it",
    "crash_services:poisoned": "kills its process; test_services_poison runs it",
    "elsewhere": "needs several nodes; its test kills the one that has the action",
    "neighbours:in-three-steps": "stands at a file of its test's; test_take_over kills its processes",
    "paying": "pays into a real server, which its tests stop or cut off",
    "previewed:Application": "sends to nowhere, since it is only previewed",
    "test_check_foresees_what_blocks:test_missing_definitions_are_named": "is code that must not fit",
    "test_continue_as_new:test_wrong_use_is_a_bug_that_says_what_to_do": "is wrong, for an error message",
    "test_hostile_handlers_hurt_nobody_else:takes-fragile": "breaks by how often its value was read in this process",
    "test_hostile_handlers_hurt_nobody_else:spins-in-python": "keeps the loop busy until it is interrupted",
    "test_hostile_values_are_refused_at_every_door:calls": "only passes values that are refused",
    "test_map_is_bounded_and_ordered:test_items_that_break_are_a_bug_of_the_service": "is wrong, for an error message",
    "test_process_pool": "starts processes, which its test kills",
    "test_replay_of_finished_runs:test_control_other_programs_do_not_replay_to_these_ends": "is code that must not fit",
    "test_replay_of_finished_runs:test_run_that_meets_other_code_is_blocked_and_not_run_wrongly": "is such code, too",
    "test_retry_repeats_only_what_failed": "composes actions of the onboarding, which tests/examples kills everywhere",
    "test_services_asyncio:cancels-sql": "what becomes of its steps is a matter of real time",
    "test_services_asyncio:times-out-a-thread": "waits for a real thread",
    "test_services_blocked:draws-numbers": "is not deterministic, which its test finds",
    "test_services_blocked:keeps-state-outside": "is not deterministic, which its test finds",
    "test_services_blocked:reads-the-clock": "is not deterministic, which its test finds",
    "test_services_blocked:spins": "keeps the loop busy until it is interrupted",
    "web_app": "stands at a FIFO of its test's; test_gunicorn kills its processes",
}
# Functions that define services, and how to have them do it.
FACTORIES = {
    "node:definitions": "definitions",
    "test_check_foresees_what_blocks:application": "application",
    "test_operators_on_postgres:definitions": "definitions",
    "test_parked_at_any_moment:definitions": "definitions",
    "test_promoted_store_goes_on:definitions": "definitions",
    "test_services_blocked:version_of": "of_old",
    "test_started_within_a_transaction:definitions": "definitions",
    "test_versions_side_by_side:offer_first": "both",
    "unseen:define": "define",
}
# Those whose end is a matter of who comes first, or of how often their actions are attempted. They are killed, too, and
# must end with every invariant intact, but not alike.
RACES = {
    "crash_services:family": "children draw numbers from one table",
    "crash_services:mendable": "an action fails in its first attempt only, also where that is lost",
    "crash_services:onboard": "an action fails in its first attempt only, also where that is lost",
    "crash_services:onboard-refused": "an action fails in its first attempt only, also where that is lost",
    "crash_services:steered": "an action fails in its first attempt only, also where that is lost",
    "random_services:random-program": "its steps race",
    "test_dropped_runs_are_settled:parent": "its result says which attempt it is of",
    "test_dropped_runs_are_settled:writer": "its result says which attempt it is of",
    "test_services_asyncio:gathers-errors": "its steps race",
    "test_services_asyncio:groups": "the first failure cancels the other steps",
    "test_services_asyncio:handles-groups": "the first failure cancels the other steps",
    "test_services_asyncio:leaves-work-behind": "it does not await its steps",
    "test_services_asyncio:limits": "its steps race",
    "test_services_asyncio:shields": "its steps race",
    "test_services_asyncio:takes-as-completed": "its steps race",
    "test_services_asyncio:waits-for-first": "its steps race",
    "test_services_asyncio:works-on-a-queue": "its steps race",
    "test_services_children:breaks-beside-a-child": "a bug and the start of a child race",
    "test_services_children:hurries": "a child and a timer race",
    "test_services_children:stops-while-they-linger": "a child and the failure of its parent race",
    "test_services_operators:signs-up": "its result says which attempt it is of",
    "test_operators_on_postgres:writes": "its steps race",
    "test_stopping_and_cancel_races:asks-beside": "its steps race",
    "test_stopping_and_cancel_races:does-everything": "its steps race",
    "test_store_trouble_strands_nobody:with-child": "a child and the failure of its parent race",
    "unseen:writes": "its result says which attempt it is of",
}

# Lives that are killed, too, and must end with every invariant intact, but with a doubt that is not in the undisturbed.
DOUBTS = {
    "killed_server_app:onboard-2-cancelled": "its mail waits for a retry, and who was killed may have sent it unseen",
}

INPUTS: dict[str, list[dict[str, Any]]] = {
    "README.md:sell-ticket": [{"passenger": "Ada", "cents": 9_900}, {"passenger": "Ben", "cents": 99_000}],
    "crash_services:family": [{"refused": False}, {"refused": True}],
    "crash_services:member": [{"name": "ada", "friend": "ben"}, {"name": "refused", "friend": None}],
    "random_services:random-program": [{"seed": seed} for seed in range(40, 52)],
    "killed_server_app:onboard": [{"name": "ada"}, {"name": "twice-ada"}, {"name": "refused-ada"}, {"name": "no-crm"}],
    "test_continue_as_new:parent": [{"last": 2}, {"last": 1, "fails": True}],
    "test_erased_data_is_gone:order": [{"text": "tea"}, {"text": "tea", "fails": True}],
    "test_hostile_handlers_hurt_nobody_else:worst-service": [{"what": "exit"}],
    "test_services_blocked:waits-for-nobody": [{"on": "future"}],
    "test_services_cancel:travels": [{"then": then} for then in ("refuse", "wait", "sleep")],
    "test_services_undo_by_hand:changes-its-mind": [{"then": "refuse"}, {"then": "end"}],
    "test_services_waiting:waits": [{"how": how} for how in ("timer", "event", "either")],
}
MADE_UP: dict[Any, Any] = {str: "ada", int: 2, bool: False, float: 2.0, list[str]: ["a", "b"], list[int]: [1, 2]}


class Case(msgspec.Struct, frozen=True):
    """A service as it is started. make: its catalogue."""

    id: str
    module: str
    service: str
    input: dict[str, Any]
    make: Callable[[], Catalogue]

    @property
    def races(self) -> bool:
        """Whether it may end in several ways."""
        return f"{self.module}:{self.service}" in RACES


def cases() -> list[Case]:
    """All services that are not left out, with each of their inputs."""
    found: list[Case] = []
    for shown in shown_services():
        found += _cases_of(shown.page, shown.service, lambda catalogue=shown.catalogue: catalogue)
    for module in modules():
        for service in services_at_top(module):
            found += _cases_of(module, service, lambda catalogue=service.catalogue: catalogue)
    for place, name in FACTORIES.items():
        module, _, _ = place.partition(":")
        make = _factory(module, name)
        catalogue = make()
        for one in services_of(catalogue):
            found += _cases_of(module, one, make)
    return found


def modules() -> list[str]:
    """The names of the modules of this folder."""
    return sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in ("__init__", *OWN))


def source(module: str) -> str:
    """The text that defines the services of a module, or page."""
    return source_of(module) if module.endswith(".md") else (FOLDER / f"{module}.py").read_text()


def services_at_top(module: str) -> list[Service[..., Any]]:
    """Those that a module holds, and has defined."""
    imported = importlib.import_module(f"tests.guarantees.{module}")
    found = {id(one): one for one in vars(imported).values() if isinstance(one, Service)}
    return [one for one in found.values() if one.handler.__module__ == imported.__name__]


def services_of(catalogue: Catalogue) -> list[Service[..., Any]]:
    """All of a catalogue."""
    definitions: Any = catalogue._found["service"]  # pyright: ignore[reportPrivateUsage]
    return [versions[number] for _, versions in sorted(definitions.items()) for number in versions]


def definers(module: str) -> set[str]:
    """The functions and classes in a module, by `module:name`, in which services are defined."""
    found: set[str] = set()
    for top in ast.parse((FOLDER / f"{module}.py").read_text()).body:
        if isinstance(top, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            inside = [node for part in top.body for node in ast.walk(part)]
            if any(
                isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("service", "Service") for node in inside
            ):
                found.add(f"{module}:{top.name}")
    return found


def is_left_out(module: str, name: str) -> bool:
    """Whether there is a reason against it."""
    return module in LEFT_OUT or f"{module}:{name}" in LEFT_OUT


def _cases_of(module: str, service: Service[..., Any], make: Callable[[], Catalogue]) -> list[Case]:
    if is_left_out(module, service.name):
        return []
    inputs = INPUTS.get(f"{module}:{service.name}") or [_made_up(service)]
    short = module.removeprefix("test_")
    return [
        Case(f"{short}:{service.name}{'' if number == 0 else f'-{number + 1}'}", module, service.name, input, make)
        for number, input in enumerate(inputs)
    ]


def _made_up(service: Service[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(service.handler).parameters.values()
    return {one.name: MADE_UP.get(one.annotation, "any") for one in parameters if one.default is one.empty}


def _factory(module: str, name: str) -> Callable[[], Catalogue]:
    imported = importlib.import_module(f"tests.guarantees.{module}")
    if name == "of_old":
        return lambda: imported.version_of("old")
    return getattr(imported, name)


# -- worlds in memory ----------------------------------------------------------------------------------------------


class OpenWorld(lab.World):
    """A world whose gates all stand open."""

    async def pass_gate(self, name: str) -> None:
        """Nobody waits here: the test that kills is not there to open."""


class Deeds:
    """What systems outside have done, once under each key for those that honour keys. Outlives an engine."""

    def __init__(self) -> None:
        self._done: dict[tuple[str, str], str] = {}

    def act(self, call: EffectCall, system: str, what: str, *, honours_keys: bool = True) -> str:
        """Does it, and answers with what names neither a time nor how often."""
        return self._done.setdefault((system, call.key), f"{what}-done")

    def look(self, call: EffectCall, system: str) -> str | None:
        """What was done under the call's key."""
        return self._done.get((system, call.key))


class CrashWorld(crash_services.World):
    """The world of crash_services, without a ledger."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("", 0), folder)
        self._deeds = Deeds()

    def act(self, call: EffectCall, system: str, what: str, *, honours_keys: bool = True) -> str:
        """Has the system do it."""
        return self._deeds.act(call, system, what)

    def look(self, call: EffectCall, system: str) -> str | None:
        """What the system has done under the call's key."""
        return self._deeds.look(call, system)


class ServerWorld(killed_server_app.World):
    """The world of killed_server_app, without a ledger."""

    def __init__(self) -> None:
        self._deeds = Deeds()

    async def act(self, call: EffectCall, system: str, what: str) -> str:
        """Has the system do it."""
        return self._deeds.act(call, system, what)
