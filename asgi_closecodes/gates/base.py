"""What a gate is.

A gate is anything with ``admit(session)`` that returns an async context manager: entering it reserves
capacity or raises :class:`TryAgainLater`, leaving it gives the capacity back. There is no release call.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from asgi_closecodes.session import Session


class Gate(Protocol):
    """Decides whether there is room for one more session.

    A gate may also have any of these, which the background ticker calls about ten times a second:

    * ``sample()``: look at the world;
    * ``excess()``: return how many sessions, whichever, should leave;
    * ``to_shed()``: yield sessions that should leave, at the pace of the setting ``shed_rate``;
    * ``expired()``: yield sessions that have to leave now, whatever the setting ``shed`` says;
    * ``cause``: a token that their clients are told, else ``shed``.

    The context manager may have ``recount()``, which is called when a handler has set the session's ``key``, and
    raises :class:`TryAgainLater` if there is no room for it under that one.

    Observers of numbers are shown its ``limit``, and as what is in use its ``usage``, else ``active``.

    And any of these, for work in the background:

    * ``attach(report)``: it may tell events to ``report``;
    * ``start()``: called when the application starts; a RuntimeError keeps it from starting;
    * ``stop()``: awaited when the application has stopped, for 10 seconds at most.
    """

    def admit(self, session: Session, /) -> AbstractAsyncContextManager[Any]:
        """Return a context manager that holds the session's place.

        Entering it raises :class:`TryAgainLater` to refuse the session. Anything else that it raises is a
        fault of the gate: it is logged, and the setting ``gate_failure`` decides.
        """


class _Free(AbstractAsyncContextManager[None]):
    """The place in a gate that holds nothing."""

    __slots__ = ()

    async def __aexit__(self, *_error: object) -> None:
        pass


FREE = _Free()
"""What a gate that only looks, and holds nothing, returns for those whom it admits."""


def checked_gate(gate: Gate, name: str = "a gate") -> Gate:
    """Return ``gate``.

    :raises TypeError: if it is none, such as the class of one, which has all of its methods.
    """
    kind = gate.__qualname__ if isinstance(gate, type) else type(gate).__qualname__
    if not callable(getattr(gate, "admit", None)):
        remedy = "AllOf(...) makes one gate of several" if isinstance(gate, (list, tuple, set)) else "see gates.Gate"
        raise TypeError(f"{name}: {kind} has no method admit(session); {remedy}")
    if isinstance(gate, type):
        raise TypeError(f"{name}: {kind} is a class; give a gate of it, as {kind}(...)")
    return gate


def recount(place: AbstractAsyncContextManager[Any]) -> None:
    """Have the gate of ``place`` count its session under the key that it has now, if it counts by key."""
    if (recount := getattr(place, "recount", None)) is not None:
        recount()
