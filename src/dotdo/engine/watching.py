"""The watchdog: code of users that keeps the engine's loop to itself is told in the log, and in the end interrupted.

Services and `async def` handlers run on the engine's loop, so one that never gives it back would stop every other run.
A thread looks at the loop a few times a second. What it interrupts it interrupts soundly: in a service only while
its code is being drained, and in a handler only while its own frames are on the loop's thread.
"""

import asyncio
import ctypes
import linecache
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec

WARN_SECONDS = 1.0
SPIN_SECONDS = 5.0  # a service that keeps the loop longer is interrupted
HANDLER_FACTOR = 6  # a handler may keep it so much longer: it is only slow, perhaps, and its attempt would be lost
TICK_SECONDS = 0.25

_PACKAGE = str(Path(__file__).parents[1]) + os.sep
_DEBUGGERS = ("bdb", "pdb", "pydevd", "debugpy", "_pydevd_bundle")

ADVICE = "Make it a `def` handler, which runs on a thread, or await what it waits for."

log = logging.getLogger("dotdo.engine")


class Interrupted(BaseException):
    """Raised by the watchdog in code that keeps the engine's loop to itself. Not an Exception: it must get out."""

    def __str__(self) -> str:
        return "It kept the engine's event loop to itself for too long, and was interrupted."


class Watch:
    """What the loop's thread is doing: shared by the loop's code, which begins and ends pieces of user code, and the
    watchdog. Between `begin` and `end`, and at no other time, an Interrupted may be raised.

    place: where the code was when it was interrupted, in words; empty if it was not.
    """

    __slots__ = ("_lock", "count", "place", "running", "thread")

    def __init__(self) -> None:
        self.count = 0
        self.running = False
        self.place = ""
        self.thread = threading.get_ident()
        self._lock = threading.Lock()

    def begin(self) -> None:
        """User code begins."""
        self.count += 1
        self.place = ""
        self.running = True

    def end(self) -> None:
        """It has ended. May raise Interrupted, having come too late; then call it again."""
        with self._lock:
            self.running = False
        if self.place:
            _interrupt(self.thread, None)

    def interrupt(self, count: int, place: str) -> bool:
        """Raises Interrupted in the piece of user code of that number, if it still runs."""
        with self._lock:
            if self.running and self.count == count:
                self.place = place
                _interrupt(self.thread, Interrupted)
                return True
        return False


def _interrupt(thread: int, error: type[BaseException] | None) -> None:
    # https://docs.python.org/3/c-api/init.html#c.PyThreadState_SetAsyncExc; None takes back what was not yet raised.
    what = None if error is None else ctypes.py_object(error)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), what)


class Culprit(msgspec.Struct, frozen=True):
    """Whose code is on the loop's thread. what: in words. place: file, line and text. frame: its outermost frame."""

    what: str
    place: str
    frame: Any


class Watchdog:
    """Watches one loop from a thread of its own. limit: seconds after which a service is interrupted; 0 for never."""

    def __init__(self, loop: asyncio.AbstractEventLoop, watch: Watch, *, limit: float = SPIN_SECONDS) -> None:
        self._loop, self._watch, self._limit = loop, watch, limit
        self._warn = min(WARN_SECONDS, limit or WARN_SECONDS)
        self._tick = min(TICK_SECONDS, self._warn / 4)
        self._stop = threading.Event()
        self._answered = 0  # the newest question that the loop has answered
        self._piece: object = None  # what had the loop at the last look, for how long, and whether that was told
        self._silent, self._told = 0.0, False
        self._thread = threading.Thread(target=self._work, name="dotdo-watchdog", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread."""
        self._stop.set()
        self._thread.join()

    def _work(self) -> None:
        asked, before = 0, time.monotonic()
        while not self._stop.wait(self._tick):
            now = time.monotonic()
            # Not more than a tick or two: the whole process, or the machine, may have been stopped meanwhile.
            passed, before = min(now - before, 2 * self._tick), now
            if self._answered == asked:
                asked, self._silent, self._piece = asked + 1, 0.0, None
                try:
                    self._loop.call_soon_threadsafe(self._answer, asked)
                except RuntimeError:
                    return  # the loop is closed
            else:
                self._look(passed)

    def _answer(self, asked: int) -> None:
        self._answered = asked

    def _look(self, passed: float) -> None:
        """The loop has not answered: if the same piece of code has it as before, tells of it once, and interrupts it
        at its limit."""
        count, is_service = self._watch.count, self._watch.running
        culprit = find_culprit(self._watch.thread)
        piece = count if is_service else culprit.frame if culprit is not None else None
        if piece is None or culprit is None or piece != self._piece:
            self._piece, self._silent, self._told = piece, 0.0, False
            return
        self._silent += passed
        if self._silent >= self._warn and not self._told:
            self._told = True
            log.warning(
                "%s keeps the engine's event loop to itself, for %.1f s now; nothing else can move meanwhile. It is "
                "at %s. %s",
                culprit.what,
                self._silent,
                culprit.place,
                "What blocks or computes belongs into an action." if is_service else ADVICE,
            )
        if not self._limit:
            return
        if is_service:
            if self._silent >= self._limit and self._watch.interrupt(count, culprit.place):
                log.error("%s was interrupted after %.1f s", culprit.what, self._silent)
        elif self._silent >= self._limit * HANDLER_FACTOR:
            self._interrupt_handler(culprit)

    def _interrupt_handler(self, culprit: Culprit) -> None:
        again = find_culprit(self._watch.thread)
        if again is None or again.frame is not culprit.frame:
            return
        log.error("%s is interrupted after %.1f s", culprit.what, self._silent)
        _interrupt(self._watch.thread, Interrupted)
        after = find_culprit(self._watch.thread)
        if after is None or after.frame is not culprit.frame:
            _interrupt(self._watch.thread, None)  # it has just given the loop back


def find_culprit(thread: int) -> Culprit | None:
    """Whose code a loop's thread is in: the frames of users right below one of the engine's. None if it is nobody's,
    or a debugger's."""
    frame: FrameType | None = sys._current_frames().get(thread)  # pyright: ignore[reportPrivateUsage]  # documented
    below: FrameType | None = None
    while frame is not None:
        if frame.f_globals.get("__name__", "").partition(".")[0] in _DEBUGGERS:
            return None
        what = _described(frame) if below is not None else None
        if what is not None and below is not None:
            return Culprit(what, _place(below), below)
        if not _is_ours(frame):
            below = frame
        frame = frame.f_back
    return None


def _is_ours(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(_PACKAGE)


def _described(frame: FrameType) -> str | None:
    """What a frame of the engine is running for its user, in words."""
    describe = _RUNS_USER_CODE.get(frame.f_code.co_qualname) if _is_ours(frame) else None
    return None if describe is None else describe(frame.f_locals)


def _handler(variables: Mapping[str, Any]) -> str:
    attempt = variables["attempt"]
    action = variables["action"].name
    return f"The handler of the action {action} (attempt {attempt.number} of {attempt.step} in {attempt.run_id})"


def _effect(variables: Mapping[str, Any]) -> str:
    return f"The effect {variables['effect'].name} of {variables['run'].id}"


def _service(variables: Mapping[str, Any]) -> str:
    code = variables["self"]
    return f"The service {code.service.name} ({code.run_id})"


# The engine's functions that call user code on the loop, with their local variables put into words.
_RUNS_USER_CODE: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "HandlerRun.run_handler": _handler,
    "_run_effect": _effect,
    "run_function": _effect,
    "ServiceCode.start": _service,
    "ServiceCode.hand_over": _service,
    "ServiceCode.end": _service,
}


def _place(frame: FrameType) -> str:
    code, line = frame.f_code, frame.f_lineno
    text = linecache.getline(code.co_filename, line).strip()
    return f"{code.co_filename}, line {line}, in {code.co_name}" + (f": {text[:200]}" if text else "")
