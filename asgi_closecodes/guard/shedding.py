"""Shedding of open sessions: those that have expired, those that a gate names, those above its limit."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from functools import partial

import anyio.lowlevel

from asgi_closecodes.gates import GateBase
from asgi_closecodes.session import Session
from asgi_closecodes.settings import Settings
from asgi_closecodes.token_bucket import TokenBucket

from .dispatch import Dispatcher
from .gates import refusal_of
from .memory import RoundShedder
from .shed_order import ShedOrder

ENDS_A_TURN = 25
"""Sessions that begin to end in one turn of the event loop; more would delay the others."""

_NOBODY: Sequence[Session] = ()


class Shedding:
    """Asks the gates, and ends sessions at the pace of the setting ``shed_rate``.

    :param sessions: the admitted ones that are not over.
    :param leaving: those of them that are about to end.
    :param on_closing: called at once for each session that will end; in another event loop that begins only later.
    :param shed_order: chooses who goes.
    :param dispatcher: told of gates that fail.
    :param clock: monotonic seconds.
    """

    def __init__(
        self,
        sessions: Collection[Session],
        leaving: Collection[object],
        on_closing: Callable[[Session], object],
        shed_order: ShedOrder,
        dispatcher: Dispatcher,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sessions = sessions
        self._leaving = leaving
        self._on_closing = on_closing
        self._shed_order = shed_order
        self._dispatcher = dispatcher
        self._pace = TokenBucket(0, 0, is_full=False, clock=clock)
        self._settings = Settings.model_construct()
        self._gates: tuple[GateBase, ...] = ()
        self.round_shedders: Mapping[GateBase, RoundShedder] = {}

    def apply(
        self, settings: Settings, gates: tuple[GateBase, ...], round_shedders: Mapping[GateBase, RoundShedder]
    ) -> None:
        """Shed for ``gates`` from now on, in rounds for those with ``round_shedders``."""
        self._settings = settings
        self._gates = gates
        self.round_shedders = round_shedders
        if settings.shed_order != "never":
            self._shed_order.order = settings.shed_order

    def is_watched(self) -> bool:
        """Whether a gate may want sessions to leave, or to be sampled."""
        return any(gate.is_watched for gate in self._gates)

    def needs_activity(self) -> bool:
        """Whether the shed order needs the time of each last message."""
        return self._settings.shed_order == "idle" and self.is_watched()

    def sample(self) -> None:
        """Have the gates sample what they measure."""
        for gate in self._gates:
            self._dispatcher.ask(gate, gate.sample, bool, default=False)

    def pause(self) -> None:
        """Have the gates forget their samples, since nobody samples for now."""
        for gate in self._gates:
            self._dispatcher.ask(gate, gate.pause, bool, default=False)

    def end_expired(self) -> None:
        """End the sessions that gates say have expired, whatever ``shed_order`` says."""
        for gate in self._gates:
            for session in self._dispatcher.ask(gate, gate.expired, _listed, default=_NOBODY):
                self._end_soon(session, gate)

    def shed(self) -> Callable[[], Awaitable[None]] | None:
        """Return a function that sheds the sessions whose turn it is; None if there are none."""
        if self._settings.shed_order == "never":
            return None
        excess, fullest = self._excess()
        to_shed = [
            (session, gate)
            for gate in self._gates
            for session in self._dispatcher.ask(gate, gate.to_shed, _listed, default=_NOBODY)
            if not session.is_leaving
        ]
        if not to_shed and excess <= 0:
            return None
        self._pace.per_second = self._pace.burst = self._settings.shed_rate or max(len(self._sessions) / 100, 1.0)
        if (due := self._pace.take_all()) <= 0:
            return None
        return partial(self._end, to_shed[:due], min(excess, due - len(to_shed)), fullest)

    def _excess(self) -> tuple[int, GateBase | None]:
        """Return how many sessions are above a limit, and the gate that is furthest above its own."""
        excess, fullest = max(
            ((self._dispatcher.ask(gate, gate.excess, int, default=0), gate) for gate in self._gates),
            key=lambda each: each[0],
            default=(0, None),
        )
        excess -= len(self._leaving)
        for gate, shedder in self.round_shedders.items():
            if (remaining := shedder.due(self._sessions, self._leaving, self._settings.shed_grace)) > excess:
                excess, fullest = remaining, gate
        return excess, fullest

    async def _end(self, to_shed: list[tuple[Session, GateBase]], count: int, fullest: GateBase | None) -> None:
        ending = to_shed
        if fullest is not None:
            chosen = await self._shed_order.choose(self._sessions, count)
            if (shedder := self.round_shedders.get(fullest)) is not None:
                shedder.record_shed(chosen)
            ending = [*to_shed, *((session, fullest) for session in chosen)]
        for number, (session, gate) in enumerate(ending, 1):
            self._end_soon(session, gate)
            if number % ENDS_A_TURN == 0:
                await anyio.lowlevel.checkpoint()

    def _end_soon(self, session: Session, gate: GateBase) -> None:
        self._on_closing(session)
        session.schedule_close(refusal_of(gate))


def _listed(sessions: Iterable[Session]) -> Sequence[Session]:
    return [*(sessions or ())]  # of a gate of the user's that returns nothing where there is nobody
