"""The set of definitions: names, versions, duplicates, and what is near when a name is not there."""

import functools
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dotdo import Action, Catalogue, DefinitionError, Effect, Service, UnknownName, action
from dotdo.catalogue import default_catalogue, described, split_version
from dotdo.errors import DuplicateDefinition


def first(x: int) -> int:
    return x


def second(x: int) -> int:
    return -x


async def flow(x: int) -> int:
    return x


# -- versions ---------------------------------------------------------------------------------------------------------


def test_versions_live_side_by_side_and_the_newest_is_taken():
    catalogue = Catalogue()
    two = Action("charge", second, version=2, catalogue=catalogue)
    one = Action("charge", first, version=1, catalogue=catalogue)
    ten = Action("charge", first, version=10, catalogue=catalogue)
    assert catalogue.get("action", "charge") is ten
    assert catalogue.newest("action", "charge") == 10
    assert [catalogue.get("action", "charge", n) for n in (1, 2, 10)] == [one, two, ten]
    assert catalogue.all("action") == [one, two, ten]


def test_listing_is_by_name_then_version():
    catalogue = Catalogue()
    for name in ("b", "a", "c"):
        Action(name, first, catalogue=catalogue)
    Action("b", second, version=2, catalogue=catalogue)
    assert [repr(found) for found in catalogue.all("action")] == [
        "<Action a@1>",
        "<Action b@1>",
        "<Action b@2>",
        "<Action c@1>",
    ]


def test_snapshot_names_the_newest_versions_whatever_the_order_of_definition():
    one, other = Catalogue(), Catalogue()
    Action("a", first, catalogue=one)
    Action("b", first, version=2, catalogue=one)
    Service("s", flow, version=3, catalogue=one)
    Service("s", flow, version=3, catalogue=other)
    Action("b", first, catalogue=other)
    Action("b", first, version=2, catalogue=other)
    Action("a", first, catalogue=other)
    assert one.snapshot() == other.snapshot()
    assert one.snapshot().newest == {"a": 1, "b": 2, "s": 3}
    before, changes = one.snapshot(), one.changes
    Action("a", second, version=2, catalogue=one)
    assert one.snapshot().id != before.id
    assert one.changes == changes + 1, "the engine sees that there is something new"


@pytest.mark.parametrize("name, expected", [("charge", ("charge", None)), ("charge@12", ("charge", 12))])
def test_a_name_may_say_its_version(name: str, expected: tuple[str, int | None]):
    assert split_version(name) == expected


@pytest.mark.parametrize("name", ["charge@", "charge@two", "charge@-1", "charge@1.5", "charge@1@2", "charge@²"])
def test_a_version_that_is_no_number_is_told(name: str):
    with pytest.raises(UnknownName, match="a version is a whole number, as in charge@2"):
        split_version(name)


# -- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "send-welcome-email", "crm.contacts.create", "A_1", "x" * 100])
def test_names_that_are_fine(name: str):
    Action(name, first, catalogue=Catalogue())


@pytest.mark.parametrize("name", ["", "1st", "-a", "a b", "a/b", "a@2", "a:b", "ä", "a\n", "x" * 101, 7, None])
@pytest.mark.parametrize("kind, function", [(Action, first), (Service, flow), (Effect, first)])
def test_names_that_could_be_mistaken_are_refused(kind: Any, function: Any, name: Any):
    catalogue = Catalogue()
    with pytest.raises(DefinitionError, match="cannot be the name"):
        kind(name, function, catalogue=catalogue)
    assert catalogue.changes == 0


@pytest.mark.parametrize("version", [0, -1, 1.5, "1", True, None])
def test_versions_that_are_no_whole_number_from_one_are_refused(version: Any):
    with pytest.raises(DefinitionError, match="a version is a whole number from 1"):
        Action("a", first, version=version, catalogue=Catalogue())


def test_an_action_and_a_service_cannot_share_a_name_but_an_effect_may():
    catalogue = Catalogue()
    Action("pay", first, catalogue=catalogue)
    Effect("pay", first, catalogue=catalogue)
    with pytest.raises(DuplicateDefinition, match="pay is already the name of actions; a service needs another name"):
        Service("pay", flow, catalogue=catalogue)
    assert catalogue.kind_of("pay") == "action"


# -- duplicates -------------------------------------------------------------------------------------------------------


def traced(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


def refused_twice(catalogue: Catalogue, *handlers: Any) -> DuplicateDefinition:
    Action("charge", handlers[0], catalogue=catalogue)
    changes = catalogue.changes
    with pytest.raises(DuplicateDefinition) as caught:
        Action("charge", handlers[1], catalogue=catalogue)
    assert catalogue.changes == changes
    assert catalogue.get("action", "charge").handler is handlers[0], "the first one stays"
    return caught.value


def test_a_duplicate_names_both_places():
    error = refused_twice(Catalogue(), first, second)
    lines = [f"{__file__}:{function.__code__.co_firstlineno}" for function in (first, second)]
    assert str(error) == (
        f"action charge@1 is already defined at {lines[0]}; this one is at {lines[1]}. Give it another name, "
        "a catalogue of its own, or version=2 to keep both."
    )


def test_handlers_under_the_same_decorator_are_different_handlers():
    """A wrapper's own lines are the decorator's, so only what is below tells two handlers apart."""
    error = refused_twice(Catalogue(), traced(first), traced(second))
    assert f":{second.__code__.co_firstlineno}" in str(error)


def test_a_factory_that_defines_one_name_twice_is_refused():
    def handler_for(rate: int) -> Callable[[int], int]:
        def handler(x: int) -> int:
            return x * rate

        return handler

    refused_twice(Catalogue(), handler_for(1), handler_for(2))


def test_the_same_function_twice_is_refused():
    refused_twice(Catalogue(), first, first)


def test_the_undo_of_a_duplicate_is_refused_as_well():
    catalogue = Catalogue()
    definition = Action("charge", first, catalogue=catalogue)
    definition.undo(second)
    with pytest.raises(DuplicateDefinition, match=r"charge\.undo@1"):
        definition.undo(first)


def load(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_module_imported_twice_is_no_duplicate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As `python app.py` does, when another module imports `app`: the later one counts."""
    shared = ModuleType("dotdo_test_shared_catalogue")
    shared.catalogue = Catalogue()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, shared.__name__, shared)
    path = tmp_path / "app.py"
    path.write_text(
        f"from {shared.__name__} import catalogue\n"
        "from dotdo import action\n"
        "@action('greet', catalogue=catalogue)\n"
        "def greet(name: str) -> str: return name\n"
        "@greet.undo\n"
        "def forget(name: str) -> None: ...\n"
    )
    once, again = load(path, "__main__x"), load(path, "app")
    assert once.greet is not again.greet
    assert shared.catalogue.get("action", "greet") is again.greet


# -- what is not there ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shop() -> Catalogue:
    catalogue = Catalogue()
    Action("charge-card", first, catalogue=catalogue)
    Action("charge-card", second, version=3, catalogue=catalogue)
    Service("checkout", flow, catalogue=catalogue)
    return catalogue


@pytest.mark.parametrize(
    "kind, name, version, message",
    [
        ("action", "charge-cart", None, "There is no action 'charge-cart'. Did you mean charge-card?"),
        ("action", "charge-card", 2, "There is no action charge-card@2; known versions: 1, 3."),
        ("action", "checkout", None, "checkout is a service, not an action."),
        ("service", "charge-card", 1, "charge-card is an action, not a service."),
        ("action", "zzz", None, "There is no action 'zzz'. Known: charge-card."),
        ("effect", "mail", None, "There is no effect 'mail'."),
    ],
)
def test_an_unknown_name_is_told_with_what_is_near(
    shop: Catalogue, kind: str, name: str, version: int | None, message: str
):
    assert shop.find(kind, name, version) is None
    with pytest.raises(UnknownName) as caught:
        shop.get(kind, name, version)
    assert str(caught.value).startswith(message)


def test_an_empty_catalogue_says_what_was_forgotten():
    with pytest.raises(UnknownName, match="No action is defined; import the module that defines it first"):
        Catalogue().get("action", "x")


# -- the default catalogue --------------------------------------------------------------------------------------------


def test_definitions_register_themselves_in_the_default_catalogue():
    @action("test-catalogue.default")
    def handler(x: int) -> int:
        return x

    assert default_catalogue.get("action", "test-catalogue.default") is handler
    assert Catalogue().find("action", "test-catalogue.default") is None


def test_effects_of_the_default_catalogue_are_found_from_any(shop: Catalogue):
    """Connectors define theirs there; own ones of the same name come first."""
    found = Effect("test-catalogue.mail", first)
    assert shop.get("effect", "test-catalogue.mail") is found
    own = Effect("test-catalogue.mail", second, catalogue=(mine := Catalogue()))
    assert mine.get("effect", "test-catalogue.mail") is own


def test_messages_name_definitions_like_callers_do():
    assert described("action", "charge", 2) == "action charge@2"
