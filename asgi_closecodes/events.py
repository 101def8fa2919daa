"""What can be reported: one frozen dataclass an event, handed to every observer.

Logs, metrics and traces are observers like a user's own: a plain callable that takes an event.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from .codes import Close

__all__ = [
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
    "GateFailed",
    "GateRecovered",
    "GateSaturated",
    "GateStanding",
    "LimitsSet",
    "LogsSuppressed",
    "Observer",
    "Outcome",
    "Phase",
    "SessionAdmitted",
    "SessionClosed",
    "SessionFacts",
    "SessionFailed",
    "SessionOpened",
    "SessionRefused",
    "SessionShed",
    "SettingIgnored",
    "SignalLeftAlone",
    "Standing",
]

Phase: TypeAlias = Literal["connecting", "open", "closed"]
"""Where a session stood: before its handshake was answered, open, or after it was closed or left."""

Outcome: TypeAlias = Literal["completed", "failed", "shed", "not_accepted"]
"""What became of a session: it ended by its peer or its handler, the handler failed, it was ended from outside of
its handler, or the handler never accepted it."""


NOT_OVERLOAD = frozenset({"client", "replaced", "drain"})
"""Causes that are no sign of a process that lacks capacity."""


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
class SessionAdmitted:
    """All gates let a session pass, and its handler starts; ``session.duration`` is how long they took."""

    session: SessionFacts


@dataclass(frozen=True, slots=True)
class SessionOpened:
    """A handler accepted a session."""

    session: SessionFacts


@dataclass(frozen=True, slots=True)
class SessionClosed:
    """A session that a gate admitted is over, and its place is free again."""

    session: SessionFacts
    close: Close | None
    """The close as far as it is known; None where an HTTP response answered the handshake, or the server did not say
    how its peer left, as hypercorn never does."""
    initiator: Literal["client", "handler", "middleware"]
    """Who ended it: the peer, the handler by a close of its own, or this library."""
    outcome: Outcome = "completed"


@dataclass(frozen=True, slots=True)
class SessionFailed:
    """A handler raised what nobody expected; ``error_id`` is the ``ref`` in the close reason."""

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
class RouteNotFound:
    """The application has no route for a handshake, and its framework says so by an exception."""

    session: SessionFacts


@dataclass(frozen=True, slots=True)
class CloseFailed:
    """The server did not take a close."""

    session: SessionFacts
    close: Close
    exception: BaseException | None
    """What its ``send`` raised; None if it did not answer in time."""


@dataclass(frozen=True, slots=True)
class CloseRepaired:
    """A close that may not be sent was repaired: its code, or the cause and the hint of a refusal.

    Repairs of refusals are reported once for each gate.
    """

    session: SessionFacts
    asked: object
    """The code, or what of a refusal could not be sent, as text."""
    close: Close
    gate: str | None = None
    """The gate whose refusal it was; None is the handler's close."""


@dataclass(frozen=True, slots=True)
class SessionRefused:
    """A gate did not admit a session, or its new key; in mode ``shadow`` it only would not have."""

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

    @property
    def is_overload(self) -> bool:
        """Whether the process lacks something, and not one client at its own limit; a drain is wanted."""
        return self.mode != "shadow" and self.cause not in NOT_OVERLOAD


@dataclass(frozen=True, slots=True)
class GateSaturated:
    """A gate that speaks for the whole process began to refuse sessions."""

    gate: str
    cause: str
    usage: float | None
    limit: float | None


@dataclass(frozen=True, slots=True)
class GateRecovered:
    """A gate that was saturated has refused nobody for a while."""

    gate: str
    cause: str
    refused: int
    """Sessions that it refused."""
    duration: float
    """Seconds from the first to the last of them."""


@dataclass(frozen=True, slots=True)
class SessionShed:
    """A session was ended from outside of its handler."""

    session: SessionFacts
    close: Close | None
    """The close that ended it; None where an HTTP response did."""
    cause: str
    retry_after: float
    """Seconds after which the client was told to come back."""


@dataclass(frozen=True, slots=True)
class GateFailed:
    """A gate raised something else than a refusal; the session was admitted past it, or refused."""

    session: SessionFacts
    gate: str
    exception: BaseException
    step: Literal["admit", "release"]
    admitted: bool


@dataclass(frozen=True, slots=True)
class CallbackFailed:
    """Something that the user plugged in (a mapping, a chooser, an observer) raised or returned nonsense."""

    callback: str
    exception: BaseException
    session: SessionFacts | None = None


@dataclass(frozen=True, slots=True)
class DrainStarted:
    """New sessions are refused from now on, and the open ones are closed."""

    sessions: int
    window: float
    """Seconds that it is to take."""


@dataclass(frozen=True, slots=True)
class DrainFinished:
    """All sessions that were open have been told to come back elsewhere, or it was called off."""

    sessions: int
    """Those that were told."""
    duration: float
    """Seconds that it took."""


@dataclass(frozen=True, slots=True)
class SignalLeftAlone:
    """``drain_on_sigterm`` was asked for where the server's signal handling cannot be taken over."""

    reason: str


@dataclass(frozen=True, slots=True)
class LimitsSet:
    """The limits of this process, at its start or after a change."""

    limits: Mapping[str, object]
    changed: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SettingIgnored:
    """A setting has no effect: the environment holds a name that is none, or what ``problem`` says."""

    name: str
    nearest: str | None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class LogsSuppressed:
    """Records of one kind were counted instead of written."""

    event: str
    """Their ``event.name``."""
    count: int


@dataclass(frozen=True, slots=True)
class ClusterSynced:
    """A cluster gate has a new lease: what it may admit by itself, and what all processes have together."""

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
class ClusterSyncFailed:
    """A sync of a cluster gate failed; the open sessions and the lease stay as they are."""

    name: str
    problem: str


@dataclass(frozen=True, slots=True)
class ClusterAway:
    """The store of a cluster gate cannot be used, for a new reason; it is tried again every second."""

    name: str
    problem: str
    lease: float
    """Seconds until the lease ends, and ``fallback`` decides."""
    fallback: Literal["share", "open", "closed"]


@dataclass(frozen=True, slots=True)
class ClusterFallback:
    """The lease has ended while the store is away: the fallback decides from now on."""

    name: str
    fallback: Literal["share", "open", "closed"]


@dataclass(frozen=True, slots=True)
class ClusterBack:
    """The store of a cluster gate can be used again."""

    name: str
    failures: int
    duration: float
    """Seconds since the first of the failed syncs."""


@dataclass(frozen=True, slots=True)
class ClusterLearning:
    """The store has lost what it knew, or went back in time: nobody gets more until all processes have spoken."""

    name: str
    duration: float
    """Seconds that it takes."""


@dataclass(frozen=True, slots=True)
class ClusterMisconfigured:
    """Something about a cluster limit should be changed; told once."""

    name: str
    problem: str


Event: TypeAlias = (
    SessionAdmitted
    | SessionOpened
    | SessionClosed
    | SessionFailed
    | RouteNotFound
    | SessionRefused
    | SessionShed
    | GateSaturated
    | GateRecovered
    | CloseFailed
    | CloseRepaired
    | GateFailed
    | CallbackFailed
    | DrainStarted
    | DrainFinished
    | SignalLeftAlone
    | LimitsSet
    | SettingIgnored
    | LogsSuppressed
    | ClusterSynced
    | ClusterSyncFailed
    | ClusterAway
    | ClusterFallback
    | ClusterBack
    | ClusterLearning
    | ClusterMisconfigured
)

Observer: TypeAlias = Callable[[Event], None]
"""Called with each event, in the event loop, while a session waits for it.

An observer that does not only want to know what happens, but how things stand, may also have:

* ``watch(look)``: called once by each guard that it is given to; ``look()`` returns a :class:`Standing` at any time
  and from any thread, and None when the guard is gone;
* ``sample()``: called about ten times a second by the background ticker, which runs for observers with ``watch``.
"""


@dataclass(frozen=True, slots=True)
class GateStanding:
    """How a gate stands."""

    name: str
    cause: str | None
    """What clients are told that it refuses; None if that is not known before."""
    usage: float | None
    """How much of the limit is in use; None if that is unknown, or no one number."""
    limit: float | None
    """None is no limit."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How a guard stands."""

    gates: tuple[GateStanding, ...]
    loop_lag: float | None
    """Seconds that the event loop was late; a stall counts half after 15 s. None if nobody looked."""
    draining: bool
