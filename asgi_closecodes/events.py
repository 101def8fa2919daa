"""What can be reported: one frozen dataclass an event, handed to every observer.

Logs, metrics and traces are observers like a user's own: a plain callable that takes an event.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, TypeAlias, TypedDict, runtime_checkable

from .codes import Close

__all__ = [
    "BackgroundFailed",
    "CallbackFailed",
    "CloseFailed",
    "CloseRepaired",
    "ClusterAway",
    "ClusterBack",
    "ClusterFallback",
    "ClusterLearning",
    "ClusterMisconfigured",
    "ClusterSyncFailed",
    "ClusterSynced",
    "DrainFinished",
    "DrainStarted",
    "Event",
    "FewFiles",
    "GateFailed",
    "GateRecovered",
    "GateSaturated",
    "GateState",
    "LimitsSet",
    "LogsSuppressed",
    "Observer",
    "Outcome",
    "Phase",
    "RouteNotFound",
    "SensorUnknown",
    "SessionAbandoned",
    "SessionAdmitted",
    "SessionClosed",
    "SessionFacts",
    "SessionFailed",
    "SessionOpened",
    "SessionRefused",
    "SessionShed",
    "SettingIgnored",
    "SheddingFutile",
    "SignalLeftAlone",
    "Snapshot",
]

Phase: TypeAlias = Literal["connecting", "open", "closed"]
"""Where a session stood: before its handshake was answered, open, or after it was closed or left."""

Outcome: TypeAlias = Literal["completed", "failed", "shed", "not_accepted"]
"""What became of a session: it ended by its peer or its handler, the handler failed, it was ended from outside of
its handler, or the handler never accepted it."""


class Event:
    """Something that a guard tells its observers: a frozen dataclass with what is known of it.

    A gate of your own may report a class of its own; it counts as what it is a subclass of.
    """

    __slots__ = ()

    event_name: ClassVar[str]
    """Its name in logs; the keys and the words of its record are in ``logs/messages.py``."""


@dataclass(frozen=True, slots=True)
class SessionFacts:
    """What is known of a session at the moment of an event.

    ``path`` is the decoded path without the query string, as the client sent it: an observer
    that writes it somewhere must escape it. ``route`` is the template that matched, or None.
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
    """Messages handed to the handler."""
    sent: int
    """Messages that the handler sent."""


@dataclass(frozen=True, slots=True)
class SessionAdmitted(Event):
    """All gates let a session pass, and its handler starts; ``session.duration`` is how long they took."""

    event_name: ClassVar = "closecodes.session.admitted"

    session: SessionFacts


@dataclass(frozen=True, slots=True)
class SessionOpened(Event):
    """A handler accepted a session."""

    event_name: ClassVar = "closecodes.session.opened"

    session: SessionFacts


@dataclass(frozen=True, slots=True)
class SessionClosed(Event):
    """A session that a gate admitted is over, and its place is free again."""

    event_name: ClassVar = "closecodes.session.closed"

    session: SessionFacts
    close: Close | None
    """The close as far as it is known; None where an HTTP response answered the handshake, or the server did not say
    how its peer left, as hypercorn never does."""
    initiator: Literal["client", "handler", "middleware"]
    """Who ended it: the peer, the handler by a close of its own, or this library."""
    outcome: Outcome = "completed"


@dataclass(frozen=True, slots=True)
class SessionFailed(Event):
    """A handler raised what nobody expected; ``error_id`` is the ``ref`` in the close reason."""

    event_name: ClassVar = "closecodes.session.exception"

    session: SessionFacts
    error_id: str
    fingerprint: str
    """The same for every failure of the same bug."""
    exception: BaseException
    close: Close | None
    """The close that the client was sent, or that it sent; None where HTTP answered or nothing is known."""
    close_sent: bool
    """Whether the server took the close (or the HTTP response); not whether the client saw it."""
    of_another_session: bool = False
    """Whether it came out of another session's socket, as in a broadcast to a member that has left."""


@dataclass(frozen=True, slots=True)
class RouteNotFound(Event):
    """The application has no route for a handshake, and its framework says so by an exception."""

    event_name: ClassVar = "closecodes.session.not_found"

    session: SessionFacts


@dataclass(frozen=True, slots=True)
class CloseFailed(Event):
    """The server did not take a close."""

    event_name: ClassVar = "closecodes.session.close_failed"

    session: SessionFacts
    close: Close
    exception: BaseException | None
    """What its ``send`` raised; None if it did not answer in time."""


@dataclass(frozen=True, slots=True)
class CloseRepaired(Event):
    """A close that may not be sent was repaired: its code, or the cause and the hint of a refusal.

    Repairs of refusals are reported once for each gate.
    """

    event_name: ClassVar = "closecodes.session.close_repaired"

    session: SessionFacts
    asked: object
    """The code, or what of a refusal could not be sent, as text."""
    close: Close
    gate: str | None = None
    """The gate whose refusal it was; None is the handler's close."""


@dataclass(frozen=True, slots=True)
class SessionRefused(Event):
    """A gate did not admit a session, or its new key; in mode ``shadow`` it only would not have."""

    event_name: ClassVar = "closecodes.session.refused"

    session: SessionFacts
    close: Close | None
    """None where an HTTP response answered, or nobody was there any more."""
    gate: str
    cause: str
    retry_after: float
    """Seconds after which the client was told to come back."""
    mode: Literal["close", "http", "shadow"]
    usage: float | None = None
    limit: float | None = None
    is_overload: bool = True
    """Whether the process lacks something, as the gate says; one client's own limit and a drain are no overload."""


@dataclass(frozen=True, slots=True)
class GateSaturated(Event):
    """A gate that speaks for the whole process began to refuse sessions."""

    event_name: ClassVar = "closecodes.gate.saturated"

    gate: str
    cause: str
    usage: float | None
    limit: float | None


@dataclass(frozen=True, slots=True)
class GateRecovered(Event):
    """A gate that was saturated has refused nobody for a while."""

    event_name: ClassVar = "closecodes.gate.recovered"

    gate: str
    cause: str
    refused: int
    """Sessions that it refused."""
    duration: float
    """Seconds from the first to the last of them."""


@dataclass(frozen=True, slots=True)
class SheddingFutile(Event):
    """A gate sheds no more, since the memory is not the sessions'; it goes on refusing.

    Until its usage has been below its limit; then it tries anew.
    """

    event_name: ClassVar = "closecodes.gate.shedding_futile"

    gate: str
    cause: str
    usage: float | None
    limit: float | None
    shed: int
    """Sessions that were shed in vain."""


@dataclass(frozen=True, slots=True)
class SessionShed(Event):
    """A session was ended from outside of its handler."""

    event_name: ClassVar = "closecodes.session.shed"

    session: SessionFacts
    close: Close | None
    """The close that ended it; None where an HTTP response did."""
    cause: str
    retry_after: float | None
    """Seconds after which the client was told to come back; None where it was not told."""
    is_overload: bool = True
    """Whether the process lacks something; see :attr:`SessionRefused.is_overload`."""


@dataclass(frozen=True, slots=True)
class SessionAbandoned(Event):
    """The server still holds the connection of a session that is over, and it counts no more."""

    event_name: ClassVar = "closecodes.session.abandoned"

    session: SessionFacts
    close: Close | None
    after: float
    """Seconds since its close."""


@dataclass(frozen=True, slots=True)
class GateFailed(Event):
    """A gate raised something else than a refusal; the session was admitted past it, or refused."""

    event_name: ClassVar = "closecodes.gate.failed"

    session: SessionFacts
    gate: str
    exception: BaseException
    step: Literal["admit", "release"]
    admitted: bool


@dataclass(frozen=True, slots=True)
class CallbackFailed(Event):
    """Something that the user plugged in (a mapping, a chooser, an observer) raised or returned nonsense."""

    event_name: ClassVar = "closecodes.callback.failed"

    callback: str
    exception: BaseException
    session: SessionFacts | None = None


@dataclass(frozen=True, slots=True)
class BackgroundFailed(Event):
    """Background work of this library raised: a bug of its own."""

    event_name: ClassVar = "closecodes.background.failed"

    task: str
    """The function that failed."""
    exception: BaseException


@dataclass(frozen=True, slots=True)
class SensorUnknown(Event):
    """A sensor cannot be read; its gate refuses nobody."""

    event_name: ClassVar = "closecodes.sensor.unknown"

    sensor: str
    problem: str


@dataclass(frozen=True, slots=True)
class DrainStarted(Event):
    """New sessions are refused from now on, and the open ones are closed."""

    event_name: ClassVar = "closecodes.drain.started"

    sessions: int
    window: float
    """Seconds that it is to take."""


@dataclass(frozen=True, slots=True)
class DrainFinished(Event):
    """All sessions that were open have been told to come back elsewhere, or it was called off."""

    event_name: ClassVar = "closecodes.drain.finished"

    sessions: int
    """Those that were told."""
    duration: float
    """Seconds that it took."""


@dataclass(frozen=True, slots=True)
class SignalLeftAlone(Event):
    """``drain_on_sigterm`` was asked for where the server's signal handling cannot be taken over."""

    event_name: ClassVar = "closecodes.drain.unavailable"

    reason: str


@dataclass(frozen=True, slots=True)
class LimitsSet(Event):
    """The limits of this process, at its start or after a change."""

    event_name: ClassVar = "closecodes.config.limits"

    limits: Mapping[str, object]
    changed: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SettingIgnored(Event):
    """A setting has no effect: a variable that is none or that code overrides, or a guard that no middleware has."""

    event_name: ClassVar = "closecodes.config.ignored"

    name: str
    nearest: str | None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class FewFiles(Event):
    """The process may open fewer files than ``max_sessions`` and what it has open need."""

    event_name: ClassVar = "closecodes.config.few_files"

    max_sessions: int
    open: int
    """Files that were open at the start."""
    limit: int
    """Files that may be open at one time."""
    needed: int
    """What the limit should be at least."""


@dataclass(frozen=True, slots=True)
class LogsSuppressed(Event):
    """Records of one kind were counted instead of written."""

    event_name: ClassVar = "closecodes.logs.suppressed"

    event: str
    """Their ``event.name``."""
    count: int


@dataclass(frozen=True, slots=True)
class ClusterSynced(Event):
    """A cluster gate has a new lease: what it may admit by itself, and what all processes have together."""

    event_name: ClassVar = "closecodes.cluster.synced"

    name: str
    """The cluster limit."""
    used: int
    """Open sessions of this process."""
    quota: int
    """Sessions that this process may have open without asking."""
    limit: int
    """The lowest limit that a process has."""
    cluster_used: int
    """Open sessions of all processes, as each said last."""
    cluster_granted: int
    """Places that all processes hold, used or not."""
    workers: int
    learning: float
    """Seconds for which nobody gets more, since the store has lost what it knew; 0 if it has not."""
    lease: float
    """Seconds until the lease ends."""
    fallback: bool
    """Whether the fallback decides."""


@dataclass(frozen=True, slots=True)
class ClusterSyncFailed(Event):
    """A sync of a cluster gate failed; the open sessions and the lease stay as they are."""

    event_name: ClassVar = "closecodes.cluster.sync_failed"

    name: str
    problem: str


@dataclass(frozen=True, slots=True)
class ClusterAway(Event):
    """The store of a cluster gate cannot be used, for a new reason; it is tried again every second."""

    event_name: ClassVar = "closecodes.cluster.away"

    name: str
    problem: str
    lease: float
    """Seconds until the lease ends, and ``fallback`` decides."""
    fallback: Literal["share", "open", "closed"]


@dataclass(frozen=True, slots=True)
class ClusterFallback(Event):
    """The lease has ended while the store is away: the fallback decides from now on."""

    event_name: ClassVar = "closecodes.cluster.fallback"

    name: str
    fallback: Literal["share", "open", "closed"]


@dataclass(frozen=True, slots=True)
class ClusterBack(Event):
    """The store of a cluster gate can be used again."""

    event_name: ClassVar = "closecodes.cluster.back"

    name: str
    failures: int
    duration: float
    """Seconds since the first of the failed syncs."""


@dataclass(frozen=True, slots=True)
class ClusterLearning(Event):
    """The store has lost what it knew, or went back in time: nobody gets more until all processes have spoken."""

    event_name: ClassVar = "closecodes.cluster.learning"

    name: str
    duration: float
    """Seconds that it takes."""


@dataclass(frozen=True, slots=True)
class ClusterMisconfigured(Event):
    """Something about a cluster limit should be changed; told once."""

    event_name: ClassVar = "closecodes.cluster.misconfigured"

    name: str
    problem: str


KINDS: tuple[type[Event], ...] = tuple(
    kind for kind in [*vars().values()] if isinstance(kind, type) and issubclass(kind, Event) and kind is not Event
)
"""All events of this library."""

Observer: TypeAlias = Callable[[Event], None]
"""Called with each event, in the event loop, while a session waits for it.

One that does not only want to know what happens, but how things stand, is a :class:`WatchingObserver` too.
"""


@runtime_checkable
class WatchingObserver(Protocol):
    """An observer that asks how a guard stands."""

    def watch(self, look: Callable[[], Snapshot | None], /) -> None:
        """Take ``look``, once from each guard that the observer is given to.

        It returns a :class:`Snapshot` at any time and from any thread, and None when the guard is gone.
        """


@runtime_checkable
class SamplingObserver(WatchingObserver, Protocol):
    """One that asks by itself again and again."""

    def sample(self) -> None:
        """Do so; the background ticker calls it about ten times a second."""


class GateState(TypedDict):
    """A gate that has a limit, or is the user's, in a :class:`Snapshot`."""

    name: str
    cause: str
    """A token for clients whom it sheds, or refuses without another cause."""
    usage: float | None
    """How much of the limit is in use; None if that is unknown, or no one number."""
    limit: float | None
    """None is no limit."""
    shadow: bool
    """Whether it only says whom it would have refused."""


class Snapshot(TypedDict):
    """The state of a guard, and its counts since the start of the process, as plain data."""

    open: int
    """Admitted sessions that were not told to end."""
    leaving: int
    """Sessions that have ended, or were told to, and still count."""
    leaving_refused: int
    """Refused sessions whose connection the server still holds."""
    stalled: int
    """Open sessions whose handler has waited in one ``send`` for over 5 s; 0 where ``send_timeout`` is not set."""
    waiting: int
    """Refused sessions that were told when to come back, and whose turn has not come."""
    draining: bool
    headroom: float | None
    """What is left of the gate that is nearest to its limit, as a share of it: 0 for a limit of 0. None where no gate
    has a usage and a limit. Shadows and limits of one client are left out."""
    loop_lag: float | None
    """Seconds that the event loop was late; a stall counts half after 15 s. None if nobody looked."""
    gates: list[GateState]
    errors: int
    refusals: dict[str, int]
    """By cause."""
    sheds: dict[str, int]
    """By cause."""
    closes: dict[int | str, int]
    """Sessions that are over, by close code."""
    error_groups: list[dict[str, Any]]
    """Failures of late by bug, the latest first."""
