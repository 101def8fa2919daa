"""Gate in the shadow: it refuses nobody, and reports whom it would have refused."""

from __future__ import annotations

from collections.abc import Container, Generator
from contextlib import AbstractAsyncContextManager, contextmanager
from types import TracebackType
from typing import Any

from asgi_closecodes.codes import Close
from asgi_closecodes.events import Observer, SessionRefused
from asgi_closecodes.exceptions import EndedFromOutside, TryAgainLater, refusal_in
from asgi_closecodes.session import Session

from .base import NO_PERMIT, Gate, GateBase, as_gate, rekey


class Shadow(GateBase):
    """Asks ``gate``, and refuses nobody: it only counts and logs what ``gate`` would have refused.

    So a limit can be tried without effect. ``gate`` does not count sessions that it would have refused, and none is
    shed for it. The shadow has the name and the numbers of ``gate``.
    """

    __slots__ = ("gate",)

    def __init__(self, gate: Gate) -> None:
        self.gate = as_gate(gate)

    @property
    def name(self) -> str:
        """The name of the gate."""
        return self.gate.name

    @name.setter
    def name(self, name: str) -> None:
        self.gate.name = name

    @property
    def is_named(self) -> bool:
        """Whether the gate's name was given explicitly."""
        return self.gate.is_named

    def name_apart_from(self, taken: Container[str]) -> None:
        """Have the gate take a name that is not ``taken``."""
        self.gate.name_apart_from(taken)

    @property
    def cause(self) -> Any:
        """The cause of the gate."""
        return self.gate.cause

    @property
    def is_overload(self) -> Any:
        """Whether its refusals would mean that the process is overloaded."""
        return self.gate.is_overload

    @property
    def limit(self) -> Any:
        """The limit of the gate."""
        return self.gate.limit

    @property
    def usage(self) -> Any:
        """Usage of the gate."""
        return self.gate.usage

    @property
    def is_watched(self) -> bool:
        """Whether the gate may want to be sampled."""
        return self.gate.is_watched

    def admit(self, session: Session, /) -> AbstractAsyncContextManager[None]:
        """Return a context manager that holds the gate's permit, if there is one."""
        return ShadowedPermit(self.gate, session)

    def adopt(self, session: Session, /) -> AbstractAsyncContextManager[None]:
        """Have the gate count a session that is already open."""
        return ShadowedPermit(self.gate, session, self.gate.adopt(session))

    def shadowed(self, session: Session, permit: AbstractAsyncContextManager[Any]) -> AbstractAsyncContextManager[None]:
        """Return ``permit`` of the gate, wrapped unless it is wrapped already."""
        return permit if isinstance(permit, ShadowedPermit) else ShadowedPermit(self.gate, session, permit)

    def sample(self) -> None:
        """Let the gate take its samples."""
        self.gate.sample()

    def pause(self) -> None:
        """Have the gate forget its samples."""
        self.gate.pause()

    def attach(self, report: Observer) -> None:
        """Have the gate report events to ``report``."""
        self.gate.attach(report)

    def start(self) -> None:
        """Start the gate's background work."""
        self.gate.start()

    async def stop(self) -> None:
        """Stop the gate's background work."""
        await self.gate.stop()


def unshadowed(gate: GateBase) -> GateBase:
    """Return the gate of a shadow; any other gate as it is."""
    return gate.gate if isinstance(gate, Shadow) else gate


def report_in_shadow(session: Session, name: str, wish: TryAgainLater | EndedFromOutside) -> None:
    """Report the close that ``session`` would have had.

    :param name: the limit in the shadow.
    """
    refusal = wish if isinstance(wish, TryAgainLater) else None
    session.report(
        SessionRefused(
            session=session.facts(),
            close=Close(wish.code, wish.reason),
            gate=name,
            cause=wish.cause or "unknown",
            retry_after=0.0 if refusal is None else refusal.retry_after or 0.0,
            mode="shadow",
            usage=None if refusal is None else refusal.usage,
            limit=None if refusal is None else refusal.limit,
            is_overload=wish.is_overload,
        )
    )


class ShadowedPermit:
    """Permit of ``gate``, or none if it would have refused."""

    __slots__ = ("_gate", "_session", "permit")

    def __init__(self, gate: GateBase, session: Session, permit: AbstractAsyncContextManager[Any] = NO_PERMIT) -> None:
        self._gate = gate
        self._session = session
        self.permit = permit
        """Permit of the gate."""

    async def __aenter__(self) -> None:
        with self._refusing_nobody():
            permit = self._gate.admit_in_shadow(self._session)
            await permit.__aenter__()
            self.permit = permit

    def rekey(self) -> None:
        """Have the gate count the session under its new key, if it counts it."""
        with self._refusing_nobody():
            rekey(self.permit)

    @contextmanager
    def _refusing_nobody(self) -> Generator[None]:
        try:
            yield
        except Exception as error:
            if (refusal := refusal_in(error)) is None:
                raise
            refusal.repair()
            refusal.gate = refusal.gate or self._gate.name
            self._session.report_repairs(refusal, Close(refusal.code, refusal.reason))
            report_in_shadow(self._session, self._gate.name, refusal)
            # Their frames hold the session: a cycle, which Python 3.13 would keep.
            error.__traceback__ = refusal.__traceback__ = None

    async def __aexit__(
        self, cls: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return await self.permit.__aexit__(cls, error, trace)
