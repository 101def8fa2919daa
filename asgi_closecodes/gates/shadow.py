"""A gate that refuses nobody, and says whom it would have refused."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractAsyncContextManager, contextmanager
from types import TracebackType
from typing import Any

from asgi_closecodes.codes import Close
from asgi_closecodes.events import SessionRefused
from asgi_closecodes.exceptions import refusal_in
from asgi_closecodes.session import Session

from .base import FREE, Gate, checked_gate, recount


class Shadow:
    """Asks ``gate``, and refuses nobody: it only counts and logs what ``gate`` would have refused.

    A limit can be tried this way before it bites. Sessions that would have been refused are not held by ``gate``.
    """

    __slots__ = ("gate",)

    def __init__(self, gate: Gate) -> None:
        self.gate = checked_gate(gate)
        if getattr(gate, "when_full", "refuse") != "refuse":
            gate.when_full = "refuse"  # type: ignore[attr-defined] # nobody leaves for a limit that only looks

    @property
    def limit(self) -> object:
        """The limit of the gate, if it has one."""
        return getattr(self.gate, "limit", None)

    @property
    def active(self) -> object:
        """What the gate holds, if it says so."""
        return getattr(self.gate, "active", None)

    def sample(self) -> None:
        """Let the gate take its samples."""
        if (sample := getattr(self.gate, "sample", None)) is not None:
            sample()

    def admit(self, session: Session, /) -> AbstractAsyncContextManager[None]:
        """Return a context manager that holds the gate's place, if there is one."""
        return _Shadowed(self.gate, session)


class _Shadowed:
    """A place in ``gate``, or none without a refusal."""

    __slots__ = ("_gate", "_place", "_session")

    def __init__(self, gate: Gate, session: Session) -> None:
        self._gate = gate
        self._session = session
        self._place: AbstractAsyncContextManager[Any] = FREE

    async def __aenter__(self) -> None:
        with self._refusing_nobody():
            place = self._gate.admit(self._session)
            await place.__aenter__()
            self._place = place

    def recount(self) -> None:
        """Have the gate count the session under its new key, if it counts it."""
        with self._refusing_nobody():
            recount(self._place)

    @contextmanager
    def _refusing_nobody(self) -> Generator[None]:
        try:
            yield
        except Exception as error:
            if (refusal := refusal_in(error)) is None:
                raise
            refusal.repair()
            refusal.gate = refusal.gate or type(self._gate).__name__
            close = Close(refusal.code, refusal.reason)
            self._session.report_repairs(refusal, close)
            self._session.report(
                SessionRefused(
                    session=self._session.facts(),
                    close=close,
                    gate=type(self._gate).__name__,
                    cause=refusal.cause or "unknown",
                    retry_after=refusal.retry_after or 0.0,
                    mode="shadow",
                    usage=refusal.usage,
                    limit=refusal.limit,
                    is_overload=refusal.is_overload,
                )
            )
            # Their frames hold the session, and Python 3.13 keeps the circle.
            error.__traceback__ = refusal.__traceback__ = None

    async def __aexit__(
        self, cls: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return await self._place.__aexit__(cls, error, trace)
