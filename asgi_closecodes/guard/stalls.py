"""Detection of code that blocks an event loop: a thread samples its stack while a beat of the loop is late.

The loop says when its next beat is due, and the thread sleeps until that is late. It takes up to three samples, called
looks, and reports nothing: the loop does at its next beat. So the loop itself measures the stall. The thread may be
late as well, while C code holds the GIL or the machine is busy. The beat is a timer of its own: it costs a third of
the guard's ticks.
"""

from __future__ import annotations

import inspect
import math
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import suppress
from contextvars import Context, ContextVar
from itertools import combinations
from types import CodeType, FrameType
from typing import Any, NamedTuple, TypeVar

import anyio

from asgi_closecodes import events
from asgi_closecodes.concurrency import COUNTING, EventLoop, context_of_task, on_asyncio, running_loop, spawn
from asgi_closecodes.error_identity import UNKNOWN, is_library, stack_fingerprint
from asgi_closecodes.logs.stack_traces import CodePosition, stack_text
from asgi_closecodes.session import Session
from asgi_closecodes.session.facts import LateFacts

from .ticker import LINGER_S

CAN_LOOK = getattr(sys, "_is_gil_enabled", lambda: True)()
"""Whether another thread's frames can be read safely: not on free-threaded Python, where it runs meanwhile."""

_LOOKS_AT = (0.5, 1.0, 2.0)
"""Times of the looks after the due beat, in units of ``log_stalls``."""

_WAITING = ("trio._core._io", "asyncio.windows_events")
"""Modules in which an idle event loop waits, in a frame below the one that runs tasks."""

_INTERVAL_S = 0.25
"""Time between two beats. Ten a second took 0.18 % of a busy core, with the looks of the thread; four 0.10 %."""

_MAX_PAUSE_S = 60.0

_MIN_PAUSE_S = 0.05
"""Time between two wake-ups of the thread while a stall goes on, and all looks are done."""

_Call = TypeVar("_Call", bound=Callable[..., Any])

_session_frames: set[CodeType] = set()
"""Code of the functions whose frames have their session in a local variable."""

_session: ContextVar[weakref.ref[Session] | None] = ContextVar("asgi_closecodes_session", default=None)


def has_session_variable(call: _Call) -> _Call:
    """Mark ``call`` as a function whose frame has its session in the local variable ``session``."""
    _session_frames.add(call.__code__)
    return call


def mark_task(session: Session) -> None:
    """Have the context of the current task, and of those that it starts, name ``session``."""
    _session.set(weakref.ref(session))


class StallWatch:
    """One guard's subscription to stalls.

    :param sessions: the guard's.
    :param is_used: whether there are sessions or lifespans.
    :param report: takes the events, in the event loop that stalled.
    """

    __slots__ = ("is_on", "is_used", "report", "seconds", "sessions")

    def __init__(
        self, sessions: Container[Session], is_used: Callable[[], bool], report: Callable[[events.Event], None]
    ) -> None:
        self.sessions = sessions
        self.is_used = is_used
        self.report = report
        self.seconds: float | None = None
        self.is_on = False
        """Whether it watches."""

    def apply(self, seconds: float | None) -> None:
        """Report stalls of at least ``seconds`` from now on; none if it is None."""
        self.seconds = seconds
        self.is_on = seconds is not None and CAN_LOOK
        if seconds is None:
            self.stop()

    def join(self) -> None:
        """Watch the event loop that runs here, if it is on, and does not watch it yet."""
        if self.is_on:
            _watcher.join(self)

    def stop(self) -> None:
        """Stop watching."""
        _watcher.leave(self)


class _Look(NamedTuple):
    """A sample of the stack inside of the event loop, outermost frame first; empty where it ran no Python code."""

    stack: tuple[CodePosition, ...]
    session: events.SessionFacts | None
    owner: StallWatch | None
    stands_for: float = 1.0
    """Seconds since the look before, or since the beat was due."""


class _Watched:
    """One thread with an event loop."""

    __slots__ = ("depth", "due", "failure", "ident", "looked_at", "looks", "loop", "seconds", "watches")

    def __init__(self, ident: int, loop: Any) -> None:
        self.ident = ident
        self.loop = loop
        self.watches: dict[StallWatch, float] = {}
        """Monotonic seconds when each was last used."""
        self.seconds = math.inf
        self.depth = 0
        """Frames of the thread up to the event loop's own."""
        self.due = self.looked_at = time.monotonic()
        self.looks: list[_Look] = []
        self.failure: Exception | None = None

    @property
    def look_at(self) -> float:
        """Time of the next look."""
        done = len(self.looks)
        if done == len(_LOOKS_AT):
            return time.monotonic() + _MIN_PAUSE_S
        planned = self.due + self.seconds * _LOOKS_AT[done]
        # Looks missed while C code held the GIL are skipped: late, they would find the code after it.
        return planned if done == 0 else max(planned, self.looked_at + self.seconds * _LOOKS_AT[0])

    def look(self) -> None:
        """Sample the stack of the thread."""
        due, now = self.due, time.monotonic()
        frame = sys._current_frames().get(self.ident)  # noqa: SLF001 - it is documented
        if frame is None:
            return
        # No frame is kept: its variables would live on, and might be finalized in this thread.
        stack = [frame, *_callers(frame)]
        stack.reverse()
        session = _session_of(stack, self.depth, self.loop)
        positions = tuple(map(_position, stack[self.depth :]))
        del frame, stack
        if positions and positions[0].module.startswith(_WAITING):
            positions = ()
        # Now: at the next beat the session may be over, and its route forgotten.
        facts = None if session is None else LateFacts(session).made()
        owner = next((one for one in [*self.watches] if session in one.sessions), None)
        if due == self.due:  # else the loop runs again
            stands_for = now - (self.looked_at if self.looks else due)
            self.looked_at = now
            self.looks.append(_Look(positions, facts, owner, stands_for))


class _Watcher:
    """The watching thread: one in a process, and only while an event loop is watched."""

    __slots__ = ("_bell", "_thread", "_watched")

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Reset in a child process, which has no such thread."""
        self._watched: dict[int, _Watched] = {}
        self._thread: threading.Thread | None = None
        self._bell = threading.Lock()
        self._bell.acquire()

    def join(self, watch: StallWatch) -> None:
        ident, loop = threading.get_ident(), running_loop()
        watched = self._watched.get(ident)
        if loop is None or (watched is not None and watched.loop is loop and watch in watched.watches):
            return
        with COUNTING:
            if is_new := watched is None or watched.loop is not loop:
                watched = self._watched[ident] = _Watched(ident, loop)
            watched.watches[watch] = time.monotonic()
        if not is_new:
            return  # the next beat finds it
        if on_asyncio():
            self._beat_on_asyncio(watched)
        else:
            spawn(self._beat_on_trio, watched)

    def _beat_on_asyncio(self, watched: _Watched) -> None:
        if self._beat(watched, sys._getframe()):  # noqa: SLF001 - it is documented
            # An empty context, as the beat outlives the session that starts it.
            watched.loop.call_later(_INTERVAL_S, self._beat_on_asyncio, watched, context=Context())

    async def _beat_on_trio(self, watched: _Watched) -> None:
        while self._beat(watched, sys._getframe()):  # noqa: ASYNC110, SLF001 - it waits for nothing
            await anyio.sleep(_INTERVAL_S)

    def _beat(self, watched: _Watched, frame: FrameType) -> bool:
        """Report a stall that is over, and set when the next beat is due; return False if there is none."""
        now = time.monotonic()
        late, looks, limit = now - watched.due, watched.looks, watched.seconds
        with COUNTING:
            reporter = next((watch for watch in watched.watches if watch.is_on), None)  # also if it leaves below
            for watch, used_at in [*watched.watches.items()]:
                if watch.is_on and watch.is_used():  # whatever used_at says: a stall may last longer than LINGER_S
                    watched.watches[watch] = now
                elif not watch.is_on or now - used_at > LINGER_S:
                    del watched.watches[watch]
            # The thread drops a loop that does not run for a while; such a one is added again.
            goes_on = bool(watched.watches) and self._watched.setdefault(watched.ident, watched) is watched
            if not goes_on and self._watched.get(watched.ident) is watched:
                del self._watched[watched.ident]
            if goes_on:
                watched.seconds = min(one.seconds for one in watched.watches if one.seconds is not None)
                watched.depth = _depth_of_loop(frame)
                watched.looks = []
                watched.due = now + _INTERVAL_S
        if watched.seconds != limit or not goes_on or self._thread is None:
            self._start_or_ring()
        if reporter is not None:
            if late >= limit:
                _report(late, looks, reporter)
            if (failure := watched.failure) is not None:
                watched.failure = None
                reporter.report(events.BackgroundFailed("look at a stall", failure))
        return goes_on

    def leave(self, watch: StallWatch) -> None:
        with COUNTING:
            for ident, watched in [*self._watched.items()]:
                watched.watches.pop(watch, None)
                if not watched.watches:
                    del self._watched[ident]
        self._ring()

    def _start_or_ring(self) -> None:
        with COUNTING:
            if self._thread is not None or not self._watched:
                self._ring()
                return
            thread = threading.Thread(target=self._run, name="asgi-closecodes-stalls", daemon=True)
            with suppress(RuntimeError):  # the interpreter shuts down
                thread.start()
                self._thread = thread

    def _ring(self) -> None:
        with COUNTING:
            if self._bell.locked():
                self._bell.release()

    def _run(self) -> None:
        while True:
            with COUNTING:
                if not self._watched:
                    self._thread = None
                    return
                all_watched = [*self._watched.values()]
            pause = min(one.look_at for one in all_watched) - time.monotonic()
            self._bell.acquire(timeout=min(max(pause, 0.001), _MAX_PAUSE_S))
            if sys.is_finalizing():
                return
            for watched in all_watched:
                if watched.look_at <= time.monotonic():
                    self._look(watched)

    def _look(self, watched: _Watched) -> None:
        try:
            if EventLoop(watched.loop).is_alive:
                watched.look()
                return
        except Exception as error:
            watched.failure = error
            watched.looks.append(_Look((), None, None))
            return
        with COUNTING:  # the loop was closed, or does not run for now
            if self._watched.get(watched.ident) is watched:
                del self._watched[watched.ident]


def _report(late: float, looks: Sequence[_Look], reporter: StallWatch) -> None:
    same = _largest_agreeing(_substantial([look for look in looks if look.stack]))
    owner = next((look.owner for look in same if look.owner is not None), reporter)
    if owner.seconds is None or late < owner.seconds:
        owner = reporter
    if not same:
        owner.report(events.LoopStalled(late, UNKNOWN, len(looks)))
        return
    stack = _common_stack(same)
    position = _innermost(stack)
    owner.report(
        events.LoopStalled(
            duration=late,
            fingerprint=stack_fingerprint((one.code, one.module) for one in stack),
            looks=len(same),
            stack=stack_text(stack),
            file=position.code.co_filename,
            line=position.line,
            function=position.code.co_qualname,
            session=next((look.session for look in reversed(same) if look.session is not None), None),
        )
    )


def _substantial(looks: Sequence[_Look]) -> Sequence[_Look]:
    """Return the looks that stand for much of the stall, as one after seconds of C code, without brief ones."""
    longest = max((look.stands_for for look in looks), default=0.0)
    return [look for look in looks if look.stands_for >= longest / 3]


def _largest_agreeing(looks: Sequence[_Look]) -> Sequence[_Look]:
    """Return the largest group of looks that found the same code of the application; else the last look."""
    for count in range(len(looks), 1, -1):
        for some in reversed([*combinations(looks, count)]):
            if any(not is_library(position.code.co_filename) for position in _common_stack(some)):
                return some
    return looks[-1:]


def _common_stack(looks: Sequence[_Look]) -> tuple[CodePosition, ...]:
    """Return the frames that all looks found, up to the first one that has gone on to another line."""
    first, *others = (look.stack for look in looks)
    for depth, position in enumerate(first):
        if any(depth >= len(other) or other[depth].code is not position.code for other in others):
            return first[:depth]
        if any(other[depth].line != position.line for other in others):
            return first[: depth + 1]
    return first


def _innermost(stack: Sequence[CodePosition]) -> CodePosition:
    """Return the innermost frame of the application, else of a library."""
    return next((position for position in reversed(stack) if not is_library(position.code.co_filename)), stack[-1])


def _callers(frame: FrameType) -> Iterator[FrameType]:
    caller = frame.f_back
    while caller is not None:
        yield caller
        caller = caller.f_back


def _position(frame: FrameType) -> CodePosition:
    return CodePosition(frame.f_code, frame.f_lineno, str(frame.f_globals.get("__name__", "?")))


def _depth_of_loop(frame: FrameType) -> int:
    """Return the number of frames from the outermost to the event loop's, below those of ``frame``'s task."""
    depth = 0
    for caller in _callers(frame):
        # The first beat is called in a session's task: frames of coroutines are above the loop's.
        depth = 0 if caller.f_code.co_flags & inspect.CO_COROUTINE else depth + 1
    return depth


def _session_of(stack: Sequence[FrameType], depth: int, loop: Any) -> Session | None:
    """Return the session that a thread serves: by the middleware's frame, else by the task's context."""
    for frame in reversed(stack[depth:]):
        if frame.f_code in _session_frames:
            session = frame.f_locals.get("session")
            return session if isinstance(session, Session) else None
    marked = None
    if len(stack) > depth and (context := context_of_task(stack[depth - 1], loop)) is not None:
        marked = context.get(_session)
    return None if marked is None else marked()


_watcher = _Watcher()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_watcher.forget)
