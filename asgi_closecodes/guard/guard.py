"""Per-process state: live sessions, gates, settings, background work, observers."""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Hashable, Iterable, Sequence
from contextlib import asynccontextmanager, nullcontext, suppress
from functools import partial
from typing import Any

from starlette.types import Receive, Scope, Send

from asgi_closecodes import concurrency, events
from asgi_closecodes.concurrency import COUNTING, running_loop
from asgi_closecodes.exceptions import ExceptionMapping, TooManyMessages, checked_mapping
from asgi_closecodes.gates import AllOf, Gate, GateBase, LoopLag, Shadow
from asgi_closecodes.gates.all_of import HeldPermits, Permits
from asgi_closecodes.gates.base import as_gate, name_gates
from asgi_closecodes.gates.shadow import unshadowed
from asgi_closecodes.logs import LogObserver
from asgi_closecodes.naming import name_of, shown
from asgi_closecodes.session import Departures, Rules, SendRememberingSession, Session
from asgi_closecodes.session.protocol import HandlerProtocol, session_in
from asgi_closecodes.settings import Settings, checked_change, reject_misplaced_settings, unknown_settings
from asgi_closecodes.settings.gates import gates_of, set_limits

from . import draining, sigterm, unused
from .activity import ACTIVITY_INTERVAL_S, Activity
from .busy import BusySessions
from .close_sessions import close_sessions
from .counters import Counters
from .deadlines import Deadlines
from .dispatch import Dispatcher, checked_observers, weak
from .draining import Draining
from .gates import state_of, stop_all
from .headroom import headroom
from .loops import EventLoops
from .memory import round_shedders
from .message_rates import MessageRates
from .open_files import warn_few_files
from .rejection import Mode, Rejection
from .retry_after import RetryQueue
from .saturation import Saturation
from .shed_order import ShedOrder
from .shedding import Shedding
from .stalls import CAN_LOOK, StallWatch, mark_task
from .ticker import Job, Ticker
from .timeouts import SessionTimeouts


class Guard:
    """Per-process state behind the middleware. Share one to inspect it, and to change settings while running.

    :param settings: by default read from the environment.
    :param gate: asked after the gates that the settings describe.
    :param exceptions: what exceptions of the application mean: a close code, a Close, or a function of the
        exception that returns either. Subclasses are included, the most specific class counts.
    :param observers: called with every event (see :mod:`asgi_closecodes.events`), beside the logs.
    :param subprotocol: chooses one of the offered subprotocols where a refused handshake is accepted only
        to be closed; by default the first.
    :raises SettingsError: if the settings cannot be used.
    :raises ValueError: if ``exceptions`` cannot be used, or two gates have been given the same name.
    :raises TypeError: if ``settings`` or ``gate`` is of another type, an observer cannot be called, or settings are
        given here.
    """

    @reject_misplaced_settings
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
            raise TypeError(f"settings must be Settings, not {shown(settings)}; use Settings(max_sessions=...)")
        self._own_gates = () if gate is None else AllOf(as_gate(gate, "gate")).gates
        self._own_gate_name = None if gate is None else type(gate).__name__
        if not (subprotocol is None or callable(subprotocol)):
            raise TypeError(
                f"subprotocol={shown(subprotocol)} cannot be called; use a function that chooses one of those offered, "
                "as subprotocol=lambda offered: offered[0]"
            )
        observers = checked_observers(observers)
        self.has_observers = bool(observers)
        """Whether the user has given observers, beside logs and counts."""
        self.settings = Settings() if settings is None else settings
        self.exceptions = checked_mapping(exceptions)
        self.subprotocol = subprotocol
        self.sessions: dict[Session, None] = {}
        """The admitted sessions that are not over, in the order of their arrival."""
        self._leaving: set[HandlerProtocol] = set()
        self.departures = Departures(self.spawn)
        self._counters = Counters()
        self._saturation = Saturation(self.report, self._is_full)
        # Weak: the finalizer that flushes the logs at exit must not keep the guard alive.
        self._logs = LogObserver(report=weak(self.report) if observers else None, wake=weak(self._start_ticker))
        weakref.finalize(self, self._logs.flush_summaries, now=True)
        own: dict[Callable[[Any], None], Iterable[type]] = {
            self._counters.refused: (events.SessionRefused,),
            self._counters.shed: (events.SessionShed,),
            self._counters.failed: (events.SessionFailed,),
            self._logs: LogObserver.WRITTEN,
            self._saturation.refused: (events.SessionRefused,),
            self._start_ticker: (events.GateSaturated,),
        }
        self._dispatcher = Dispatcher(own, observers)
        self._lag = LoopLag(half_life=15.0)  # longer than the gate's, so that who polls rarely still sees a lag
        self.gate = AllOf()
        self._gates: dict[str, GateBase] = {}
        self._working_gates: tuple[GateBase, ...] = ()
        self._queue = RetryQueue()
        self._rejection = Rejection(self._dispatcher.failed_once)
        self._timeouts = SessionTimeouts(self.sessions)
        self.deadlines = Deadlines(self.sessions, self._start_ticker)
        self.message_rates = MessageRates(self.sessions)
        self._activity = Activity()
        self._stalls = StallWatch(self.sessions, self._is_used, self.report)
        order_failed = partial(self._dispatcher.failed_once, "shed", "shed")
        self.busy_sessions = BusySessions(self.sessions)
        shed_order = ShedOrder("newest", order_failed, self._activity.last_message_at, busy=self.busy_sessions)
        self._shedding = Shedding(self.sessions, self._leaving, self.on_closing, shed_order, self._dispatcher)
        self._draining = Draining(self.sessions, self._open_sessions, self.busy_sessions, shed_order, self.report)
        self._loops = EventLoops()
        self._ticker = Ticker(self._jobs(), self._loops, is_used=self._is_used, failed=self._job_failed)
        self._has_begun = self._has_warned = False
        self._apply(self.settings)
        _guards.add(self)
        self._report_settings()
        self._warn_stalls_unseen()
        self._dispatcher.watch(weak(self.snapshot))
        unused.add(self)

    def _report_settings(self) -> None:
        for name, nearest in unknown_settings().items():
            self.report(events.UnknownSetting(name, nearest))
        self.report(events.LimitsChanged(self.settings.limits()))
        for name in self.settings.overridden():
            problem = "it is given in code too, which comes first: take one of the two away"
            self.report(events.SettingIgnored(name, problem))

    def _apply(self, settings: Settings) -> None:
        # What may fail comes first, and visible changes last: all or nothing.
        rules = Rules(
            error_code=settings.error_code,
            try_again_code=settings.try_again_code,
            deliver_early_closes=settings.deliver_early_closes,
            reraise=settings.reraise,
            debug=settings.debug,
            shed_grace=settings.shed_grace,
            send_timeout=settings.send_timeout,
            cancel_after_disconnect=settings.cancel_after_disconnect,
            abandon_after=settings.abandon_after,
        )
        gates = gates_of(settings, self._gates)
        asked = {name: Shadow(gate) if name in settings.shadow else gate for name, gate in gates.items()}
        working = (*asked.values(), *self._own_gates)
        name_gates(working, reserved={draining.NAME, TooManyMessages.gate})
        shedders = round_shedders(working, self._shedding.round_shedders, self.sessions, self.report)
        for gate in working:
            gate.attach(self.report)
        self._logs.configure(
            path=settings.log_path,
            client=settings.log_client,
            burst=settings.log_burst,
            per_minute=settings.log_per_minute,
        )
        set_limits(gates, settings)
        self.settings = settings
        self.rules = rules
        self._timeouts.apply(settings)
        self.deadlines.apply(settings)
        # Otherwise only some events need the ticker, and start it. What a user's gate needs may change at any time.
        self._may_need_ticks = (
            bool(self._own_gates)
            or self._timeouts.is_needed
            or self.deadlines.is_needed
            or self._dispatcher.is_watched()
            or any(gate.is_watched for gate in gates.values())
        )
        self._stalls.apply(settings.log_stalls)
        self.message_rates.apply(settings)
        self._gates = gates
        dropped = {*map(unshadowed, self._working_gates)} - {*map(unshadowed, working)}
        self._working_gates = working
        self.gate.replace(working, self.sessions)
        self._stop_soon(dropped)
        self.gate.failure = settings.gate_failure
        self._queue.cap = settings.max_retry_after
        rate = settings.handshakes_per_second
        self._queue.admits_per_second = math.inf if rate is None else max(rate, 0.1)
        self._rejection.apply(settings)
        self._shedding.apply(settings, working, shedders)

    def update(self, **changes: Any) -> None:
        """Change settings while running: ``guard.update(max_sessions=500)``. All changes are made, or none.

        Sessions above a lowered limit are shed, see the setting ``shed_order``.

        :raises SettingsError: if the settings cannot be used, or not be changed while the application runs.
        :raises ValueError: if a gate of one's own has been given the name of a limit that is set.
        """
        with COUNTING:  # else one of two threads that change settings would lose its change
            before = self.settings
            try:
                settings = checked_change(before, before.changed(**changes), is_running=bool(self._loops.lifespans))
            except ValueError:
                changes.clear()  # a traceback keeps it, and there may be a password in it
                raise
            try:
                self._apply(settings)
            except BaseException:
                with suppress(Exception):  # the first error counts
                    self._apply(before)
                raise
        changed = {name: getattr(settings, name) for name in changes}
        self.report(events.LimitsChanged(settings.limits(), changed))
        self._warn_stalls_unseen()
        self._ticker.start_if_needed()
        self._loops.call_all(self._stalls.join)

    def _warn_stalls_unseen(self) -> None:
        if self.settings.log_stalls is not None and not CAN_LOOK:
            problem = "the frames of another thread cannot be read on free-threaded Python"
            self.report_once("log_stalls", events.SettingIgnored("log_stalls", problem))

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
            "busy": self.busy_sessions.count(self._leaving),
            "draining": self._draining.is_on,
            "drain": self._draining.state(open_sessions),
            "headroom": headroom(self._working_gates),
            "loop_lag": self._lag.value(),
            "gates": [*map(state_of, self._working_gates), *self.message_rates.state()],
            **self._counters.counts(),
        }

    def _is_full(self, name: str) -> bool:
        room = headroom(gate for gate in self._working_gates if gate.name == name)
        return room is not None and room <= 0

    async def drain(self, window: float | None = None, patience: float | None = None) -> None:
        """Refuse new sessions with 1012, and close the open ones with 1012, evenly over ``window``.

        For ``patience`` seconds those in a block of :meth:`Session.busy` are spared; each leaves when its block has
        ended. Then the rest is closed over ``window``. It returns when all are closed. A second call waits for it.

        :param window: seconds, by default the setting ``drain_window``; 0 closes all at once.
        :param patience: seconds, by default the setting ``drain_patience``.
        :raises ValueError: if one of them is negative or not finite.
        """
        await self._draining.drain(
            self.settings.drain_window if window is None else window,
            self.settings.drain_patience if patience is None else patience,
        )

    async def close_sessions(self, where: Callable[[Session], object], code: int, reason: str = "") -> int:
        """Close the open sessions that ``where`` chooses, as to sign a user out or to revoke a token.

        It returns how many, once all are closed: a peer that reads nothing takes up to 10 s. Sessions of other event
        loops are closed in theirs. Handlers see what they see when their session is shed.

        :param where: called with each session. One for which it raises stays open; the first error is logged.
        :param code: close code, as 3000 for "authenticate again", 3003 for "forbidden".
        :param reason: close reason, cut to 123 bytes.
        :raises ValueError: if ``code`` must not be sent.
        :raises TypeError: if ``where`` cannot be called.
        """
        return await close_sessions(self.sessions, where, code, reason, self.report)

    @property
    def draining(self) -> bool:
        """Whether new sessions are refused because this process is about to stop; ask it for readiness.

        Set it to False to call a drain off: sessions that are open stay, and new ones are admitted.
        """
        return self._draining.is_on

    @draining.setter
    def draining(self, draining: bool) -> None:
        self._draining.is_on = draining

    def _open_sessions(self) -> list[Session]:
        self._drop_lost()
        return [session for session in [*self.sessions] if not session.is_leaving]  # copied: other threads add some

    # What sessions need

    def session(self, scope: Scope, receive: Receive, send: Send) -> Session:
        """Return a session for one WebSocket scope."""
        kind = Session if self.rules.send_timeout is None else SendRememberingSession
        session = kind(self, scope, receive, send)
        loop, ticker = session.server_loop, self._ticker
        is_ticking = ticker.loop is loop or not self._may_need_ticks or ticker.is_running
        if not is_ticking or loop not in self._loops.known:
            self._arrive(loop)
        return session

    def _arrive(self, loop: Any) -> None:
        """Register an event loop, clean up after those that are gone, and start the ticker if needed."""
        self._drop_lost()
        if loop is not None:
            self._loops.add(loop)
        if self._ticker.is_lost:
            self._pause_sensors()
        self._ticker.start_if_needed()

    def _drop_lost(self) -> None:
        """End the sessions of event loops that were closed under them, and release their permits."""
        if not (gone := self._loops.drop_gone()):
            return
        for permits in [one for one in self.gate.entering.copy() if one.loop.is_among(gone)]:
            permits.let_go()
        for session in [one for one in [*self.sessions] if one.loop.is_among(gone)]:
            session.lost()
        self.departures.drop(gone)

    def serves(self, scope: Scope) -> bool:
        """Whether ``scope`` belongs to a session of this guard that has begun."""
        return "closecodes" in (scope.get("extensions") or ()) and session_in(scope) in self.sessions

    def admit(self, session: Session) -> Awaitable[None] | None:
        """Ask the gates, and admit the session; return what has to be awaited if a gate waits.

        :raises TryAgainLater: if a gate refuses it, or while it drains.
        """
        if self._draining.is_on:
            self._draining.check()
        return self.gate.take(session, self._admit)

    def _admit(self, session: Session, permits: HeldPermits) -> None:
        if self._draining.is_on:  # by now
            self._draining.check()
        session.prepare()
        session.permits = permits
        self.sessions[session] = None

    def rekey(self, session: Session) -> None:
        """Have the gates that count by key count an admitted session under its new key.

        :raises TryAgainLater: if one has no room under that key.
        """
        with COUNTING:
            permits = Permits(self.gate, session, self.gate.gates, session.permits or ())
        permits.rekey()

    def on_admitted(self, session: Session) -> None:
        """Begin what is done about an admitted session."""
        if self._timeouts.is_needed:
            self._timeouts.add(session)
        if self.deadlines.is_used:
            self.deadlines.add(session)
            self._start_ticker()
        if self._stalls.is_on:
            mark_task(session)
            self._stalls.join()
        if self.message_rates.rate is not None:
            self.message_rates.add(session)
        if not self._has_begun:
            self._has_begun = True
            if not self._loops.lifespans:
                unused.discard(self)
                unused.warn()
                warn_few_files(self)
        if not self._loops.lifespans and self.settings.drain_on_sigterm and not self._has_warned:
            self._has_warned = True
            sigterm.arm(self)

    def on_closing(self, session: HandlerProtocol) -> None:
        """Count an admitted session as leaving: it has ended or is about to, while its handler still runs."""
        if session in self.sessions:
            self._leaving.add(session)
            if session not in self.sessions:  # another thread has found its event loop gone, at this moment
                self._leaving.discard(session)

    def on_closed(self, session: Session) -> tuple[tuple[GateBase, ...], HeldPermits] | None:
        """Forget a session that is over; return the gates and its permits, None if that was done before."""
        with COUNTING:
            permits, session.permits = session.permits or (), None  # no change of the gates comes in between
            if session not in self.sessions:
                return None
            held = self.gate.gates, permits
            del self.sessions[session]
            self._leaving.discard(session)
            self.busy_sessions.drop(session)
            self._queue.freed()
            if (close := session.closed_with) is not None:
                self._counters.closed(close)
        if self.deadlines.is_used:
            self.deadlines.discard(session)
        return held

    def spawn(self, function: Callable[..., Awaitable[object]], *arguments: object) -> None:
        """Run ``function`` in the background; report an exception that it raises."""
        concurrency.spawn(self._contained, function, *arguments)

    async def _contained(self, function: Callable[..., Awaitable[object]], *arguments: object) -> None:
        try:
            await function(*arguments)
        except Exception as error:
            self.report(events.BackgroundFailed(name_of(function), error))

    def retry_after(self) -> float:
        """Take the next turn in the retry queue; return the seconds until then."""
        return self._queue.hint()

    def rejection_mode(self, session: HandlerProtocol, retry_after: float | None) -> Mode:
        """Decide how to reject a handshake that has no answer yet.

        :param retry_after: the hint if a gate refuses; else None.
        """
        return self._rejection.mode(session, retry_after)

    def is_followed(self) -> bool:
        """Whether somebody wants the events of sessions without a fault: an observer, or the log at its level."""
        return self.has_observers or self._logs.is_detailed()

    def report(self, event: events.Event) -> None:
        """Hand ``event`` to every observer of its class."""
        self._dispatcher.report(event)

    def report_once(self, key: Hashable, event: events.Event) -> None:
        """Report only the first event of each ``key``."""
        self._dispatcher.report_once(key, event)

    # Background work

    @asynccontextmanager
    async def lifespan(self) -> AsyncGenerator[None]:
        """Do the background work for as long as the application runs, with sessions or without.

        :raises RuntimeError: if a gate cannot start here.
        """
        for gate in self._working_gates:
            gate.start()
        loop = running_loop()
        is_first = self._loops.begin_lifespan(loop)
        self._arrive(loop)
        unused.warn()
        self._logs.log_limits()
        warn_few_files(self)
        self._stalls.join()
        try:
            with sigterm.drain_at_sigterm(self) if self.settings.drain_on_sigterm and is_first else nullcontext():
                yield
        finally:
            if self._loops.end_lifespan(loop):
                self._stalls.stop()
                self._logs.flush_summaries(now=True)
                await stop_all(self._working_gates, self._dispatcher)
                await self._ticker.stop_if_unused()

    def _stop_soon(self, gates: Collection[GateBase]) -> None:
        """Stop gates that are no longer asked, in an event loop that may run their tasks."""
        if not gates:
            return
        if running_loop() is None:
            self._loops.call_elsewhere(self.spawn, stop_all, gates, self._dispatcher)
        else:
            self.spawn(stop_all, gates, self._dispatcher)

    def warn_if_unused(self) -> None:
        """Report once that no middleware has this guard, if that is so."""
        if unused.discard(self):
            self.report(unused.event(self.settings, self._own_gate_name))

    @property
    def has_limits(self) -> bool:
        """Whether any gate works."""
        return bool(self._working_gates)

    def _jobs(self) -> Iterable[Job]:
        """Return the background work, in the order in which a tick does it."""
        logs, shedding, dispatcher = self._logs, self._shedding, self._dispatcher
        return (
            Job("lost sessions", self._drop_lost, None),
            Job(
                "logs",
                logs.flush_summaries,
                lambda: logs.has_pending_summaries,
                finish=partial(logs.flush_summaries, now=True),
            ),
            Job("saturation", self._saturation.check, lambda: self._saturation.is_watched),
            Job("loop lag", self._lag.sample, None, finish=self._lag.stop),
            Job("gates", shedding.sample, shedding.is_watched, finish=shedding.pause),
            Job("expired sessions", shedding.end_expired, shedding.is_watched),
            Job("shedding", shedding.shed, shedding.is_watched),
            Job(
                "activity",
                lambda: partial(self._activity.update, self.sessions),
                shedding.needs_activity,
                ACTIVITY_INTERVAL_S,
            ),
            Job("timeouts", lambda: self._timeouts.check, lambda: self._timeouts.is_needed),
            Job("deadlines", self.deadlines.check, lambda: self.deadlines.is_needed),
            Job("observers", dispatcher.sample, dispatcher.is_watched, finish=dispatcher.sample),
        )

    def _is_used(self) -> bool:
        return bool(self._loops.lifespans or self.sessions or self.gate.entering)

    def _job_failed(self, name: str, error: BaseException) -> None:
        self.report_once(("job", name), events.BackgroundFailed(name, error))

    def _start_ticker(self, _event: events.Event | None = None) -> None:
        """Start the ticker: a session or an event may need it."""
        self._ticker.start_if_needed()

    def _pause_sensors(self) -> None:
        """Have the sensors forget their last values, which are out of date."""
        self._lag.stop()
        self._shedding.pause()

    def _forget(self) -> None:
        """Reset this guard in a child process: sessions, event loops, counts and drains are the parent's."""
        self.gate.is_inherited = True
        self.gate = AllOf(*self.gate.gates, failure=self.gate.failure)
        self.sessions.clear()
        self._leaving.clear()
        self.departures = Departures(self.spawn)
        self._has_warned = False
        for part in (
            self._loops, self._ticker, self._draining, self._counters, self._saturation, self._logs, self._timeouts,
            self.deadlines,
            self._rejection,
            self.busy_sessions,
        ):  # fmt: skip
            part.forget()
        self._pause_sensors()


_guards: weakref.WeakSet[Guard] = weakref.WeakSet()


def _forked() -> None:
    for guard in [*_guards]:
        guard._forget()  # noqa: SLF001 - its own


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
