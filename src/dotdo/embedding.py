"""Opens an embedded platform: a store, its audit key, and an engine in this process or a line to another's."""

import asyncio
import contextlib
import os
import re
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from dotdo.catalogue import Catalogue
from dotdo.clock import Clock, StoreClock, SystemClock
from dotdo.engine.engine import Engine
from dotdo.engine.hosting import Host
from dotdo.engine.peering import Peers
from dotdo.engine.previewing import Previewer
from dotdo.engine.resources import open_resource
from dotdo.engine.secrets import Vault
from dotdo.engine.watching import SPIN_SECONDS, Watch, Watchdog
from dotdo.errors import MAX_SECONDS, DefinitionError, StoreUnusable
from dotdo.journal import anchor
from dotdo.records import RunFilter
from dotdo.sealing import Sealer
from dotdo.secret_keys import check_keyring, load_keyring
from dotdo.secret_provider import Given, SecretSources
from dotdo.store.engine_lock import EngineElsewhere, lock_holder
from dotdo.store.sql import SqlStore
from dotdo.store.sqlite import SQLiteDatabase
from dotdo.tracing import find_tracing

if TYPE_CHECKING:
    from dotdo.engine.following import Follower
    from dotdo.store.sharing import SharedStore

DEFAULT_STORE = ".dotdo/dotdo.db"
# How long an engine in another process may take to make the store, and how often to look, in seconds.
NEW_STORE_PATIENCE, NEW_STORE_PAUSE = 10.0, 0.02
SHORTEST_LEASE, LONGEST_LEASE = 0.5, 3600.0  # seconds
_NEEDS_MORE = "A store on PostgreSQL needs more packages ({}): pip install 'dotdo[postgres,sql]'."
_YES, _NO = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")


class Opening(msgspec.Struct, frozen=True):
    """What an embedded platform is opened with; as given to `AsyncDo`."""

    sql: Any
    resources: Sequence[Any]
    catalogue: Catalogue
    check_replay: bool | None
    clock: Clock | None
    grace: float
    secret_sources: Given | None = None
    tracer_provider: Any = None
    workers: bool = False


async def open_platform(
    store: str | None, opening: Opening, *, engine: bool, moved: Callable[[Engine], None]
) -> "Engine | Follower":
    """Opens the store and starts an engine on it, or follows the one that another process runs there.

    engine: False for a process that must not run one. moved: called when an engine that was followed is gone, and one
    runs here instead. Raises StoreUnusable, DefinitionError.
    """
    url = postgres_url(store)
    check_keyring(key_path(store))
    if url is not None:
        return await (_lead_shared if engine else _follow_shared)(url, opening)
    path = store_path(store)
    if path is None:
        if not engine:
            raise DefinitionError("A temporary store (sqlite://) has no other process that could run its engine.")
        return await _lead(None, opening)
    end = time.monotonic() + NEW_STORE_PATIENCE
    while True:
        if engine:
            try:
                return await _lead(path, opening)
            except EngineElsewhere:
                pass
        try:
            return await _follow(path, opening, engine=engine, moved=moved)
        except StoreUnusable:
            # The engine may just be making the store, or have ended.
            if time.monotonic() > end or not (engine or lock_holder(path)):
                raise
        await asyncio.sleep(NEW_STORE_PAUSE)


async def _lead(path: str | None, opening: Opening) -> Engine:
    databases = _databases(path, opening)
    opened = SqlStore(SQLiteDatabase(path))
    try:
        key = audit_key(path, make=not opened.list_runs(RunFilter(limit=1)))
        engine = _engine(opened, opening, opening.clock or SystemClock(), key, databases, _vault(path, opening))
    except BaseException:
        opened.close()
        raise
    engine.tracing = find_tracing(opening.tracer_provider)
    if path is not None:
        engine.host = Host(engine, opened.where)
    await engine.start()
    return engine


async def _lead_shared(url: str, opening: Opening) -> Engine:
    """A node more on a store that several share. What it is given no database for is in the same one."""
    missing = [name for name in ("psycopg", "sqlalchemy") if find_spec(name) is None]
    if missing:
        raise DefinitionError(_NEEDS_MORE.format(f"{' and '.join(missing)} not found"))
    databases = open_databases(url if opening.sql is None else opening.sql)
    opened = await asyncio.to_thread(open_shared, url)
    try:
        key, vault = _shared_audit_key(opened, url), _vault(key_path(url), opening)
        engine = _engine(opened, opening, opening.clock or store_clock(opened), key, databases, vault)
    except BaseException:
        opened.close()
        raise
    engine.host = Peers(engine)
    await engine.start()
    return engine


def _engine(store: SqlStore, opening: Opening, clock: Clock, key: bytes, databases: Any, vault: Vault) -> Engine:
    made = Engine(
        store,
        catalogue=opening.catalogue,
        clock=clock,
        anchor_key=key,
        databases=databases,
        resources=opening.resources,
        check_replay=is_on("DOTDO_DEV") if opening.check_replay is None else opening.check_replay,
        grace=opening.grace,
        spin_limit=spin_limit(),
        vault=vault,
    )
    made.workers.catalogue.expects = opening.workers
    return made


def vault_of(store: str | None) -> Vault:
    """Opens the sealed inputs of a store's runs, with the keys of this process's environment, when there are any."""
    return Vault(SecretSources(None), Sealer(lambda: load_keyring(key_path(store))))


async def _follow(path: str, opening: Opening, *, engine: bool, moved: Callable[[Engine], None]) -> "Follower":
    _databases(path, opening)  # what is wrong with them is said now, not when this process takes over

    async def take_over() -> Engine | None:
        try:
            return await _lead(path, opening)
        except EngineElsewhere:
            return None

    opened = SqlStore(SQLiteDatabase(path, beside=True))
    try:
        key = audit_key(path, make=False)
        check_audit_key(opened, key)
    except BaseException:
        opened.close()
        raise
    given: dict[str, Any] = {"take_over": take_over if engine else None, "moved": moved, "address": opened.where}
    return await _follower(opened, opening, SystemClock(), key, _vault(path, opening), path, given)


async def _follow_shared(url: str, opening: Opening) -> "Follower":
    opened = await asyncio.to_thread(open_shared, url, migrates=False)
    try:
        key = _shared_audit_key(opened, url)
    except BaseException:
        opened.close()
        raise
    given: dict[str, Any] = {"take_over": None, "moved": _never, "address": None}
    return await _follower(opened, opening, store_clock(opened), key, _vault(key_path(url), opening), url, given)


def _never(_: Engine) -> None:
    raise AssertionError("unreachable: nothing is taken over where every process may have a node")


async def _follower(
    store: SqlStore, opening: Opening, clock: Clock, key: bytes, vault: Vault, name: str, given: dict[str, Any]
) -> "Follower":
    from dotdo.engine.following import Follower  # here, because most processes are alone

    follower = Follower(
        store,
        catalogue=opening.catalogue,
        clock=opening.clock or clock,
        anchor_key=key,
        vault=vault,
        previewer=lambda: open_previewer(
            sql=opening.sql,
            resources=opening.resources,
            catalogue=opening.catalogue,
            secret_sources=opening.secret_sources,
        ),
        holder=lambda: engine_on(name),
        **given,
    )
    follower.tracing = find_tracing(opening.tracer_provider)
    await follower.start()
    return follower


def _vault(path: str | None, opening: Opening) -> Vault:
    return Vault(SecretSources(opening.secret_sources), Sealer(lambda: load_keyring(path)))


def _databases(path: str | None, opening: Opening) -> Any:
    if opening.sql is None:
        return None
    databases = open_databases(opening.sql)
    if path is not None:
        _check_apart(path, databases.files())
    return databases


def check_audit_key(store: SqlStore, key: bytes) -> None:
    """Processes that share a store share its key, or their journals would look forged to each other."""
    for run in store.find_runs("run_", 1):
        with store.read_chains(run, run) as (heads, _):
            head = next(heads, None)
        if head is not None and anchor(key, head.run, head.seq, head.digest) != head.anchor:
            raise StoreUnusable(
                f"The audit key of this process is not the one of the store {store.where}: give every process the same "
                "DOTDO_AUDIT_KEY, or none."
            )


def is_on(variable: str) -> bool:
    """Whether an environment variable says yes. Raises DefinitionError when it says neither yes nor no."""
    value = os.environ.get(variable, "").strip().lower()
    if value not in _YES and value not in _NO:
        raise DefinitionError(f"{variable}={value!r}: one of {', '.join(_YES)} or {', '.join(_NO[1:])} is needed.")
    return value in _YES


def spin_limit() -> float:
    """Seconds after which a service that keeps the engine's loop to itself is interrupted, from DOTDO_SPIN_LIMIT; 0 is
    never. Raises DefinitionError."""
    given = os.environ.get("DOTDO_SPIN_LIMIT") or str(SPIN_SECONDS)
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= MAX_SECONDS:
        raise DefinitionError(f"DOTDO_SPIN_LIMIT={given!r}: a number of seconds is needed, or 0 for no limit.")
    return seconds


def lease_seconds() -> float:
    """Seconds after which a node of which nothing is heard is taken for dead, from DOTDO_LEASE. Raises
    DefinitionError."""
    given = os.environ.get("DOTDO_LEASE") or "15"
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1.0
    if not SHORTEST_LEASE <= seconds <= LONGEST_LEASE:
        raise DefinitionError(
            f"DOTDO_LEASE={given!r}: seconds from {SHORTEST_LEASE:g} to {LONGEST_LEASE:g} are needed, for all nodes "
            "the same."
        )
    return seconds


@contextlib.asynccontextmanager
async def open_previewer(
    *, sql: Any, resources: Sequence[Any], catalogue: Catalogue, secret_sources: Given | None = None
) -> AsyncGenerator[Previewer]:
    """What makes previews without a store, also beside a live engine. Raises DefinitionError."""
    databases = None if sql is None else open_databases(sql, as_they_are=True)
    opened: dict[type, Any] = {}
    loop, watch = asyncio.get_running_loop(), Watch()
    async with contextlib.AsyncExitStack() as stack:
        if databases is not None:
            stack.push_async_callback(databases.close)
        stack.callback(Watchdog(loop, watch, limit=spin_limit()).close)
        for given in resources:
            await open_resource(given, opened, stack)
        previewer = Previewer(
            catalogue=catalogue,
            clock=SystemClock(),
            databases=databases,
            resources=opened,
            outlives=lambda _: None,
            watch=watch,
            sources=SecretSources(secret_sources),
        )
        stack.push_async_callback(previewer.close)
        yield previewer


def _check_apart(store: str, files: set[str]) -> None:
    if os.path.realpath(store) in files:
        raise StoreUnusable(
            f"The store and the application's database are the same file, {store}. Give the store another file: two "
            "SQLite libraries on one file break each other's locks."
        )


def open_databases(sql: Any, *, as_they_are: bool = False) -> Any:
    """The application's databases; see `Databases`. Raises DefinitionError when SQLAlchemy is not installed."""
    try:
        from dotdo.engine.applying import Databases
    except ModuleNotFoundError as error:
        raise DefinitionError(f"sql= needs SQLAlchemy ({error}): pip install 'dotdo[sql]'.") from None
    return Databases(sql, as_they_are=as_they_are)


def store_path(store: str | None) -> str | None:
    """The file that a store's URL or path names; None for a store that is gone when it is closed."""
    if store is None:
        store = os.environ.get("DOTDO_STORE") or DEFAULT_STORE
    if store in ("sqlite://", ":memory:", "sqlite:///:memory:"):
        return None
    if not store:
        raise DefinitionError("The store is an empty text: give a path, such as dotdo.db, or a URL.")
    scheme, separator, rest = store.partition("://")
    if not separator and not re.match(r"[a-z][a-z0-9+.-]+:", store):
        return store
    if scheme != "sqlite" or not rest.startswith("/"):
        kind = "not a file" if postgres_url(store) else "not of a kind that this version opens"
        raise DefinitionError(
            f"The store {_without_password(store)!r} is {kind}: use sqlite:///path/to/dotdo.db, a path, or sqlite:// "
            "for a temporary one, or postgresql://host/database."
        )
    return rest[1:]


def postgres_url(store: str | None) -> str | None:
    """The URL of a store that is a PostgreSQL database, as its driver takes it; None for one that is none."""
    if store is None:
        store = os.environ.get("DOTDO_STORE") or DEFAULT_STORE
    found = re.match(r"(postgres|postgresql)(\+psycopg)?://", store)
    return None if found is None else f"postgresql://{store[found.end() :]}"


def key_path(store: str | None) -> str | None:
    """Beside what the files with a store's keys are, where the environment does not have them."""
    url = postgres_url(store)
    if url is None:
        return store_path(store)
    name = urlsplit(url).path.strip("/") or "postgres"
    return os.path.join(os.path.dirname(DEFAULT_STORE), re.sub(r"[^\w.-]", "_", name))


def open_shared(url: str, *, migrates: bool = True) -> "SharedStore":
    """Opens a store that is a PostgreSQL database. Raises StoreUnusable, and DefinitionError without its driver."""
    try:
        from dotdo.store.postgres import PostgresDatabase
        from dotdo.store.sharing import SharedStore
    except ImportError as error:
        raise DefinitionError(_NEEDS_MORE.format(error)) from None
    return SharedStore(PostgresDatabase(url, migrates=migrates), lease_seconds())


def store_clock(store: "SharedStore") -> StoreClock:
    """This machine's clock, as the store's server corrects it."""
    clock, asked = StoreClock(), time.monotonic()
    clock.correct(store.server_time(), time.monotonic() - asked)
    return clock


def _shared_audit_key(store: "SharedStore", url: str) -> bytes:
    """The audit key, if it is the one that all who share the store use. Raises StoreUnusable."""
    path = key_path(url)
    assert path is not None, "only a temporary store has none"
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    key = audit_key(path, make=not store.list_runs(RunFilter(limit=1)))
    if store.agree("audit key", anchor(key, "", 0, "")) != anchor(key, "", 0, ""):
        raise StoreUnusable(
            f"The audit key of this process is not the one of the store {store.where}: give every process the same "
            f"DOTDO_AUDIT_KEY, or the same file {path}.audit-key."
        )
    return key


def _without_password(url: str) -> str:
    return re.sub(r"(://[^/:@]*):[^@]*@", r"\1:***@", url)


def open_reader(store: str | None) -> SqlStore:
    """Opens a store for reading, also beside a live engine; locks and changes nothing. Raises StoreUnusable."""
    url = postgres_url(store)
    if url is not None:
        return open_shared(url, migrates=False)
    path = store_path(store)
    if path is None:
        raise StoreUnusable("A temporary store (sqlite://) is gone when its client closes; there is nothing to read.")
    return SqlStore(SQLiteDatabase(path, readonly=True))


def open_writer(store: str | None) -> SqlStore:
    """Opens a store to change what is not of a run, such as API keys. Raises StoreUnusable."""
    url = postgres_url(store)
    if url is not None:
        return open_shared(url)
    path = store_path(store)
    if path is None:
        raise StoreUnusable("A temporary store (sqlite://) is gone when its client closes; there is nothing to change.")
    if not os.path.exists(path):
        SqlStore(SQLiteDatabase(path)).close()
    return SqlStore(SQLiteDatabase(path, beside=True))


def engine_on(store: str | None) -> str | None:
    """The process that runs an engine on a store, in words, as far as can be told from here; None if there is none."""
    url = postgres_url(store)
    if url is not None:
        with contextlib.closing(open_shared(url, migrates=False)) as opened:
            nodes = [node for node in opened.list_nodes() if node.lease > 0]
        words = [f"process {node.pid} on {node.host}" for node in nodes]
        return None if not words else words[0] if len(words) == 1 else f"{words[0]} and {len(words) - 1} more"
    path = store_path(store)
    return None if path is None else lock_holder(path)


def audit_key(path: str | None, *, make: bool = True) -> bytes:
    """The key under which heads of journals are anchored: from DOTDO_AUDIT_KEY (hex), else from a file beside the store
    that is made once. Keep it elsewhere too: whoever has it can forge, and without it the anchors cannot be checked.

    make: whether a missing file is made: never beside runs that another key has anchored. Raises StoreUnusable.
    """
    given = os.environ.get("DOTDO_AUDIT_KEY")
    if given:
        try:
            key = bytes.fromhex(given)
        except ValueError:
            raise StoreUnusable("DOTDO_AUDIT_KEY is not hexadecimal.") from None
        if len(key) < 16:
            raise StoreUnusable("DOTDO_AUDIT_KEY is too short: at least 32 hexadecimal digits are needed.")
        return key
    if path is None:
        return secrets.token_bytes(32)
    file = Path(path + ".audit-key")
    try:
        text = file.read_text(encoding="ascii").strip()
        key = bytes.fromhex(text) if len(text) >= 32 else b""
        if not key:
            raise ValueError(text)
        return key
    except FileNotFoundError:
        if not make:
            raise StoreUnusable(
                f"There is no audit key {file}. Restore it, or give it as DOTDO_AUDIT_KEY: the journals in the store "
                "are anchored under it. If it is lost for good, put 64 hexadecimal digits of your own into that file; "
                "`dotdo audit verify` will then find fault with every run so far."
            ) from None
        return _new_audit_key(file)
    except OSError as error:
        raise StoreUnusable(
            f"The audit key {file} cannot be read: {error.strerror}. It must be readable by this user, or given as "
            "DOTDO_AUDIT_KEY."
        ) from None
    except ValueError:
        raise StoreUnusable(
            f"What is in {file} is no audit key: 64 hexadecimal digits are. Restore it from your copy, or give it as "
            "DOTDO_AUDIT_KEY."
        ) from None


def _new_audit_key(file: Path) -> bytes:
    key = secrets.token_bytes(32)
    # Under another name first: a crash in the middle must not leave a file that is no key.
    draft = file.with_name(file.name + ".new")
    try:
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="ascii") as out:
            out.write(key.hex() + "\n")
            out.flush()
            os.fsync(out.fileno())
        draft.replace(file)
    except OSError as error:
        raise StoreUnusable(f"The audit key {file} cannot be made: {error}.") from None
    return key
