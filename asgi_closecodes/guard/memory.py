"""Shedding under memory pressure."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Mapping

from asgi_closecodes.events import Observer, SheddingFutile
from asgi_closecodes.gates import GateBase, Memory, Pressure
from asgi_closecodes.gates.rounds import Phase
from asgi_closecodes.session import Session
from asgi_closecodes.session.cycles import break_cycles
from asgi_closecodes.session.protocol import CLOSE_TIMEOUT_S

from . import give_back


def round_shedders(
    gates: Iterable[GateBase],
    existing: Mapping[GateBase, RoundShedder],
    sessions: Collection[Session],
    report: Observer,
) -> dict[GateBase, RoundShedder]:
    """Return a driver for each gate that sheds in rounds; reuse those in ``existing``.

    A new driver measures the memory used without sessions, if none is open.
    """
    shedders: dict[GateBase, RoundShedder] = {}
    for gate in gates:
        if isinstance(gate, Pressure) and gate.rounds is not None:
            shedders[gate] = existing.get(gate) or RoundShedder(gate, report)
            if gate not in existing and not sessions:
                shedders[gate].measure_baseline()
    return shedders


class RoundShedder:
    """Driver of the rounds of a gate: knows the sessions of the round, gives memory back, reports.

    :param gate: one with ``rounds``.
    :param report: gets events.
    """

    __slots__ = ("_has_had_sessions", "_report", "_rounds", "_shed", "gate")

    def __init__(self, gate: Pressure, report: Observer) -> None:
        assert gate.rounds is not None
        self.gate = gate
        self._rounds = gate.rounds
        self._report = report
        self._shed: list[Session] = []
        self._has_had_sessions = False

    def measure_baseline(self) -> None:
        """Record the current usage as that without sessions.

        The sensor is stopped then: without a lifespan nobody samples it before the first session.
        """
        sensor = self.gate.sensor
        assert isinstance(sensor, Memory)
        with contextlib.suppress(Exception):  # of a user's own sensor: the ticker reports it
            sensor.sample()
        self._rounds.baseline = self._usage()
        sensor.stop()

    def _usage(self) -> float | None:
        try:
            return self.gate.usage
        except Exception:
            return None

    def due(self, sessions: Collection[Session], leaving: Collection[object], shed_grace: float) -> int:
        """Return how many sessions are to be shed now; called at each tick.

        :param sessions: those that are not over.
        :param leaving: those of them that are about to end.
        :param shed_grace: seconds that the handler of one that was shed has before it is cancelled.
        """
        usage = self._usage()
        if sessions:
            self._has_had_sessions = True
        elif usage is not None and not self._has_had_sessions:
            self._rounds.baseline = usage  # the application may have grown since it was built
        before = self._rounds.phase
        phase = self._rounds.advance(
            usage,
            shed_above=self.gate.shed_above,
            limit=self.gate.refuse_above,
            open_sessions=len(sessions) - len(leaving),
            unreleased=sum(session in sessions for session in self._shed) if before is Phase.RELEASING else 0,
            release_timeout=shed_grace + CLOSE_TIMEOUT_S,
            is_returning=give_back.is_trimming(),
        )
        if phase is not before:
            if phase is Phase.RETURNING:
                self._give_back()
            elif phase is Phase.FUTILE:
                gate = self.gate
                self._report(SheddingFutile(gate.name, gate.cause, usage, gate.limit, self._rounds.shed))
        return self._rounds.remaining

    def record_shed(self, sessions: Iterable[Session]) -> None:
        """Add ``sessions``, which were told to end, to the round."""
        shed = [*sessions]
        self._shed += shed
        self._rounds.record_shed(len(shed))

    def _give_back(self) -> None:
        for session in self._shed:
            break_cycles(session)
        self._shed.clear()
        if self._rounds.has_been_poor:  # else it is not needed, and would block the event loop
            give_back.collect_garbage()
        give_back.trim()
