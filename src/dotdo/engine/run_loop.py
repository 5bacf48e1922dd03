"""The event loop of one run: plain asyncio, and the same again on every replay.

A RunLoop holds a ready queue and timers. The engine drains it until nothing is ready, then hands over the next journal
entry. The same entries at the same times make the same code ask for the same steps, in any process: tasks and futures
hash by a counter of the run instead of by address, names and timer keys count per run, and the clock is the journal's.
It must not do I/O (asking for it raises ServiceDidIO), read a clock, or let the garbage collector run a service's code:
nothing is collected while a service runs, and a run leaves memory by `evict` only. Out of its reach, as asyncio has
no hook for it: sets of bare `asyncio.Future()`s, or of the service's own objects, keep the order of addresses.
"""

import asyncio
import gc
import logging
import math
import sys
import weakref
from asyncio import _get_running_loop, _set_running_loop  # pyright: ignore[reportPrivateUsage]  # loops nest here
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine, Generator, Iterable
from contextvars import Context, copy_context
from types import CodeType, FrameType, MappingProxyType
from typing import Any, Never, cast

from dotdo.engine.run_tasks import EVICTED, RunFuture, RunHandle, RunTask, RunTimerHandle, ends, is_unread
from dotdo.engine.run_timers import RunTimer, RunTimers
from dotdo.engine.watching import Interrupted, Watch
from dotdo.errors import RunEvicted, ServiceDidIO, ServiceSpins

_log = logging.getLogger("dotdo.service")

# 2^60 over the golden ratio, made odd: the low bits of consecutive hashes differ, so small tables have no collisions.
_HASH_STEP = 0x9E3779B97F4A7C1
_HASH_MASK = (1 << 60) - 1
_LONGEST_DELAY_MS = 1000 * 366 * 24 * 3600 * 1000  # `sleep(math.inf)` means for ever; the store's integers want an end
_SWEEP_FROM = 32
_Coroutine = Coroutine[Any, Any, Any] | Generator[Any, None, Any]  # as AbstractEventLoop declares it
_EAGER_FACTORY: object = getattr(asyncio, "eager_task_factory", None)  # since Python 3.12

# To tell who called create_task: the code of ensure_future, and of as_completed with the name of its argument.
_tasks: Any = asyncio.tasks  # what follows is private, and differs between versions
_ENSURE_FUTURE: CodeType = getattr(_tasks, "_ensure_future", _tasks.ensure_future).__code__
_AS_COMPLETED: dict[CodeType, str] = (
    {_tasks._AsCompletedIterator.__init__.__code__: "aws"}  # since Python 3.13
    if hasattr(_tasks, "_AsCompletedIterator")
    else {_tasks.as_completed.__code__: "fs"}
)


def _refuses(call: str) -> Callable[..., Never]:
    """A method, for any arguments, that raises the error that teaches."""

    def refuse(self: "RunLoop", *_args: object, **_options: object) -> Never:
        if self.is_closed():
            raise RunEvicted(EVICTED)
        raise ServiceDidIO(
            f"{call} was called in a service. A service is replayed from its journal, so it cannot do I/O, or use "
            "threads, processes, signals or other loops. Put this into an action, and call the action from the service."
        )

    return refuse


# Since Python 3.14 a thread has one current task, not one for each loop: a task in which a run is replayed steps aside.
_swap_current_task: Any = _tasks._swap_current_task if sys.version_info >= (3, 14) else None
_Outside = tuple[Any, Any, Any, bool]  # the loop, task and hooks of the thread, and whether it collects garbage

# What most runs never have, so these are shared. They are replaced; who would add to them gets an error.
_NO_GENERATORS = cast("list[weakref.ref[AsyncGenerator[Any, Any]]]", ())
_NONE_COLLECTED = cast("list[AsyncGenerator[Any, Any]]", ())
_NONE_EARLY = cast("dict[object, RunTask]", MappingProxyType({}))


class RunLoop(asyncio.AbstractEventLoop):
    """The event loop of one run.

    salt: an integer derived from the run's id; it keeps the hashes of different runs apart, because asyncio keeps the
        tasks of all runs in one global set.
    now: the store's clock, in ms, at the run's start; `time()` counts from there.
    budget: how many callbacks one drain may run. watch: told while code of the run is on the thread, so that the
        watchdog can interrupt it.
    """

    def __init__(self, *, salt: int, now: int, budget: int = 1_000_000, watch: Watch | None = None) -> None:
        self._salt = hash((salt, _HASH_STEP))  # of integers: mixes well, and takes no seed
        self._origin = now
        self._budget, self._watch = budget, watch or Watch()
        self.now = now
        self.finalising = False  # a left async generator cleans up: it may neither wait nor start anything
        self._closed = False
        self._eager = False
        self._ready: list[RunHandle | RunTimerHandle] = []  # an empty deque takes as much memory as ten lists
        self._task_count = self._future_count = 0
        # Strong references: a task that only a future of its own knows would else be collected, at any time.
        self._tasks: list[RunTask] = []
        self._sweep_tasks_at = self._sweep_generators_at = _SWEEP_FROM
        self._timers: RunTimers | None = None
        self._generators: list[weakref.ref[AsyncGenerator[Any, Any]]] = _NO_GENERATORS
        self._collected: list[AsyncGenerator[Any, Any]] = _NONE_COLLECTED
        self._asked_early: dict[object, RunTask] = _NONE_EARLY

    # -- the engine's side ----------------------------------------------------------------------------------------

    def advance(self, now: int) -> None:
        """Set the clock to that of the journal entry about to be handed over (ms); it never goes back."""
        if self._closed:
            raise RunEvicted(EVICTED)
        if now > self.now:
            self.now = now

    def drain(self, more: Callable[[], bool] | None = None) -> None:
        """Run until nothing is ready: the service then waits for steps, timers or events only.

        more: asked whenever nothing is ready; it hands one thing over, if there is one, and says whether there was.
        Call it from a plain callback of the outer loop, or without one; never from inside a task.
        Raises what `more` raises; ServiceSpins once more than `budget` callbacks have run, or the watchdog has
        interrupted it: the run can then only be evicted.
        """
        if self._closed:
            raise RunEvicted(EVICTED)
        if not self._ready and (more is None or not more()):
            return
        outside = self._enter()
        try:
            self._run_ready()
            while more is not None and more():
                self._watch.begin()  # each has the time that one may take
                self._run_ready()
        except Interrupted:
            pass  # told below, wherever it came out
        finally:
            try:
                self._watch.end()
            except Interrupted:  # too late: the code had just become idle
                self._watch.end()
            self._leave(outside)
        if self._watch.place:
            raise ServiceSpins(
                f"The service ran on and on without waiting for a step, timer or event, and was interrupted at "
                f"{self._watch.place}. Put what computes or blocks into an action."
            )

    def _run_ready(self) -> None:
        left = self._budget
        while self._ready:
            ready, self._ready = self._ready, []
            for handle in cast("list[Any]", ready):  # what every loop needs of it is private
                callback = handle._callback
                if callback is None:
                    continue  # cancelled
                if not left:
                    raise ServiceSpins(
                        f"The service ran {self._budget} callbacks without waiting for a step, timer or event. "
                        "Look for a loop around `await asyncio.sleep(0)`, or split the work into steps."
                    )
                left -= 1
                try:
                    handle._context.run(callback, *handle._args)
                except BaseException as error:
                    if isinstance(getattr(callback, "__self__", None), asyncio.Task):
                        # A task lets SystemExit and KeyboardInterrupt through, having failed with them: that is enough.
                        if isinstance(error, Exception):
                            raise  # asyncio refused to go on with the task, which would wait for ever now
                    else:
                        self.call_exception_handler({"message": "Exception in a callback", "exception": error})

    def next_timer(self) -> RunTimer | None:
        """The live timer that is due first; of those due together, the one made first."""
        if self._closed:
            raise RunEvicted(EVICTED)
        return None if self._timers is None else self._timers.next()

    def timer(self, key: str) -> RunTimer | None:
        """The live timer of that key, or None (never made, fired, cancelled)."""
        if self._closed:
            raise RunEvicted(EVICTED)
        return None if self._timers is None else self._timers.get(key)

    def made(self, key: str) -> bool:
        """Whether a timer of that key was made, be it alive, fired or cancelled."""
        return self._timers is not None and self._timers.made(key)

    def fire(self, timer: RunTimer) -> None:
        """Make the timer's callback ready, to run in the next drain. One cancelled or fired meanwhile is dropped."""
        if self._closed:
            raise RunEvicted(EVICTED)
        if self._timers is not None and timer.handle.run_key is not None:
            self._timers.end(timer.handle)
            self._ready.append(timer.handle)

    def unfinished(self) -> list[RunTask]:
        """The run's tasks that are not done, oldest first. (`asyncio.all_tasks` goes through those of every run.)"""
        return [task for task in self._tasks if not task.done()]

    def evict(self) -> list[RunTask]:
        """End the run's code here and now; the run itself goes on elsewhere or later.

        Closes the loop first, so that clean-up code can start nothing; then RunEvicted is thrown into every unfinished
        task, oldest first, and left async generators are closed. Returns the tasks that refused to end: keep them
        referenced, or the garbage collector will run their code.
        """
        if self._closed:
            return []
        idle = not (self._generators or self._collected or isinstance(_get_running_loop(), RunLoop))
        if idle and all(task.done() and not is_unread(task) for task in self._tasks):
            self._closed, self._tasks = True, []  # the common end of a run: there is no code left to tell
            return []
        outside = self._enter()
        self._closed = True
        try:
            self._ready.clear()
            if self._timers is not None:
                self._timers.clear()
            unfinished = self.unfinished()
            refusing = [task for task in unfinished if not ends(task)]
            for task in self._tasks:
                # Tell of it if the run is over; else the replay may read it yet. Having read it here, asyncio will not
                # tell whenever the task happens to be collected.
                if is_unread(task) and (error := task.exception()) and not unfinished:
                    self.call_exception_handler({"message": "Exception never read", "task": task, "exception": error})
            for generator in [*(ref() for ref in self._generators), *self._collected]:
                if generator is not None:
                    self._close_generator(generator)
            self._tasks, self._generators, self._collected = [], _NO_GENERATORS, _NONE_COLLECTED
            return refusing
        except Interrupted:
            return self.unfinished()
        finally:
            try:
                self._watch.end()
            except Interrupted:  # too late: the code had just ended
                self._watch.end()
            self._leave(outside)

    # -- asyncio's side -----------------------------------------------------------------------------------------------

    def time(self) -> float:
        """Seconds since the run's start, on the journal's clock, exact to the ms."""
        if self._closed:
            raise RunEvicted(EVICTED)
        return (self.now - self._origin) / 1000

    def call_soon(self, callback: Callable[..., object], *args: Any, context: Context | None = None) -> asyncio.Handle:
        if self._closed:
            raise RunEvicted(EVICTED)
        handle = RunHandle(callback, args, copy_context() if context is None else context)
        self._ready.append(handle)
        return cast("asyncio.Handle", handle)

    def call_soon_threadsafe(
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        if _get_running_loop() is not self:
            _refuses("loop.call_soon_threadsafe (from another thread)")(self)
        return self.call_soon(callback, *args, context=context)

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self._add_timer(delay, self.time() + delay, callback, args, context)

    def call_at(
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self._add_timer(when - self.time(), when, callback, args, context)

    def _add_timer(
        self, delay: float, when: float, callback: Callable[..., object], args: Any, context: Context | None
    ) -> asyncio.TimerHandle:
        if self.finalising:
            self._refuse()
        # Rounded up: a wait for the rest of some time must not end before it, and be asked for again without end.
        delay_ms = max(0, math.ceil(round(min(delay * 1000, _LONGEST_DELAY_MS), 3)))
        handle = RunTimerHandle(when, callback, args, self, context)
        if self._timers is None:
            self._timers = RunTimers()
        self._timers.add(delay_ms, self.now, handle)
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Called by `TimerHandle.cancel`, also for a timer that has fired."""
        if isinstance(handle, RunTimerHandle) and self._timers is not None:
            self._timers.end(handle)

    def create_future(self) -> RunFuture:
        if self._closed or self.finalising:
            self._refuse()
        future = RunFuture(loop=self)
        future.run_hash = self.future_hash()
        return future

    def future_hash(self) -> int:
        """The hash of the next future: by a counter of its own, so that the hashes of tasks stay dense."""
        self._future_count += 1
        return (~self._salt + self._future_count * _HASH_STEP) & _HASH_MASK

    def create_task(
        self, coro: _Coroutine, *, name: str | None = None, context: Context | None = None, **options: Any
    ) -> RunTask:
        """As in asyncio. `options` are those of `asyncio.Task` in this Python (3.12: eager_start)."""
        if self._closed or self.finalising:
            self._refuse()
        caller = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]  # see _task_in_given_order
        if caller.f_code is _ENSURE_FUTURE:
            task = self._task_in_given_order(coro, caller)
            if task is not None:
                return task
        return self._new_task(coro, name, context, **options)

    def _new_task(self, coro: _Coroutine, name: str | None, context: Context | None, **options: Any) -> RunTask:
        self._task_count += 1
        context = copy_context() if context is None else context
        if self._eager:
            options.setdefault("eager_start", True)
        task = RunTask.__new__(RunTask)  # in two steps: initialising it puts it, by its hash, into a global set
        task.run_hash = (self._salt + self._task_count * _HASH_STEP) & _HASH_MASK
        task.run_context = context
        # asyncio's own default names count per process, and a service may use them as data.
        task.__init__(coro, loop=self, name=name or f"Task-{self._task_count}", context=context, **options)
        self._tasks.append(task)
        if len(self._tasks) >= self._sweep_tasks_at:
            self._tasks = [task for task in self._tasks if not task.done() or is_unread(task)]
            self._sweep_tasks_at = _SWEEP_FROM + 2 * len(self._tasks)
        return task

    def _task_in_given_order(self, coro: _Coroutine, frame: FrameType | None) -> RunTask | None:
        """The task for a coroutine that `asyncio.as_completed` starts; None when somebody else asks.

        as_completed puts the coroutines into a set, and coroutines hash by address: they would start in an order of
        chance. So the first of them to arrive starts all, in the order in which the service gave them.
        """
        for _ in range(3):  # ensure_future and, in Python 3.11, a comprehension and an inner ensure_future
            if frame is not None and frame.f_code not in _AS_COMPLETED:
                frame = frame.f_back
        if frame is None or frame.f_code not in _AS_COMPLETED:
            return None
        if coro not in self._asked_early:
            given: object = frame.f_locals[_AS_COMPLETED[frame.f_code]]
            if not isinstance(given, Collection) or isinstance(given, set | frozenset) or coro not in given:
                raise TypeError(
                    "asyncio.as_completed starts the coroutines of a generator or set in an order of chance, so the "
                    "service could not be replayed. Give it a list of coroutines, or of tasks."
                )
            if self._asked_early is _NONE_EARLY:
                self._asked_early = {}
            for each in dict.fromkeys(cast(Iterable[Any], given)):
                if asyncio.iscoroutine(each):
                    self._asked_early[each] = self._new_task(each, None, None)
        return self._asked_early.pop(coro)

    def is_running(self) -> bool:
        return _get_running_loop() is self

    def is_closed(self) -> bool:
        return self._closed

    def get_debug(self) -> bool:
        return False

    def set_debug(self, enabled: bool) -> None:
        """Not supported: debug mode reads a clock and times callbacks."""

    def get_task_factory(self) -> Any:
        return _EAGER_FACTORY if self._eager else None

    def set_task_factory(self, factory: Any) -> None:
        if factory is not None and factory is not _EAGER_FACTORY:
            raise NotImplementedError("A service's tasks are made by its loop, or by asyncio.eager_task_factory only.")
        self._eager = factory is not None

    def get_exception_handler(self) -> None:
        return None

    def set_exception_handler(self, handler: Any) -> None:
        if handler is not None:
            raise NotImplementedError("A service has no exception handler: errors go to the logger dotdo.service.")

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Log what went wrong outside of any task. Never raises; the garbage collector calls it, in any thread."""
        try:
            # No repr of futures and handles: it would carry results and arguments, and so secrets, into the log.
            owner = context.get("task") or context.get("future")
            where = f" ({owner.get_name()})" if isinstance(owner, asyncio.Task) else ""
            message = context.get("message") or "Unhandled exception in a service"
            _log.error("%s%s", message, where, exc_info=context.get("exception"))
        except Exception:
            return  # an application's log handler failed; there is nowhere left to tell

    # -- taking over the thread, and giving it back -----------------------------------------------------------------

    def _enter(self) -> _Outside:
        """Take the thread over; the answer is what `_leave` has to put back."""
        loop = _get_running_loop()
        if isinstance(loop, RunLoop):
            raise RuntimeError("A run loop cannot be drained or evicted from inside a service.")
        task = None if loop is None or _swap_current_task is None else _swap_current_task(loop, None)
        outside = (loop, task, sys.get_asyncgen_hooks(), gc.isenabled())
        # A collection in here would run clean-up code of others inside this run, and of this run at a moment of chance.
        gc.disable()
        sys.set_asyncgen_hooks(self._generator_begins, self._generator_left)
        _set_running_loop(self)
        self._watch.begin()
        return outside

    def _leave(self, outside: _Outside) -> None:
        loop, task, hooks, collects = outside
        _set_running_loop(loop)
        if task is not None:
            _swap_current_task(loop, task)
        sys.set_asyncgen_hooks(*hooks)
        if collects:
            gc.enable()

    def _generator_begins(self, generator: Any) -> None:
        if self._generators is _NO_GENERATORS:
            self._generators = []
        self._generators.append(weakref.ref(generator))
        if len(self._generators) >= self._sweep_generators_at and not self._closed:
            self._generators = [ref for ref in self._generators if ref() is not None]
            self._sweep_generators_at = _SWEEP_FROM + 2 * len(self._generators)

    def _generator_left(self, generator: Any) -> None:
        """Python calls this wherever the last reference to an unfinished async generator ends.

        In this run's own drain that moment is the same on every replay (there is no collection), so it cleans up now.
        Elsewhere it is a matter of chance: the generator is kept, and cleans up when the run is evicted.
        """
        if _get_running_loop() is self:
            self._close_generator(generator)
        elif not self._closed:
            if self._collected is _NONE_COLLECTED:
                self._collected = []
            self._collected.append(generator)

    def _close_generator(self, generator: Any) -> None:
        before, self.finalising = self.finalising, True
        closing = generator.aclose()
        try:
            closing.send(None)
            _log.error(
                "%s was left before its end, and its clean-up waits for something: the clean-up is dropped. "
                "Use `async with contextlib.aclosing(...)`.",
                generator.__qualname__,
            )
            closing.throw(GeneratorExit)  # or what it waits in would clean up later, free to start things
        except (StopIteration, StopAsyncIteration, GeneratorExit):
            pass
        except BaseException as error:
            if not self._closed:
                _log.error("%s was left before its end; its clean-up failed", generator.__qualname__, exc_info=error)
        finally:
            self.finalising = before

    def _refuse(self) -> Never:
        if self._closed:
            raise RunEvicted(EVICTED)
        raise RuntimeError(
            "An async generator that was left before its end cannot wait, or start steps, tasks or timers, in its "
            "clean-up. Use `async with contextlib.aclosing(...)` around the loop over it."
        )


# What a service must not do; in brackets the function by which people call it.
_IO_CALLS = """
    run_forever run_until_complete stop close shutdown_asyncgens shutdown_default_executor set_default_executor
    run_in_executor(asyncio.to_thread) subprocess_exec(asyncio.create_subprocess_exec) add_signal_handler
    subprocess_shell(asyncio.create_subprocess_shell) create_connection(asyncio.open_connection) remove_signal_handler
    create_server(asyncio.start_server) create_unix_connection create_unix_server connect_accepted_socket
    create_datagram_endpoint connect_read_pipe connect_write_pipe add_reader remove_reader add_writer remove_writer
    getaddrinfo getnameinfo sendfile start_tls sock_recv sock_recv_into sock_recvfrom sock_recvfrom_into sock_sendall
    sock_sendto sock_sendfile sock_connect sock_accept
"""
for _call in _IO_CALLS.split():
    setattr(RunLoop, _call.partition("(")[0], _refuses("loop." + _call.replace("(", " (")))


def _gathered_hash(self: Any) -> int:
    """The hash of what `asyncio.gather` returns: in a run by the run's counter, from first use; elsewhere as ever."""
    try:
        return self.run_hash
    except AttributeError:
        loop = self.get_loop()
        self.run_hash = loop.future_hash() if isinstance(loop, RunLoop) else object.__hash__(self)
        return self.run_hash


# asyncio makes these futures itself, so `wait([gather(...), gather(...)])` would come back in the order of addresses.
_tasks._GatheringFuture.__hash__ = _gathered_hash
