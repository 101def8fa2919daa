"""What one process knows: its live sessions, its gate, its rules, its background work, and who is told."""

from __future__ import annotations

import asyncio
import math
import os
import time
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from typing import Any, ParamSpec, TypeVar

import anyio
import anyio.from_thread
import anyio.lowlevel
from starlette.types import Receive, Scope, Send

from asgi_closecodes import concurrency, events
from asgi_closecodes.bounds import finite, is_between
from asgi_closecodes.concurrency import COUNTING, Claim, EventLoop, cancelled_from_outside, running_loop
from asgi_closecodes.exceptions import ExceptionMapping, ServiceRestart, TryAgainLater, checked_mapping
from asgi_closecodes.gates import AllOf, Gate, GateBase, LoopLag, Shadow
from asgi_closecodes.gates.base import FREE, as_gate, name_gates
from asgi_closecodes.logs import LogObserver
from asgi_closecodes.naming import name_of, shown
from asgi_closecodes.session import Departures, Rules, SendRememberingSession, Session, session_of
from asgi_closecodes.settings import LIMITS, Settings, checked_change, no_settings_of_its_own, unknown_settings
from asgi_closecodes.settings.gates import gates_of, set_limits
from asgi_closecodes.token_bucket import Rate

from . import unused
from .counters import Tally
from .dispatch import Dispatcher, reject_coroutine
from .headroom import headroom
from .memory import RoundShedder, round_shedders
from .open_files import tell_few_files
from .retry_after import RetryQueue
from .saturation import Saturation
from .shedding import Pace, Victims
from .sigterm import drain_at_sigterm
from .timeouts import SessionTimeouts

TICK = 0.1
"""Seconds between two looks at the gates."""

LINGER = 15.0
"""Seconds that the looks go on after the last session, where no lifespan says whether there will be more."""

STOP_TIMEOUT = 10.0
"""Seconds that a gate may take to stop: a server's shutdown waits for it, uvicorn's without an end."""

_AT_ONCE = 25
"""Sessions that begin to end in one turn of the event loop, so that it is not late for the others."""

_LOOK = 5.0
"""Seconds between two looks at who has been idle."""

_NOBODY: Sequence[Session] = ()

_Answer = TypeVar("_Answer")
_Read = TypeVar("_Read")


class Guard:
    """What the middleware asks and tells; share one to inspect and to change it while it runs.

    :param settings: by default read from the environment.
    :param gate: asked after the gates that the settings describe.
    :param exceptions: what exceptions of the application mean: a close code, a Close, or a function of the
        exception that returns either. Subclasses are included, the most specific class counts.
    :param observers: called with every event (see :mod:`asgi_closecodes.events`), beside the logs.
    :param subprotocol: chooses one of the offered subprotocols where a refused handshake is accepted only
        to be closed; by default the first.
    :raises SettingsError: if the settings cannot be used.
    :raises ValueError: if ``exceptions`` cannot be used, or two gates have been given the same name.
    :raises TypeError: if ``settings`` or ``gate`` are none, an observer cannot be called, or settings are given here.
    """

    @no_settings_of_its_own
    def __init__(
        self,
        settings: Settings | None = None,
        *,
        gate: Gate | None = None,
        exceptions: ExceptionMapping | None = None,
        observers: Iterable[events.Observer] = (),
        subprotocol: Callable[[Sequence[str]], str | None] | None = None,
    ) -> None:
        if not isinstance(settings, Settings | None):
            raise TypeError(f"settings={shown(settings)} are no Settings; use Settings(max_sessions=...)")
        self._own_gates = () if gate is None else AllOf(as_gate(gate, "gate")).gates
        if not (subprotocol is None or callable(subprotocol)):
            raise TypeError(
                f"subprotocol={shown(subprotocol)} cannot be called; use a function that chooses one of those offered, "
                "as subprotocol=lambda offered: offered[0]"
            )
        observers = _checked_observers(observers)
        self.settings = Settings() if settings is None else settings
        self.exceptions = checked_mapping(exceptions)
        self.subprotocol = subprotocol
        self.sessions: dict[Session, None] = {}
        """The admitted sessions that are not over, in the order of their arrival."""
        self.draining = False
        """Whether new sessions are refused because this process is about to stop; ask it for readiness.

        Set it to False to call a drain off: sessions that are open stay, and new ones are admitted.
        """
        self._leaving: set[Session] = set()
        self.departures = Departures()
        self._tally = Tally()
        self._saturation = Saturation(self.report)
        # Weak, since what is left to be said at the exit of the process should not keep the guard.
        self._logs = LogObserver(report=_weak(self.report))
        weakref.finalize(self, self._logs.sum_up, now=True)
        own: dict[events.Observer, Iterable[type]] = {
            self._tally: Tally.COUNTED,
            self._logs: LogObserver.WRITTEN,
            self._saturation: (events.SessionRefused,),
            self._keep_watch: (events.LogsSuppressed, events.GateSaturated),
        }
        self._dispatcher = Dispatcher(own, observers)
        objects: list[object] = [*observers]  # for mypy, which takes a function for nothing else
        self._watchers = [observer for observer in objects if isinstance(observer, events.WatchingObserver)]
        self._lag = LoopLag(half_life=15.0)  # longer than the gate's, so that somebody who looks now and then finds it
        self._draining_gate = Draining(self)
        self._gates: dict[str, GateBase] = {}
        self._own_gate_name = type(gate).__name__
        self.gate = AllOf()
        self._queue = RetryQueue()
        self._refusals = Rate(0, 0)
        self._pace = Pace()
        self._timeouts = SessionTimeouts(self.sessions)
        self._victims = Victims("newest", self._order_failed)
        self._round_shedders: dict[GateBase, RoundShedder] = {}
        self._lifespans: list[Any] = []  # the event loop of each
        self._loops: set[Any] = set()  # those where sessions or lifespans are or were, until they are gone
        self._has_begun = self._has_warned = False
        self._drains = Claim()
        self._ticks = Claim()
        self._is_busy = Claim()
        self._looked_at = -math.inf
        self._follow(self.settings)
        _guards.add(self)
        for name, nearest in unknown_settings().items():
            self.report(events.SettingIgnored(name, nearest))
        self.report(events.LimitsSet(self.settings.limits()))
        for name in self.settings.overridden():
            problem = "it is given in code too, which comes first: take one of the two away"
            self.report(events.SettingIgnored(name, None, problem))
        for watcher in self._watchers:
            watcher.watch(_weak(self.snapshot))
        unused.made(self)

    def _follow(self, settings: Settings) -> None:
        # What may fail comes first, what others see last.
        rules = Rules(
            error_code=settings.error_code,
            try_again_code=settings.try_again_code,
            handshake=settings.handshake,
            reraise=settings.reraise,
            debug=settings.debug,
            shed_grace=settings.shed_grace,
            send_timeout=settings.send_timeout,
            cancel_after_disconnect=settings.cancel_after_disconnect,
            abandon_after=settings.abandon_after,
        )
        gates = gates_of(settings, self._gates)
        asked = {name: Shadow(gate) if name in settings.shadow else gate for name, gate in gates.items()}
        limiting = [gate for name, gate in asked.items() if getattr(settings, name) is not None]
        name_gates([self._draining_gate, *limiting, *self._own_gates])
        working = (*asked.values(), *self._own_gates)
        # Asked at the end too: a drain may begin while a session waits in a slow gate.
        all_gates = AllOf(self._draining_gate, *working, self._draining_gate).gates
        shedders = round_shedders(working, self._round_shedders, self.sessions, self.report)
        for gate in working:
            gate.attach(self.report)
        self._logs.follow(
            path=settings.log_path,
            client=settings.log_client,
            burst=settings.log_burst,
            per_minute=settings.log_per_minute,
        )
        set_limits(gates, settings)
        self.settings = settings
        self.rules = rules
        self._timeouts.follow(settings)
        self._gates = gates
        self.gate.gates = all_gates
        self._working_gates = working
        self._shown_gates: tuple[GateBase, ...] = (*limiting, *self._own_gates)
        self._round_shedders = shedders
        self.gate.failure = settings.gate_failure
        self._queue.cap = settings.retry_after_cap
        rate = settings.handshakes_per_second
        self._queue.admits_per_second = math.inf if rate is None else rate
        self._refusals.per_second = self._refusals.burst = settings.max_refusals_per_second or 0
        if settings.shed != "never":
            self._victims.order = settings.shed

    def update(self, **changes: Any) -> None:
        """Change settings while running: ``guard.update(max_sessions=500)``. All changes are made, or none.

        Sessions above a lowered limit are shed, see the setting ``shed``.

        :raises SettingsError: if the settings cannot be used, or not be changed while the application runs.
        :raises ValueError: if a gate of one's own has been given the name of a limit that is set.
        """
        with COUNTING:  # two threads that change settings lose neither's
            before = self.settings
            try:
                settings = checked_change(before, before.changed(**changes), is_running=bool(self._lifespans))
            except ValueError:
                changes.clear()  # a traceback keeps it, and there may be a password in it
                raise
            try:
                self._follow(settings)
            except BaseException:
                with suppress(Exception):  # the first error counts
                    self._follow(before)
                raise
        changed = {name: getattr(settings, name) for name in changes}
        self.report(events.LimitsSet(settings.limits(), changed))
        self._tick_if_needed()

    def snapshot(self) -> events.Snapshot:
        """Return the state of this process, and counts since its start, as plain data; from any thread."""
        with COUNTING:
            leaving = len(self._leaving)
            open_sessions = len(self.sessions) - leaving
        return {
            "open": open_sessions,
            "leaving": leaving,
            "leaving_refused": self.departures.refused,
            "stalled": self._timeouts.stalled(),
            "waiting": self._queue.waiting(),
            "draining": self.draining,
            "headroom": headroom(self._shown_gates),
            "loop_lag": self._lag.value(),
            "gates": [_state_of(gate) for gate in self._shown_gates],
            **self._tally.counts(),
        }

    async def drain(self, window: float | None = None) -> None:
        """Refuse new sessions with 1012, and close the open ones with 1012, evenly over ``window``.

        It returns when every session has been told. A second call waits for the first.

        :param window: seconds, by default the setting ``drain_window``; 0 closes all at once.
        :raises ValueError: if ``window`` is negative or not finite.
        """
        window = self.settings.drain_window if window is None else window
        if not is_between(window, 0):
            raise ValueError(f"window={shown(window)}: use a number of seconds, 0 or more")
        while (holder := self._drains.take()) is None:  # noqa: ASYNC110 - an event would have to survive its event loop
            await anyio.sleep(TICK)
        try:
            if not self.draining or self._untold():
                self.draining = True
                await self._drain(window)
        finally:
            self._drains.release(holder)

    async def _drain(self, window: float) -> None:
        start = time.monotonic()
        count = len(self.sessions)
        told: set[Session] = set()  # in another event loop it takes a while until it shows
        self.report(events.DrainStarted(count, window))
        pace = Pace()
        per_second = max(count / window, 1.0) if window else math.inf
        async with anyio.create_task_group() as tasks:
            while self.draining and (untold := [session for session in self._untold() if session not in told]):
                if time.monotonic() - start < window:
                    untold = await self._victims.choose(untold, pace.due(per_second))
                told.update(untold)
                for number, session in enumerate(untold, 1):
                    tasks.start_soon(session.end, ServiceRestart("service restart", cause="drain", retry_after=1.0))
                    if number % _AT_ONCE == 0:
                        await anyio.lowlevel.checkpoint()
                await anyio.sleep(TICK)
        self.report(events.DrainFinished(len(told), time.monotonic() - start))

    def _untold(self) -> list[Session]:
        self._drop_lost()
        return [session for session in [*self.sessions] if not session.is_leaving]  # copied: other threads have some

    # What sessions need

    def session(self, scope: Scope, receive: Receive, send: Send) -> Session:
        """Return a session for one WebSocket scope."""
        loop = running_loop()
        if loop not in self._loops or self._ticks.is_lost:
            self._arrive(loop)
        kind = Session if self.rules.send_timeout is None else SendRememberingSession
        return kind(self, scope, receive, send)

    def _arrive(self, loop: Any) -> None:
        """Take note of another event loop, which may come in place of one that is gone."""
        self._drop_lost()
        if loop is not None:
            with COUNTING:
                self._loops.add(loop)
        if self._ticks.is_lost:
            self._rest()  # what the sensors knew is long past
            self._tick_if_needed()

    def _drop_lost(self) -> None:
        """End the sessions of event loops that were closed under them, and give back what they hold."""
        gone = {loop for loop in self._loops.copy() if EventLoop(loop).is_gone}
        if not gone:
            return
        with COUNTING:
            self._loops -= gone
            self._lifespans = [loop for loop in self._lifespans if loop not in gone]
        for places in [one for one in self.gate.entering.copy() if one.loop.is_among(gone)]:
            places.let_go()
        for session in [one for one in [*self.sessions] if one.loop.is_among(gone)]:
            session.lost()
        self.departures.drop(gone)

    def serves(self, scope: Scope) -> bool:
        """Whether ``scope`` belongs to a session of this guard that has begun."""
        return session_of(scope) in self.sessions

    def began(self, session: Session) -> None:
        """Take note of an admitted session."""
        self.sessions[session] = None
        self._timeouts.add(session)
        if not self._has_begun:
            self._has_begun = True
            if not self._lifespans:
                unused.used(self)
                unused.tell()
                tell_few_files(self)
        if self.settings.drain_on_sigterm and not self._lifespans and not self._has_warned:
            self._has_warned = True
            self.report(events.SignalLeftAlone("no lifespan has reached the middleware, to say that the server starts"))
        self._tick_if_needed()

    def leaves(self, session: Session) -> None:
        """Take note that an admitted session has ended, or is about to, while its handler still runs."""
        with COUNTING:
            if session in self.sessions:
                self._leaving.add(session)

    def over(self, session: Session) -> bool:
        """Take note that it is over; return whether that is news."""
        with COUNTING:
            if session not in self.sessions:
                return False
            del self.sessions[session]
            self._leaving.discard(session)
        self._queue.freed()
        self._tally.closed(session.closed_with)
        return True

    def spawn(self, function: Callable[..., Awaitable[object]], *arguments: object) -> None:
        """Run ``function`` in the background; what it raises is reported."""
        concurrency.spawn(self._contained, function, *arguments)

    async def _contained(self, function: Callable[..., Awaitable[object]], *arguments: object) -> None:
        try:
            await function(*arguments)
        except Exception as error:
            self.report(events.BackgroundFailed(name_of(function), error))

    def retry_after(self) -> float:
        """Take the next place in the retry queue; return the seconds until its turn."""
        return self._queue.hint()

    def may_refuse_by_close(self) -> bool:
        """Whether one more refusal may hold a socket until its peer answers the close."""
        return self.settings.max_refusals_per_second is None or self._refusals.take()

    @property
    def is_followed(self) -> bool:
        """Whether anybody wants to know how a session goes where nothing is wrong with it."""
        return bool(self._dispatcher.followers) or self._logs.is_detailed

    def report(self, event: events.Event) -> None:
        """Hand ``event`` to every observer that it is for."""
        self._dispatcher.report(event)

    def report_once(self, key: Hashable, event: events.Event) -> None:
        """Report the first of all events of one ``key``."""
        self._dispatcher.report_once(key, event)

    def _order_failed(self, error: Exception) -> None:
        self._dispatcher.failed_once("shed", "shed", error)

    # Background work

    @asynccontextmanager
    async def lifespan(self) -> AsyncGenerator[None]:
        """Do the background work while the application runs, whether it has sessions or not.

        :raises RuntimeError: if a gate cannot do its own here.
        """
        for gate in self._working_gates:
            gate.start()
        loop = running_loop()
        self._arrive(loop)
        with COUNTING:
            self._lifespans.append(loop)
            is_first = len(self._lifespans) == 1
        unused.tell()
        self._logs.tell_limits()
        tell_few_files(self)
        self._tick_if_needed()
        try:
            with drain_at_sigterm(self) if self.settings.drain_on_sigterm and is_first else nullcontext():
                yield
        finally:
            with COUNTING:
                if is_last := self._lifespans == [loop]:  # it is not there where this event loop was given up
                    self._lifespans.clear()
                elif loop in self._lifespans:
                    self._lifespans.remove(loop)
            if is_last:
                self._logs.sum_up(now=True)
                await self._stop_gates()

    def may_be_unused(self) -> None:
        """Say so, once, if no middleware has this guard."""
        if unused.used(self):
            self._is_unused()

    def is_unused(self) -> None:
        """Say, once, that no middleware has this guard, if it is to limit somebody."""
        if self._shown_gates and unused.used(self):
            self._is_unused()

    def _is_unused(self) -> None:
        limits = {name: getattr(self.settings, name) for name in LIMITS}
        described = [f"{name}={limit}" for name, limit in limits.items() if limit is not None]
        if self._own_gates:
            described.append(f"gate={self._own_gate_name}")
        problem = "no CloseCodeMiddleware has this guard: give it to one, as CloseCodeMiddleware(app, guard=guard)"
        self.report(events.SettingIgnored(f"Guard({', '.join(described)})", None, problem))

    async def _stop_gates(self) -> None:
        for gate in self._working_gates:
            try:
                with anyio.fail_after(STOP_TIMEOUT):
                    await gate.stop()
            except (Exception, asyncio.CancelledError) as error:  # this too: of a task that it has cancelled itself
                if isinstance(error, asyncio.CancelledError) and cancelled_from_outside():
                    raise
                self._dispatcher.failed_once(f"{gate.name}.stop", (id(gate), "stop"), error)

    def _is_needed(self) -> bool:
        return (
            bool(self._watchers)
            or self._logs.has_unsaid
            or self._saturation.is_watched
            or self._timeouts.is_needed
            or any(gate.is_watched for gate in self._working_gates)
        )

    def _keep_watch(self, _event: events.Event) -> None:
        """Have the ticker look after what an event has begun."""
        self._tick_if_needed()

    @property
    def _is_ticking(self) -> bool:
        return self._ticks.is_taken

    def _tick_if_needed(self) -> None:
        """Have the ticker run: here, or from a plain thread in an event loop where there is something to look after."""
        if self._is_ticking or not self._is_needed():
            return
        if running_loop() is None:
            self._tick_elsewhere()
        elif (holder := self._ticks.take()) is not None:
            self.spawn(self._tick_forever, holder)

    def _tick_elsewhere(self) -> None:
        for loop in self._loops.copy():
            other = EventLoop(loop)
            if not other.is_here and other.is_alive and other.call_soon(self._tick_if_needed):
                return

    async def _tick_forever(self, holder: EventLoop) -> None:
        try:
            last_used = time.monotonic()
            while self._is_needed() and self._ticks.is_held_by(holder):
                if self._lifespans or self.sessions:
                    last_used = time.monotonic()
                elif time.monotonic() - last_used > LINGER:
                    break
                self._tick()
                await self._timeouts.look()
                await anyio.sleep(TICK)
        finally:
            if self._ticks.release(holder):  # else another one has taken over
                self._logs.sum_up(now=True)
                self._rest()
                self._sample()
                if self._lifespans or self.sessions:
                    self._tick_elsewhere()  # the sessions of other event loops go on

    def _rest(self) -> None:
        """Have the sensors forget what they knew: nobody samples for now."""
        self._lag.stop()
        for gate in self._working_gates:
            gate.pause()

    def _tick(self) -> None:
        self._drop_lost()
        self._logs.sum_up()
        self._saturation.look()
        self._lag.sample()
        self._sample()
        for gate in self._working_gates:
            self._ask(gate, gate.sample, bool, default=False)
            for session in self._ask(gate, gate.expired, _listed, default=_NOBODY):
                self._end_soon(session, gate)
        if self.settings.shed == "never":
            return
        excess, fullest = max(
            ((self._ask(gate, gate.excess, int, default=0), gate) for gate in self._working_gates),
            key=lambda each: each[0],
        )
        excess -= len(self._leaving)
        for gate, shedder in self._round_shedders.items():
            if (remaining := shedder.due(self.sessions, self._leaving, self.settings.shed_grace)) > excess:
                excess, fullest = remaining, gate
        to_shed = [
            (session, gate)
            for gate in self._working_gates
            for session in self._ask(gate, gate.to_shed, _listed, default=_NOBODY)
            if not session.is_leaving
        ]
        if excess > 0 or to_shed:
            due = self._pace.due(self.settings.shed_rate or max(len(self.sessions) / 100, 1.0))
            if due > 0:
                self._in_background(self._shed, to_shed[:due], min(excess, due - len(to_shed)), fullest)
        elif self.settings.shed == "idle" and time.monotonic() - self._looked_at > _LOOK:
            self._looked_at = time.monotonic()
            self._in_background(self._victims.look, self.sessions)

    def _sample(self) -> None:
        for watcher in self._watchers:
            if isinstance(watcher, events.SamplingObserver):
                self._ask(watcher, watcher.sample, bool, default=False)

    def _ask(
        self,
        asked: GateBase | events.SamplingObserver,
        question: Callable[[], _Answer],
        read: Callable[[_Answer], _Read],
        *,
        default: _Read,
    ) -> _Read:
        """Return what a gate or an observer answers, or ``default`` where it fails."""
        try:
            answer = question()
            reject_coroutine(answer)
            return read(answer)
        except Exception as error:
            who = asked.name if isinstance(asked, GateBase) else type(asked).__name__
            what = getattr(question, "__name__", "")
            self._dispatcher.failed_once(f"{who}.{what}", (id(asked), what), error)
            return default

    def _in_background(self, function: Callable[..., Awaitable[object]], *arguments: object) -> None:
        """Run ``function``, which takes many turns of the event loop, unless the last one still runs."""
        if (holder := self._is_busy.take()) is not None:
            self.spawn(self._busy_with, holder, function, *arguments)

    async def _busy_with(
        self, holder: EventLoop, function: Callable[..., Awaitable[object]], *arguments: object
    ) -> None:
        try:
            await function(*arguments)
        finally:
            self._is_busy.release(holder)

    async def _shed(self, to_shed: list[tuple[Session, GateBase]], count: int, fullest: GateBase) -> None:
        chosen = await self._victims.choose(self.sessions, count)
        if (shedder := self._round_shedders.get(fullest)) is not None:
            shedder.record_shed(chosen)
        for number, (session, gate) in enumerate([*to_shed, *((one, fullest) for one in chosen)], 1):
            self._end_soon(session, gate)
            if number % _AT_ONCE == 0:
                await anyio.lowlevel.checkpoint()

    def _end_soon(self, session: Session, gate: GateBase) -> None:
        self.leaves(session)  # at once: in another event loop it takes a while, and the next tick counts again
        session.end_soon(_refusal_of(gate))

    def _forked(self) -> None:
        """Begin anew in a child process: sessions, event loops, counts and drains are the parent's."""
        self.gate.is_inherited = True
        self.gate = AllOf(*self.gate.gates, failure=self.gate.failure)
        self.sessions.clear()
        self._leaving.clear()
        self.departures = Departures()
        self._loops.clear()
        self._lifespans.clear()
        for claim in (self._ticks, self._is_busy, self._drains):
            claim.forget()
        self.draining = self._has_warned = False
        for part in (self._tally, self._saturation, self._logs, self._timeouts):
            part.forget()
        self._rest()


_guards: weakref.WeakSet[Guard] = weakref.WeakSet()


def _forked() -> None:
    for guard in [*_guards]:
        guard._forked()  # noqa: SLF001 - its own


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


class Draining(GateBase):
    """The first gate: refuses everybody while its guard drains."""

    cause = "drain"
    is_overload = False

    def __init__(self, guard: Guard) -> None:
        super().__init__("draining")
        self._guard = guard

    def admit(self, _session: Session, /) -> AbstractAsyncContextManager[None]:
        """Let the session pass, or refuse it with 1012."""
        if self._guard.draining:
            raise ServiceRestart("service restart", cause="drain", retry_after=1.0)
        return FREE


def _state_of(gate: GateBase) -> events.GateState:
    return {
        "name": gate.name,
        "cause": _refusal_of(gate).cause or "unknown",
        "usage": _number(lambda: gate.usage),
        "limit": _number(lambda: gate.limit),
        "shadow": isinstance(gate, Shadow),
    }


def _number(read: Callable[[], float | None]) -> float | None:
    """Return the number; None for none, and where a gate of the user's raises."""
    try:
        return finite(read())
    except Exception:
        return None


def _refusal_of(gate: GateBase) -> TryAgainLater:
    """Return what ends a session for ``gate``."""
    try:
        cause, is_overload = gate.cause, gate.is_overload
    except Exception:  # of one of the user's
        cause, is_overload = "shed", True
    return TryAgainLater(cause=cause if isinstance(cause, str) else "shed", is_overload=is_overload is not False)


def _listed(sessions: Iterable[Session]) -> Sequence[Session]:
    return [*(sessions or ())]  # of a gate of the user's that returns nothing where there is nobody


def _checked_observers(observers: Iterable[events.Observer]) -> list[events.Observer]:
    try:
        observers = [*observers]
    except TypeError:
        raise TypeError(
            f"observers={shown(observers)} is no list; give one of functions, as observers=[print]"
        ) from None
    for observer in observers:
        if isinstance(observer, type):
            raise TypeError(f"observers: {shown(observer)} is a class; give an observer, as {observer.__name__}()")
        if not callable(observer):
            raise TypeError(f"observers: {shown(observer)} cannot be called; an observer is a function of an event")
    return observers


_Arguments = ParamSpec("_Arguments")
_Returned = TypeVar("_Returned")


def _weak(method: Callable[_Arguments, _Returned]) -> Callable[_Arguments, _Returned | None]:
    """Return a function that does what ``method`` does as long as its object lives, then nothing."""
    reference = weakref.WeakMethod(method)

    def call_if_alive(*arguments: _Arguments.args, **options: _Arguments.kwargs) -> _Returned | None:
        alive = reference()
        return None if alive is None else alive(*arguments, **options)

    return call_if_alive
