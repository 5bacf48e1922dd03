"""Secrets in runs: handlers get them, the store never sees them, and what would show them is hidden or refused."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_type_hints

import apsw
import pytest

from dotdo import (
    ActionFailed,
    AsyncContext,
    Context,
    DefinitionError,
    Do,
    Effect,
    EffectCall,
    Fail,
    Failure,
    FileSecrets,
    KeyConflict,
    Retry,
    RetryLater,
    RunBlocked,
    Secret,
    SecretExposed,
    action,
    service,
    sleep,
    wait_for_event,
)
from dotdo.engine.accepting import new_run
from dotdo.engine.secrets import RunSecrets, temporary_vault
from dotdo.journal import KINDS, Blocked
from dotdo.records import ErrorRecord, Options, Question, WaitingFor
from dotdo.secret_keys import key_file, rotate
from dotdo.secret_provider import SecretSources
from tests.workshop import PATIENCE, PLAIN, Receiver, Workshop, data, kinds

pytestmark = pytest.mark.usefixtures("both_doors")

CANARY = "correct-horse-battery"
OTHER = "staple-" * 3


def push(call: EffectCall, token: Secret[str], text: str) -> str:
    """An effect with a secret: the receiver hears it in the clear."""
    return call.resource(Receiver).take("push", f"{text} {token.reveal()}", call).replace(token.reveal(), "")


def take_back(call: EffectCall, answer: str, input: dict[str, Any]) -> None:
    """Its undo."""
    call.resource(Receiver).take("take back", f"{input['text']} {input['token'].reveal()} {input!r}", call)


def with_key(call: EffectCall, text: str) -> str:
    """An effect that signs in with a key of ours."""
    return call.resource(Receiver).take("with key", f"{text} {call.secret('API_KEY').reveal()}", call)[:4]


def echo(call: EffectCall, token: Secret[str]) -> str:
    """An effect whose receiver repeats what it was sent."""
    return call.resource(Receiver).take("echo", token.reveal(), call)


@pytest.fixture
def pushing(workshop: Workshop) -> Effect[..., Any]:
    return Effect("push", push, dedup="key", undo=take_back, retry=PLAIN, catalogue=workshop.catalogue)


def seen_in_store(workshop: Workshop, text: str = CANARY) -> list[str]:
    """The files of the store that contain a text."""
    files = [path for path in workshop.store.parent.iterdir() if path.is_file()]  # a socket lies there, too
    assert files, "the store is somewhere else"
    return [file.name for file in files if text.encode() in file.read_bytes()]


# -- inputs ----------------------------------------------------------------------------------------------------------


def test_a_handler_gets_its_secret_and_the_store_a_token(workshop: Workshop):
    seen: list[Secret[str]] = []

    @action("sign-in", catalogue=workshop.catalogue)
    def sign_in(ctx: Context, user: str, password: Secret[str]) -> str:
        seen.append(password)
        return user

    client = workshop.open()
    assert client.run(sign_in, "ada", Secret(CANARY)) == "ada"
    assert client.action("sign-in").invoke(user="bob", password=CANARY) == "bob"

    assert [one.reveal() for one in seen] == [CANARY, CANARY]
    assert seen_in_store(workshop) == []
    stored = [entry.data for run in client.runs.list() for entry in client.runs.journal(run.id)]
    assert any("dotdo-secret:1:" in text for text in stored)


def test_the_key_file_is_made_with_the_first_secret_and_is_its_owners_alone(workshop: Workshop):
    @action("sign-in", catalogue=workshop.catalogue)
    def sign_in(password: Secret[str]) -> None: ...

    @action("plain", catalogue=workshop.catalogue)
    def plain(text: str) -> None: ...

    client, file = workshop.open(), key_file(str(workshop.store))
    client.run(plain, text="x")
    assert not file.exists()
    client.run(sign_in, password=Secret(CANARY))
    assert file.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in file.parent.glob("*secret*")] == [file.name]


def test_keys_from_the_environment_make_no_file(workshop: Workshop, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DOTDO_SECRET_KEYS", "mine:" + "ab" * 32)

    @action("sign-in", catalogue=workshop.catalogue)
    def sign_in(password: Secret[str]) -> None: ...

    client = workshop.open()
    handle = client.start(sign_in, password=Secret(CANARY))
    handle.result(timeout=PATIENCE)
    assert not key_file(str(workshop.store)).exists()
    assert "dotdo-secret:1:mine:" in handle.journal()[0].data


def test_the_same_key_is_for_the_same_secret(workshop: Workshop):
    @action("sign-in", catalogue=workshop.catalogue)
    def sign_in(password: Secret[str]) -> str:
        return "done"

    client = workshop.open()
    first = client.start(sign_in.with_(key="k"), password=Secret(CANARY))
    first.result(timeout=PATIENCE)
    assert client.start(sign_in.with_(key="k"), password=Secret(CANARY)).id == first.id
    rotate(str(workshop.store))
    client.close()
    again = workshop.open()
    assert again.start(sign_in.with_(key="k"), password=Secret(CANARY)).id == first.id
    with pytest.raises(KeyConflict) as caught:
        again.start(sign_in.with_(key="k"), password=Secret(OTHER))
    assert OTHER not in str(caught.value)


def test_a_run_under_way_compares_keys_alike(workshop: Workshop):
    @service("wait", catalogue=workshop.catalogue)
    async def wait(password: Secret[str]) -> None:
        await wait_for_event("go")

    client = workshop.open()
    handle = client.start(wait.with_(key="k"), password=Secret(CANARY))
    assert client.start(wait.with_(key="k"), password=Secret(CANARY)).id == handle.id
    with pytest.raises(KeyConflict):
        client.start(wait.with_(key="k"), password=Secret(OTHER))
    handle.send_event("go")
    handle.result(timeout=PATIENCE)


@pytest.mark.parametrize("option", ["key", "trail"])
def test_what_is_stored_beside_the_input_must_not_contain_its_secret(workshop: Workshop, option: str):
    @action("sign-in", catalogue=workshop.catalogue)
    def sign_in(password: Secret[str]) -> None: ...

    with pytest.raises(SecretExposed, match="key, trail, actor or labels") as caught:
        workshop.open().run(sign_in.with_(**{option: f"for {CANARY}"}), password=Secret(CANARY))  # type: ignore[arg-type]
    assert CANARY not in str(caught.value)


# -- services --------------------------------------------------------------------------------------------------------


def test_a_service_hands_its_secret_on_and_replays_to_the_same_steps_after_a_rotation(workshop: Workshop):
    heard: list[str] = []

    @action("sign-in", catalogue=workshop.catalogue)
    def sign_in(password: Secret[str], day: int) -> int:
        heard.append(password.reveal())
        return day

    @service("visit", catalogue=workshop.catalogue)
    async def visit(password: Secret[str]) -> int:
        first = await sign_in(password=password, day=1)
        await sleep(3600)
        return first + await sign_in(password=password, day=2)

    client = workshop.open()
    handle = client.start(visit, password=Secret(CANARY))
    workshop.until_waiting(client, handle)
    client.close()
    rotate(str(workshop.store))
    again = workshop.open()
    workshop.clock.advance("1 h")
    assert again.handle(handle.id).result(timeout=PATIENCE) == 3

    assert heard == [CANARY, CANARY]
    tokens = {
        entry.data.split("dotdo-secret:1:")[1].split(":")[0]
        for entry in again.runs.journal(handle.id)
        if "secret:1" in entry.data
    }
    assert len(tokens) == 2, "both keys were used"
    assert seen_in_store(workshop) == []


def test_a_child_gets_the_secret_of_its_parent(workshop: Workshop):
    @action("sign-in", catalogue=workshop.catalogue)
    def sign_in(password: Secret[str]) -> bool:
        return password.reveal() == CANARY

    @service("child", catalogue=workshop.catalogue)
    async def child(password: Secret[str]) -> bool:
        return await sign_in(password=password)

    @service("parent", catalogue=workshop.catalogue)
    async def parent(password: Secret[str]) -> bool:
        return await child(password=password)

    assert workshop.open().run(parent, password=Secret(CANARY)) is True
    assert seen_in_store(workshop) == []


def test_a_service_may_not_hand_it_on_in_the_clear(workshop: Workshop):
    @action("plain", catalogue=workshop.catalogue)
    def plain(text: str) -> None: ...

    @service("as-secret", catalogue=workshop.catalogue)
    async def as_secret(password: Secret[str]) -> None:
        await plain(text=password)  # type: ignore[arg-type]

    @service("revealed", catalogue=workshop.catalogue)
    async def revealed(password: Secret[str]) -> None:
        await plain(text=f"it is {password.reveal()}")

    @service("as-key", catalogue=workshop.catalogue)
    async def as_key(password: Secret[str]) -> None:
        await plain.with_(key=password.reveal())(text="x")

    @service("as-result", catalogue=workshop.catalogue)
    async def as_result(password: Secret[str]) -> str:
        return password.reveal()

    @service("as-bug", catalogue=workshop.catalogue)
    async def as_bug(password: Secret[str]) -> str:
        raise ValueError(f"odd: {password.reveal()}")

    client = workshop.open()
    for one, words in [
        (as_secret, "holds a Secret"),
        (revealed, "contains the text of a secret"),
        (as_key, "The key of a step plain contains"),
        (as_result, "The result of service as-result@1 contains"),
        (as_bug, r"ValueError: odd: \*\*\*"),
    ]:
        with pytest.raises(RunBlocked, match=words) as caught:
            client.run(one, password=Secret(CANARY))
        assert CANARY not in str(caught.value)
    assert seen_in_store(workshop) == []


def test_events_carry_no_secrets(workshop: Workshop, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("dotdo.engine.parking.LINGER", PATIENCE)  # its secrets are known while the run is in memory

    @service("wait", catalogue=workshop.catalogue)
    async def wait(password: Secret[str]) -> Any:
        return await wait_for_event("go")

    client = workshop.open()
    handle = client.start(wait, password=Secret(CANARY))
    with pytest.raises(SecretExposed, match="The value of the event 'go' holds a Secret"):
        handle.send_event("go", {"password": Secret(CANARY)})
    with pytest.raises(SecretExposed, match="contains the text of a secret"):
        handle.send_event("go", {"password": CANARY})
    handle.send_event("go", "fine")
    assert handle.result(timeout=PATIENCE) == "fine"


# -- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        ValueError(f"wrong password {CANARY}"),
        RetryLater(f"not now, {CANARY}", after=1),
        Fail(f"no, {CANARY}"),
        KeyError(CANARY),
        ExceptionGroup(CANARY, [OSError(CANARY)]),
        type(f"Error-{CANARY}", (Exception,), {})("odd"),
        ValueError("x" * 3_990 + CANARY),
    ],
    ids=lambda error: type(error).__name__[:10],
)
def test_errors_are_journaled_and_told_without_it(workshop: Workshop, error: Exception):
    told: list[Failure] = []

    @action("tell", catalogue=workshop.catalogue)
    def tell(failure: Failure) -> None:
        told.append(failure)

    @action("sign-in", retry=Retry(attempts=2, delay=1, jitter=False), on_failure=[tell], catalogue=workshop.catalogue)
    def sign_in(password: Secret[str]) -> None:
        raise error

    client = workshop.open()
    handle = client.start(sign_in, password=Secret(CANARY))
    if not isinstance(error, Fail):
        workshop.clock.advance_to_next()
    with pytest.raises(ActionFailed) as caught:
        handle.result(timeout=PATIENCE)

    texts = [str(caught.value), repr(handle.get()), repr(told), *(entry.data for entry in handle.journal())]
    assert not any(CANARY in text or CANARY[:8] in text for text in texts)
    assert "***" in told[0].error.type + told[0].error.message
    assert seen_in_store(workshop) == []


def test_logs_are_written_without_it(workshop: Workshop, caplog: pytest.LogCaptureFixture):
    @action("sign-in", catalogue=workshop.catalogue)
    async def sign_in(ctx: AsyncContext, password: Secret[str]) -> None:
        ctx.log.warning("signing in with %s", password.reveal())

    workshop.open().run(sign_in, password=Secret(CANARY))
    assert "signing in with ***" in caplog.text
    assert CANARY not in caplog.text


def test_a_result_that_shows_it_is_refused_at_once(workshop: Workshop):
    @action("leak", catalogue=workshop.catalogue)
    def leak(password: Secret[str]) -> Any:
        return {"url": f"https://ada:{password.reveal()}@example.com"}

    @action("leak-object", catalogue=workshop.catalogue)
    def leak_object(password: Secret[str]) -> Any:
        return [password]

    client = workshop.open()
    for one, words in [(leak, "contains the text of a secret"), (leak_object, "holds a Secret")]:
        handle = client.start(one, password=Secret(CANARY))
        with pytest.raises(ActionFailed, match=words):
            handle.result(timeout=PATIENCE)
        assert kinds(handle, "leak") == ["attempt_failed", "failed"]
    assert seen_in_store(workshop) == []


# -- undo and fallback -----------------------------------------------------------------------------------------------


def test_an_undo_gets_it_back(workshop: Workshop):
    undone: list[str] = []

    @action("sign-in", catalogue=workshop.catalogue)
    def sign_in(password: Secret[str]) -> str:
        return "signed in"

    @sign_in.undo
    def sign_out(done: str, input: dict[str, Any]) -> None:
        undone.append(f"{done} {input} {input['password'].reveal()}")

    client = workshop.open()
    handle = client.start(sign_in, password=Secret(CANARY))
    handle.result(timeout=PATIENCE)
    client.runs.undo(handle.id)
    workshop.until(lambda: client.runs.get(handle.id).undo == "all")
    assert undone == [f"signed in {{'password': ***}} {CANARY}"]
    assert seen_in_store(workshop) == []


def test_a_fallback_gets_the_same_secret(workshop: Workshop):
    @action("other-door", catalogue=workshop.catalogue)
    def other_door(password: Secret[str]) -> bool:
        return password.reveal() == CANARY

    @action("door", retry=1, fallback=other_door, catalogue=workshop.catalogue)
    def door(password: Secret[str]) -> bool:
        raise ValueError(password.reveal())

    assert workshop.open().run(door, password=Secret(CANARY)) is True
    assert seen_in_store(workshop) == []


# -- effects ---------------------------------------------------------------------------------------------------------


def test_effects_are_sealed_until_they_are_sent(workshop: Workshop, pushing: Effect[..., Any]):
    @action("tell", retry=PLAIN, catalogue=workshop.catalogue)
    async def tell(ctx: AsyncContext, password: Secret[str]) -> str:
        ctx.stage(pushing, token=password, text="staged")
        answer = await ctx.request(pushing, token=Secret(OTHER), text="requested")
        if ctx.attempt == 2:
            raise ConnectionError(f"lost after {OTHER}")
        return answer

    workshop.receiver.fail("push", RetryLater(f"busy {OTHER}", after=1))
    client = workshop.open()
    handle = client.start(tell, password=Secret(CANARY))
    workshop.clock.advance_to_next()
    workshop.clock.advance_to_next()
    handle.result(timeout=PATIENCE)

    assert workshop.receiver.texts("push") == [f"requested {OTHER}", f"requested {OTHER}", f"staged {CANARY}"]
    assert len(data(handle, "answered")) == 1, "the third attempt found the answer of the second"
    assert seen_in_store(workshop) == seen_in_store(workshop, OTHER) == []
    assert "lost after ***" in handle.journal()[-1].data + "".join(entry.data for entry in handle.journal())


def test_the_undo_of_a_request_gets_its_secrets(workshop: Workshop, pushing: Effect[..., Any]):
    @action("tell", retry=1, catalogue=workshop.catalogue)
    async def tell(ctx: AsyncContext) -> None:
        await ctx.request(pushing, token=Secret(CANARY), text="requested")
        raise Fail("no")

    handle = workshop.open().start(tell)
    with pytest.raises(ActionFailed):
        handle.result(timeout=PATIENCE)
    assert workshop.receiver.texts("take back") == [f"requested {CANARY} {{'text': 'requested', 'token': ***}}"]
    assert seen_in_store(workshop) == []


def test_a_plain_parameter_of_an_effect_refuses_the_text(workshop: Workshop):
    @action("tell", catalogue=workshop.catalogue)
    def tell(ctx: Context, password: Secret[str], before: bool) -> None:
        if before:
            ctx.stage(workshop.send, text=f"key {OTHER}")  # not known as a secret yet
            ctx.secret("LATER")
        else:
            ctx.stage(workshop.send, text=f"your password is {password.reveal()}")

    client = workshop.open(secrets={"LATER": OTHER})
    for before in (False, True):
        with pytest.raises(ActionFailed, match=r"send.* contains the text of a secret"):
            client.run(tell, password=Secret(CANARY), before=before)
    assert workshop.receiver.heard == []
    assert seen_in_store(workshop) == seen_in_store(workshop, OTHER) == []


def test_an_answer_that_shows_it_is_refused(workshop: Workshop):
    echoing = Effect("echo", echo, dedup="key", retry=PLAIN, catalogue=workshop.catalogue)

    @action("staged", catalogue=workshop.catalogue)
    def staged(ctx: Context, password: Secret[str]) -> None:
        ctx.stage(echoing, token=password)

    @action("requested", catalogue=workshop.catalogue)
    def requested(ctx: Context, password: Secret[str]) -> None:
        ctx.request(echoing, token=password)

    client = workshop.open()
    client.run(staged, password=Secret(CANARY))  # it has happened, and nobody waits for its answer
    with pytest.raises(RunBlocked, match="The answer of effect echo@1 contains the text of a secret"):
        client.run(requested, password=Secret(CANARY))
    assert len(workshop.receiver.heard) == 2
    assert seen_in_store(workshop) == []


def test_every_entry_that_holds_an_error_is_cleaned_of_it():
    """A new kind of entry that carries errors elsewhere must be cleaned there, too."""
    carriers = {
        (kind.__name__, name)
        for kind in KINDS.values()
        for name, hint in get_type_hints(kind).items()
        if any(record.__name__ in str(hint) for record in (ErrorRecord, Question, WaitingFor))
    }
    assert {name for _, name in carriers} == {"error", "questions"}, "RunSecrets.clean knows no other fields"
    assert {kind for kind, name in carriers if name == "questions"} == {"Blocked"}

    secrets = RunSecrets(temporary_vault(SecretSources({})), "run_1")
    secrets.hide(CANARY)
    error = ErrorRecord(f"Odd{CANARY}", f"message {CANARY}", f"traceback {CANARY}")
    question = Question(key="k", about="request", step="s", effect="e", text=CANARY, at=0, input=[CANARY], error=error)
    cleaned = secrets.clean(Blocked("bug", error, [question]))
    assert CANARY not in repr(cleaned)
    assert repr(cleaned).count("***") == 8


def test_threads_that_meet_the_first_secret_at_once_share_what_is_hidden(workshop: Workshop):
    names = [f"KEY_{number}" for number in range(8)]
    texts = {name: f"secret number {name}" for name in names}
    together = threading.Barrier(len(names))

    @action("meet", retry=1, catalogue=workshop.catalogue)
    def meet(ctx: Context) -> None:
        def look_up(name: str) -> None:
            together.wait(PATIENCE)
            ctx.secret(name)

        with ThreadPoolExecutor(len(names)) as pool:
            list(pool.map(look_up, names))
        raise ValueError(" ".join(texts.values()))

    with pytest.raises(ActionFailed) as caught:
        workshop.open(secrets=texts).run(meet)
    assert caught.value.error_message == " ".join(["***"] * len(names))


# -- secrets by name -------------------------------------------------------------------------------------------------


def test_handlers_and_effects_look_secrets_up_by_name(workshop: Workshop, tmp_path: Path):
    signed = Effect("with-key", with_key, dedup="key", retry=PLAIN, catalogue=workshop.catalogue)
    folder = tmp_path / "secrets"
    folder.mkdir()
    (folder / "API_KEY").write_text(f"{CANARY}\n")

    @action("call", retry=PLAIN, catalogue=workshop.catalogue)
    async def call(ctx: AsyncContext) -> None:
        key = ctx.secret("API_KEY")
        if ctx.attempt == 1:
            raise ConnectionError(f"{key} {key.reveal()}")
        ctx.stage(signed, text="hello")

    handle = workshop.open(secrets=FileSecrets(folder)).start(call)
    workshop.clock.advance_to_next()
    handle.result(timeout=PATIENCE)
    assert workshop.receiver.texts("with key") == [f"hello {CANARY}"]
    assert data(handle, "attempt_failed")[0].error.message == "*** ***"
    assert seen_in_store(workshop) == []


def test_an_unknown_name_fails_at_once_and_names_no_other(workshop: Workshop):
    @action("call", retry=PLAIN, catalogue=workshop.catalogue)
    def call(ctx: Context) -> None:
        ctx.secret("API_KEX")

    handle = workshop.open(secrets={"API_KEY": CANARY}).start(call)
    with pytest.raises(ActionFailed, match="There is no secret 'API_KEX'") as caught:
        handle.result(timeout=PATIENCE)
    assert caught.value.error_type == "UnknownSecret"
    assert "API_KEY" not in str(caught.value)
    assert kinds(handle, "call") == ["attempt_failed", "failed"]


def test_what_is_no_provider_is_refused_when_the_client_opens():
    with pytest.raises(DefinitionError, match="secrets= was given int"), Do("sqlite://", secrets=5):  # type: ignore[arg-type]
        pass


def test_calls_of_unit_tests_have_secrets_too(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("API_KEY", "from the environment")
    assert EffectCall("k", "r", "s", 1).secret("API_KEY").reveal() == "from the environment"
    assert EffectCall("k", "r", "s", 1, secrets={"API_KEY": CANARY}).secret("API_KEY").reveal() == CANARY


# -- previews --------------------------------------------------------------------------------------------------------


def test_a_preview_works_on_secrets_and_shows_none(workshop: Workshop, pushing: Effect[..., Any]):
    seen: list[str] = []

    @action("sign-in", retry=1, catalogue=workshop.catalogue)
    def sign_in(ctx: Context, password: Secret[str], fail: bool = False) -> str:
        seen.append(password.reveal() + ctx.secret("API_KEY").reveal())
        ctx.stage(pushing, token=password, text="staged")
        if fail:
            raise ValueError(f"{password.reveal()} {ctx.secret('API_KEY').reveal()}")
        return "in"

    @sign_in.undo
    def sign_out(done: str, input: dict[str, Any]) -> None:
        seen.append(input["password"].reveal())

    @service("visit", catalogue=workshop.catalogue)
    async def visit(password: Secret[str], leak: bool = False) -> str:
        await sign_in(password=password)
        if leak:
            return password.reveal()
        raise Fail(f"no {password.reveal()}")

    client = workshop.open(secrets={"API_KEY": OTHER})
    for found in (
        client.preview(sign_in, password=Secret(CANARY)),
        client.preview(sign_in, password=Secret(CANARY), fail=True),
        client.preview(visit, password=Secret(CANARY)),
        client.preview(visit, password=Secret(CANARY), leak=True),
    ):
        shown = f"{found}\n{found!r}"
        assert "***" in shown
        assert not any(text in shown for text in (CANARY, OTHER, "dotdo-secret:"))
    assert seen == [CANARY + OTHER] * 3 + [CANARY, CANARY + OTHER]
    assert not key_file(str(workshop.store)).exists()
    assert workshop.receiver.heard == []


# -- keys ------------------------------------------------------------------------------------------------------------


def test_an_input_that_was_not_sealed_is_never_accepted(workshop: Workshop):
    @action("sign-in", catalogue=workshop.catalogue)
    def sign_in(password: Secret[str]) -> None: ...

    client = workshop.open()
    engine = client._portal.call(client._inner.platform)
    with pytest.raises(SecretExposed, match="to be stored with a secret in the clear"):
        new_run(engine, "run_1", sign_in, "action", sign_in.schema.accept({"password": CANARY}), Options())  # type: ignore[arg-type]


def test_a_lost_key_blocks_the_run_until_it_is_back(workshop: Workshop):
    seen: list[str] = []

    @action("sign-in", catalogue=workshop.catalogue)
    def sign_in(password: Secret[str]) -> None:
        seen.append(password.reveal())

    client = workshop.open()
    handle = client.start(sign_in.with_(delay=3600), password=Secret(CANARY))
    client.close()
    file = key_file(str(workshop.store))
    kept = file.read_bytes()
    file.unlink()

    again = workshop.open()
    workshop.clock.advance("1 h")
    with pytest.raises(RunBlocked, match=r"sealed under the key .* Add it to DOTDO_SECRET_KEYS .* retry the run"):
        again.handle(handle.id).result(timeout=PATIENCE)
    assert seen == []

    file.write_bytes(kept)
    again.runs.retry(handle.id)
    workshop.until(lambda: again.runs.get(handle.id).status == "completed")
    assert seen == [CANARY]


def test_a_token_that_was_moved_into_another_run_does_not_open(workshop: Workshop):
    @action("sign-in", catalogue=workshop.catalogue)
    def sign_in(password: Secret[str]) -> None:
        raise AssertionError("it must not get that far")

    client = workshop.open()
    ours = client.start(sign_in.with_(delay=3600), password=Secret(CANARY))
    other = client.start(sign_in.with_(delay=3600), password=Secret(OTHER))
    client.close()
    connection = apsw.Connection(str(workshop.store))
    ((stolen,),) = connection.execute("select data from journal where run = ? and seq = 1", (other.id,)).fetchall()
    connection.execute("update journal set data = ? where run = ? and seq = 1", (stolen, ours.id))
    connection.close()

    again = workshop.open()
    workshop.clock.advance("1 h")
    with pytest.raises(RunBlocked, match="moved here from another run"):
        again.handle(ours.id).result(timeout=PATIENCE)
    workshop.close_clients()
    workshop.open_clients.clear()  # the store was tampered with, which the look at it would find, too
