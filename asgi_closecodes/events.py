"""Events: one frozen dataclass each (:mod:`.frozen`), passed to every observer.

Logs, metrics and traces are observers like a user's own: callables that take an event.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Any, ClassVar, Literal, Protocol, TypeAlias, TypedDict, runtime_checkable

from .codes import Close
from .frozen import frozen

__all__ = [
    "BackgroundFailed",
    "CallbackFailed",
    "CloseFailed",
    "CloseRepaired",
    "ClusterFallback",
    "ClusterMisconfigured",
    "ClusterRecovered",
    "ClusterRelearning",
    "ClusterSyncFailed",
    "ClusterSynced",
    "ClusterUnreachable",
    "DrainFinished",
    "DrainStarted",
    "DrainState",
    "DrainWindowTooLong",
    "Event",
    "FewFiles",
    "GateFailed",
    "GateRecovered",
    "GateSaturated",
    "GateState",
    "LimitsChanged",
    "LogsSuppressed",
    "LoopStalled",
    "Observer",
    "Outcome",
    "Phase",
    "RouteNotFound",
    "SensorUnknown",
    "SessionAbandoned",
    "SessionAdmitted",
    "SessionClosed",
    "SessionClosedWithError",
    "SessionFacts",
    "SessionFailed",
    "SessionOpened",
    "SessionRefused",
    "SessionShed",
    "SettingIgnored",
    "SheddingFutile",
    "SigtermDrainUnavailable",
    "Snapshot",
    "UnknownSetting",
]

Phase: TypeAlias = Literal["connecting", "open", "closed"]
"""Phase of a session: handshake not answered yet, open, or closed by either side."""

Outcome: TypeAlias = Literal["completed", "failed", "shed", "not_accepted"]
"""Result of a session: ended by its peer or its handler, failed, ended from outside, or never accepted."""


class Event:
    """Base class of events, which a guard passes to its observers.

    Your own gates may report subclasses, also of the events below; they are handled as their base class.
    """

    __slots__ = ()

    event_name: ClassVar[str]
    """``event.name`` in logs. ``logs/messages.py`` defines the message and the keys."""


@frozen
class SessionFacts:
    """Snapshot of a session at the time of an event.

    ``path`` is the decoded path without the query string, as the client sent it: escape it before
    you write it anywhere. ``route`` is the template that matched, or None.
    """

    id: str
    route: str | None
    path: str
    scheme: str
    client: tuple[str, int] | None
    phase: Phase
    duration: float
    """Seconds since the handshake arrived."""
    received: int
    """Messages that the handler received."""
    sent: int
    """Messages that the handler sent."""


@frozen
class SessionAdmitted(Event):
    """All gates admitted a session; its handler starts. ``session.duration`` is the time that the gates took."""

    event_name: ClassVar = "closecodes.session.admitted"

    session: SessionFacts


@frozen
class SessionOpened(Event):
    """A handler accepted a session."""

    event_name: ClassVar = "closecodes.session.opened"

    session: SessionFacts


@frozen
class SessionClosed(Event):
    """An admitted session is over, and its permits are released."""

    event_name: ClassVar = "closecodes.session.closed"

    session: SessionFacts
    close: Close | None
    """The close code and reason, if known. None after an HTTP response, or if the server does not report the peer's
    close, as hypercorn."""
    closed_by: Literal["client", "handler", "middleware"]
    """The side that ended it: the peer, the handler by its own close, or this library."""
    outcome: Outcome = "completed"


@frozen
class SessionFailed(Event):
    """A handler raised an unhandled exception; ``error_id`` is the ``ref`` in the close reason."""

    event_name: ClassVar = "closecodes.session.exception"

    session: SessionFacts
    error_id: str
    fingerprint: str
    """Equal for every failure of the same bug."""
    exception: BaseException
    close: Close | None
    """The close sent to the client or received from it; None after an HTTP response or if unknown."""
    close_sent: bool
    """Whether the server accepted the close or the HTTP response; the client may still not have received it."""
    of_another_session: bool = False
    """Whether another session's socket raised it, as in a broadcast to a member that has left."""


@frozen
class SessionClosedWithError(Event):
    """A framework closed a session with the code by which it answers an error, which is no failure.

    Integrations alone name such a code.
    """

    event_name: ClassVar = "closecodes.session.closed_with_error"

    session: SessionFacts
    close: Close


@frozen
class RouteNotFound(Event):
    """The framework raised an exception because no route matches the handshake."""

    event_name: ClassVar = "closecodes.session.not_found"

    session: SessionFacts


@frozen
class CloseFailed(Event):
    """The server did not accept a close."""

    event_name: ClassVar = "closecodes.session.close_failed"

    session: SessionFacts
    close: Close
    exception: BaseException | None
    """Exception of the server's ``send``; None after a timeout."""


@frozen
class CloseRepaired(Event):
    """A close that must not be sent was repaired: its code, or the cause and the hint of a refusal.

    Repairs of refusals are reported once a gate.
    """

    event_name: ClassVar = "closecodes.session.close_repaired"

    session: SessionFacts
    asked: object
    """The code, or the invalid parts of a refusal as text."""
    close: Close
    gate: str | None = None
    """The gate that refused; None for a handler's close."""


@frozen
class SessionRefused(Event):
    """A gate refused a session or its new key; in mode ``shadow`` it, or a time limit, would have."""

    event_name: ClassVar = "closecodes.session.refused"

    session: SessionFacts
    close: Close | None
    """None after an HTTP response, or if the client had left."""
    gate: str
    cause: str
    retry_after: float
    """Seconds until the client should reconnect."""
    mode: Literal["close", "http", "shadow"]
    usage: float | None = None
    limit: float | None = None
    is_overload: bool = True
    """Whether a limit of the process was reached, rather than one client's own limit or a drain."""


@frozen
class GateSaturated(Event):
    """A gate that limits the whole process began to refuse sessions."""

    event_name: ClassVar = "closecodes.gate.saturated"

    gate: str
    cause: str
    usage: float | None
    limit: float | None


@frozen
class GateRecovered(Event):
    """A saturated gate has room again, and has refused no session for a while."""

    event_name: ClassVar = "closecodes.gate.recovered"

    gate: str
    cause: str
    refused: int
    """Sessions that it refused while saturated."""
    duration: float
    """Seconds from the first to the last refusal."""


@frozen
class SheddingFutile(Event):
    """A gate stopped shedding because it frees no memory; it keeps refusing.

    It sheds again after its usage has been below its limit.
    """

    event_name: ClassVar = "closecodes.gate.shedding_futile"

    gate: str
    cause: str
    usage: float | None
    limit: float | None
    shed: int
    """Sessions that were shed in vain."""


@frozen
class SessionShed(Event):
    """A session was ended from outside of its handler."""

    event_name: ClassVar = "closecodes.session.shed"

    session: SessionFacts
    close: Close | None
    """The close that ended it; None after an HTTP response."""
    cause: str
    retry_after: float | None
    """Seconds until the client should reconnect; None without a hint."""
    is_overload: bool = True
    """Whether a limit of the process was reached; see :attr:`SessionRefused.is_overload`."""


@frozen
class SessionAbandoned(Event):
    """A session that is over no longer counts, though the server still holds its connection."""

    event_name: ClassVar = "closecodes.session.abandoned"

    session: SessionFacts
    close: Close | None
    after: float
    """Seconds since its close."""


@frozen
class GateFailed(Event):
    """A gate raised an error; ``gate_failure`` decided whether the session was admitted."""

    event_name: ClassVar = "closecodes.gate.failed"

    session: SessionFacts
    gate: str
    exception: BaseException
    step: Literal["admit", "release"]
    admitted: bool


@frozen
class CallbackFailed(Event):
    """A user's callback (a mapping, a chooser, an observer) raised or returned an unusable value."""

    event_name: ClassVar = "closecodes.callback.failed"

    callback: str
    exception: BaseException
    session: SessionFacts | None = None


@frozen
class BackgroundFailed(Event):
    """Background work of this library raised: a bug in the library."""

    event_name: ClassVar = "closecodes.background.failed"

    task: str
    """The function that failed."""
    exception: BaseException


@frozen
class SensorUnknown(Event):
    """A sensor is unavailable; its gate admits every session."""

    event_name: ClassVar = "closecodes.sensor.unknown"

    sensor: str
    problem: str


@frozen
class DrainStarted(Event):
    """A drain started: new sessions are refused, open ones are closed."""

    event_name: ClassVar = "closecodes.drain.started"

    sessions: int
    window: float
    """Planned duration in seconds, after the patience."""
    patience: float = 0.0
    """Seconds in which busy sessions are spared."""


@frozen
class DrainFinished(Event):
    """A drain has closed all open sessions, or was cancelled."""

    event_name: ClassVar = "closecodes.drain.finished"

    sessions: int
    """Sessions that it closed."""
    duration: float
    """Duration in seconds."""
    busy: int = 0
    """Those of them that were in a block of ``session.busy()``: its patience was too short for them."""


@frozen
class SigtermDrainUnavailable(Event):
    """``drain_on_sigterm`` is set, but this server's signal handling cannot be replaced."""

    event_name: ClassVar = "closecodes.drain.unavailable"

    reason: str


@frozen
class DrainWindowTooLong(Event):
    """A drain at SIGTERM would not end before gunicorn kills the worker."""

    event_name: ClassVar = "closecodes.drain.too_long"

    window: float
    limit: float
    """Seconds from the signal to the kill."""
    patience: float = 0.0


@frozen
class LimitsChanged(Event):
    """The limits of this process were set at its start, or changed."""

    event_name: ClassVar = "closecodes.config.limits"

    limits: Mapping[str, object]
    changed: Mapping[str, object] = field(default_factory=dict)


@frozen
class UnknownSetting(Event):
    """An environment variable has the prefix of settings, but names none."""

    event_name: ClassVar = "closecodes.config.unknown"

    name: str
    nearest: str | None
    """The setting with the most similar name, if any."""


@frozen
class SettingIgnored(Event):
    """A setting has no effect: code overrides it, or no middleware uses its guard."""

    event_name: ClassVar = "closecodes.config.ignored"

    name: str
    problem: str


@frozen
class FewFiles(Event):
    """The process may open fewer files than ``max_sessions`` and what it has open need."""

    event_name: ClassVar = "closecodes.config.few_files"

    max_sessions: int
    open: int
    """Files that were open at the start."""
    limit: int
    """Files that may be open at one time."""
    needed: int
    """Lowest limit that suffices."""


@frozen
class LoopStalled(Event):
    """An event loop stood still for at least ``log_stalls``."""

    event_name: ClassVar = "closecodes.loop.stalled"

    duration: float
    """Seconds that the event loop was late, by its own clock."""
    fingerprint: str
    """Equal for every stall in the same functions; ``unknown`` without a stack."""
    looks: int
    """Times that its thread was looked at and found there, at most three."""
    stack: str = ""
    """Frames that all looks found inside of the event loop, as ``traceback`` prints them. Empty where it ran no Python
    code: another thread held the GIL, or the process got no CPU."""
    file: str | None = None
    """File of the innermost frame of the application, else of a library; and its line and function."""
    line: int | None = None
    function: str | None = None
    session: SessionFacts | None = None
    """The session whose task it was, if that is known."""


@frozen
class LogsSuppressed(Event):
    """Log records of one event were suppressed."""

    event_name: ClassVar = "closecodes.logs.suppressed"

    event: str
    """Their ``event.name``."""
    count: int


@frozen
class ClusterSynced(Event):
    """A cluster gate has a new lease."""

    event_name: ClassVar = "closecodes.cluster.synced"

    name: str
    """The cluster limit."""
    used: int
    """Open sessions of this process."""
    quota: int
    """Sessions that this process may have open without asking the store."""
    limit: int
    """The lowest limit among the processes."""
    cluster_used: int
    """Open sessions of all processes, as last reported by each."""
    cluster_granted: int
    """Permits granted to all processes, used or not."""
    workers: int
    learning: float
    """Seconds during which the store, which has lost its data, grants nothing more; 0 otherwise."""
    lease: float
    """Seconds until the lease ends."""
    fallback: bool
    """Whether the fallback is in effect."""


@frozen
class ClusterSyncFailed(Event):
    """A sync of a cluster gate failed; sessions and lease are unchanged."""

    event_name: ClassVar = "closecodes.cluster.sync_failed"

    name: str
    problem: str


@frozen
class ClusterUnreachable(Event):
    """The store of a cluster gate is unreachable, for a new reason; retried every second."""

    event_name: ClassVar = "closecodes.cluster.unreachable"

    name: str
    problem: str
    lease: float
    """Seconds until the lease ends and ``fallback`` takes effect."""
    fallback: Literal["share", "open", "closed"]


@frozen
class ClusterFallback(Event):
    """The lease ended while the store was unreachable: the fallback is in effect."""

    event_name: ClassVar = "closecodes.cluster.fallback"

    name: str
    fallback: Literal["share", "open", "closed"]


@frozen
class ClusterRecovered(Event):
    """The store of a cluster gate is reachable again."""

    event_name: ClassVar = "closecodes.cluster.recovered"

    name: str
    failures: int
    duration: float
    """Seconds since the first failed sync."""


@frozen
class ClusterRelearning(Event):
    """The store has lost data or went back in time: it grants nothing more until every process has synced."""

    event_name: ClassVar = "closecodes.cluster.relearning"

    name: str
    duration: float
    """Seconds that it takes."""


@frozen
class ClusterMisconfigured(Event):
    """The configuration of a cluster limit should be changed; reported once."""

    event_name: ClassVar = "closecodes.cluster.misconfigured"

    name: str
    problem: str


KINDS: tuple[type[Event], ...] = tuple(
    kind for kind in [*vars().values()] if isinstance(kind, type) and issubclass(kind, Event) and kind is not Event
)
"""All classes of events of this library."""

Observer: TypeAlias = Callable[[Event], None]
"""Called with each event, in the event loop, while a session waits for it.

One that also needs the current state implements :class:`WatchingObserver`.
"""


@runtime_checkable
class WatchingObserver(Protocol):
    """Observer that reads the state of guards."""

    def watch(self, snapshot: Callable[[], Snapshot | None], /) -> None:
        """Keep ``snapshot``; each guard that has this observer calls this once.

        ``snapshot`` may be called at any time from any thread. It returns None when the guard is gone.
        """


@runtime_checkable
class SamplingObserver(WatchingObserver, Protocol):
    """Observer that samples the state regularly."""

    def sample(self) -> None:
        """Sample the state. The background ticker calls this about ten times a second."""


class GateState(TypedDict):
    """State of a gate that has a limit or is the user's own."""

    name: str
    cause: str
    """Default ``cause`` of its refusals and sheds."""
    usage: float | None
    """Used part of the limit, in its unit; None if unknown or not a single number."""
    limit: float | None
    """None is unlimited."""
    shadow: bool
    """Whether it only reports refusals."""


class DrainState(TypedDict):
    """State of a drain that is closing sessions."""

    sessions: int
    """Open sessions at its start."""
    remaining: int
    """Open sessions now."""
    elapsed: float
    """Seconds since its start."""
    window: float
    patience: float
    waits_for_busy: bool
    """Whether busy sessions are still spared."""


class Snapshot(TypedDict):
    """The state of a guard, and its counts since the start of the process, as plain data."""

    open: int
    """Admitted sessions that are not ending."""
    leaving: int
    """Sessions that are ending or have ended, and still count."""
    leaving_refused: int
    """Refused sessions whose connection the server still holds."""
    stalled: int
    """Open sessions in one ``send`` for over 5 s; 0 without ``send_timeout``."""
    busy: int
    """Open sessions in a block of ``session.busy()``."""
    waiting: int
    """Refused sessions that were told when to come back, and whose turn has not come."""
    draining: bool
    drain: DrainState | None
    """The drain that is closing sessions; None before and after."""
    headroom: float | None
    """Rest of the gate that is nearest to its limit, as a share of that: 0 for a limit of 0. None where no gate
    has a usage and a limit. Shadows and limits of one client are left out."""
    loop_lag: float | None
    """Delay of the event loop in seconds; a stall counts half after 15 s. None if not measured."""
    gates: list[GateState]
    errors: int
    refusals: dict[str, int]
    """By cause."""
    sheds: dict[str, int]
    """By cause."""
    closes: dict[int | str, int]
    """Sessions that are over, by close code."""
    error_groups: list[dict[str, Any]]
    """Recent failures by fingerprint, the latest first."""
