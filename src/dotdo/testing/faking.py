"""What stands between a test's engine and the functions of its application: fakes, and a record of what was sent.

One `Company` belongs to one client, so fakes of one test are unknown to all others. Actions and effects are replaced by
twins that differ in nothing but the function, and look up their fake each time they are called.
"""

import copy
import hashlib
import inspect
import threading
from collections import defaultdict
from collections.abc import Callable
from typing import Any, cast

import msgspec

from dotdo.action import Action
from dotdo.codec import encode_result
from dotdo.effect import Effect, EffectCall
from dotdo.errors import DefinitionError
from dotdo.testing.killing import Points

Definition = Action[..., Any] | Effect[..., Any]
Raises = BaseException | type[BaseException]


class Sent(msgspec.Struct, frozen=True, kw_only=True):
    """An effect that happened: its function, or what stands in for it, has returned.

    effect, version: which. key: its idempotency key. run, step: whose. input: by parameter, plain values. answer: as
    returned. takes_back: whether it was the undo of a request.
    """

    effect: str
    version: int
    key: str
    run: str
    step: str
    input: dict[str, Any]
    answer: Any = None
    takes_back: bool = False


class Fake:
    """What stands in for one action or effect. calls: the input of each call so far, by parameter."""

    def __init__(
        self, subject: str, function: Callable[..., Any] | None, result: Any, raises: Raises | None, times: int | None
    ) -> None:
        self.calls: list[dict[str, Any]] = []
        self._subject, self._function, self._result = subject, function, result
        self._raises, self._left = raises, times
        self._lock = threading.Lock()

    @property
    def count(self) -> int:
        """How often it was called, attempts and tries that failed included."""
        return len(self.calls)

    def answer(self, first: Any, inputs: dict[str, Any]) -> tuple[bool, Any]:
        """Whether this call is answered here, and how. Raises as told. The answer may be awaitable."""
        with self._lock:
            self.calls.append(inputs)
            fails = self._raises is not None and self._left != 0
            if fails and self._left is not None:
                self._left -= 1
        if fails:
            raise _raised(cast("Raises", self._raises), self._subject)
        if self._function is not None:
            return True, _called(self._function, first, inputs)
        if self._result is not msgspec.UNSET:
            return True, copy.deepcopy(self._result)
        return False, None


class Company:
    """The doubles of one client: implements `dotdo.engine.doubles.Doubles`. sent: effects that happened, in order."""

    def __init__(self, points: Points) -> None:
        self.sent: list[Sent] = []
        self._points = points
        self._fakes: dict[tuple[str, str, int], Fake] = {}
        self._twins: dict[tuple[int, int, int], tuple[Any, Any]] = {}
        self._seeds: dict[str, int] = defaultdict(int)

    def fake(
        self,
        definition: Definition,
        function: Callable[..., Any] | None,
        *,
        result: Any,
        raises: Raises | None,
        times: int | None,
    ) -> Fake:
        """Sets the fake of an action or effect, in the place of an earlier one. Raises DefinitionError."""
        if not isinstance(definition, Action | Effect):  # pyright: ignore[reportUnnecessaryIsInstance]  # of users
            raise DefinitionError(
                f"{definition!r} cannot be faked: name an action or an effect. What else your code uses can be given "
                "as a resource, or faked with pytest's monkeypatch."
            )
        if function is None and result is msgspec.UNSET and raises is None:
            raise DefinitionError(f"fake({definition.subject}): say what it does: a function, result= or raises=.")
        if function is not None and result is not msgspec.UNSET:
            raise DefinitionError(f"fake({definition.subject}): a function or result=, not both.")
        if times is not None and raises is None:
            raise DefinitionError(f"fake({definition.subject}): times= says how often it raises; give raises=, too.")
        if function is not None and inspect.iscoroutinefunction(function) and not definition.is_async:
            raise DefinitionError(f"fake({definition.subject}): it is a `def`, so its stand-in cannot be `async def`.")
        fake = self._fakes[_name(definition)] = Fake(definition.subject, function, result, raises, times)
        return fake

    # -- dotdo.engine.doubles.Doubles ---------------------------------------------------------------------------------

    def action(self, definition: Action[..., Any]) -> Action[..., Any]:
        """What is run instead of an action: its fake, if it has one."""
        known = self._twins.get((id(definition), 0, 0))
        if known is not None and known[0] is definition:
            twin = cast("Action[..., Any]", known[1])
        else:
            twin = copy.copy(definition)
            handler = definition.handler
            twin.handler = (
                self._async_handler(definition, handler)
                if definition.is_async
                else self._sync_handler(definition, handler)
            )
            if definition.fallback is not None:
                twin.fallback = self.action(definition.fallback)
            self._twins[id(definition), 0, 0] = (definition, twin)
        # A process of a pool would not find the fake.
        twin.pool = None if _name(definition) in self._fakes else definition.pool
        return twin

    def effect(self, effect: Effect[..., Any]) -> Effect[..., Any]:
        """What is called instead of an effect: its fake or itself, noted, and with places around where it is killed."""
        known = self._twins.get((id(effect), 0, 0))
        if known is not None and known[0] is effect:
            return known[1]
        twin = copy.copy(effect)
        twin.takes_call = True
        twin.function = self._around(effect, effect.function, takes_call=effect.takes_call)
        self._twins[id(effect), 0, 0] = (effect, twin)
        return twin

    def companion(self, effect: Effect[..., Any], function: Callable[..., Any]) -> Callable[..., Any]:
        """What is called instead of an effect's lookup or undo: itself, the undo noted."""
        known = self._twins.get((id(effect), id(function), 1))
        if known is not None and known[0] == (effect, function):
            return known[1]
        takes_back = function is effect.undo
        twin = self._companion(effect, function, takes_back=takes_back)
        self._twins[id(effect), id(function), 1] = ((effect, function), twin)
        return twin

    def seed(self, run: str) -> str:
        """The same for the same run, in each repetition of a test."""
        return hashlib.sha256(run.encode()).hexdigest()[:16]

    # -- inside -------------------------------------------------------------------------------------------------------

    def _fake_of(self, definition: Definition) -> Fake | None:
        return self._fakes.get(_name(definition))

    def _async_handler(self, action: Action[..., Any], handler: Callable[..., Any]) -> Callable[..., Any]:
        async def stand_in(*context: Any, **inputs: Any) -> Any:
            fake = self._fake_of(action)
            if fake is not None:
                taken, found = fake.answer(context[0] if context else None, inputs)
                if taken:
                    return await found if inspect.isawaitable(found) else found
            return await handler(*context, **inputs)

        return stand_in

    def _sync_handler(self, action: Action[..., Any], handler: Callable[..., Any]) -> Callable[..., Any]:
        def stand_in(*context: Any, **inputs: Any) -> Any:
            fake = self._fake_of(action)
            if fake is not None:
                taken, found = fake.answer(context[0] if context else None, inputs)
                if taken:
                    return found
            return handler(*context, **inputs)

        return stand_in

    def _around(self, effect: Effect[..., Any], function: Callable[..., Any], *, takes_call: bool) -> Any:
        async def async_stand_in(call: EffectCall, **inputs: Any) -> Any:
            what = f"{effect.name} of {call.step.partition(':')[0]}"
            await self._points.reach_async("effect", "before", what, call.key)
            try:
                fake = self._fake_of(effect)
                taken, answer = fake.answer(call, inputs) if fake is not None else (False, None)
                if not taken:
                    answer = function(*((call,) if takes_call else ()), **inputs)
                if inspect.isawaitable(answer):
                    answer = await answer
                self._note(effect, call, inputs, answer)
            except Exception:
                await self._points.reach_async("effect", "after", what, call.key)
                raise
            await self._points.reach_async("effect", "after", what, call.key)
            return answer

        def sync_stand_in(call: EffectCall, **inputs: Any) -> Any:
            what = f"{effect.name} of {call.step.partition(':')[0]}"
            self._points.reach("effect", "before", what, call.key)
            try:
                fake = self._fake_of(effect)
                taken, answer = fake.answer(call, inputs) if fake is not None else (False, None)
                if not taken:
                    answer = function(*((call,) if takes_call else ()), **inputs)
                self._note(effect, call, inputs, answer)
            finally:
                self._points.reach("effect", "after", what, call.key)
            return answer

        return async_stand_in if effect.is_async else sync_stand_in

    def _companion(self, effect: Effect[..., Any], function: Callable[..., Any], *, takes_back: bool) -> Any:
        names = list(inspect.signature(function).parameters)[1:]
        what = f"{'undo' if takes_back else 'lookup'} of {effect.name}"

        async def async_stand_in(call: EffectCall, answer: Any = None, input: Any = None) -> Any:
            offered = {"answer": answer, "input": input}
            await self._points.reach_async("effect", "before", what, f"{call.key} {what}")
            found = await function(call, **{name: offered[name] for name in names})
            if takes_back:
                self._note(effect, call, input, found, takes_back=True)
            await self._points.reach_async("effect", "after", what, f"{call.key} {what}")
            return found

        def sync_stand_in(call: EffectCall, answer: Any = None, input: Any = None) -> Any:
            offered = {"answer": answer, "input": input}
            self._points.reach("effect", "before", what, f"{call.key} {what}")
            found = function(call, **{name: offered[name] for name in names})
            if takes_back:
                self._note(effect, call, input, found, takes_back=True)
            self._points.reach("effect", "after", what, f"{call.key} {what}")
            return found

        return async_stand_in if inspect.iscoroutinefunction(function) else sync_stand_in

    def _note(
        self, effect: Effect[..., Any], call: EffectCall, inputs: Any, answer: Any, *, takes_back: bool = False
    ) -> None:
        plain: Any = msgspec.json.decode(encode_result(inputs, "input"))
        self.sent.append(
            Sent(
                effect=effect.name,
                version=effect.version,
                key=call.key,
                run=call.run_id,
                step=call.step,
                input=cast("dict[str, Any]", plain) if isinstance(plain, dict) else {"input": plain},
                answer=answer,
                takes_back=takes_back,
            )
        )


def _name(definition: Definition) -> tuple[str, str, int]:
    kind = "action" if isinstance(definition, Action) else "effect"
    return kind, definition.name, definition.version


def _raised(raises: Raises, subject: str) -> BaseException:
    if isinstance(raises, BaseException):
        return raises
    try:
        return raises(f"the fake of {subject} was told to raise this")
    except TypeError:
        return raises()


def _called(function: Callable[..., Any], first: Any, inputs: dict[str, Any]) -> Any:
    """Calls a stand-in with those of the inputs that it takes, and the context or call first if it names one."""
    parameters = inspect.signature(function).parameters
    if any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
        taken = dict(inputs)
    else:
        taken = {name: value for name, value in inputs.items() if name in parameters}
    name = next(iter(parameters), None)
    with_first = name is not None and name not in inputs and first is not None and name in ("ctx", "context", "call")
    return function(*((first,) if with_first else ()), **taken)
