"""Gates decide whether there is room for one more session.

A gate is anything with ``admit(session)`` that returns an async context manager. Entering it takes a permit or raises
:class:`TryAgainLater`; leaving it releases the permit.
"""

from __future__ import annotations

import abc
import re
from collections.abc import Container, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Any, ClassVar, Protocol, runtime_checkable

from asgi_closecodes.events import Observer
from asgi_closecodes.exceptions import TryAgainLater
from asgi_closecodes.naming import shown
from asgi_closecodes.session import Session

_MAX_NAME = 64
_NAME = re.compile(rf"[A-Za-z0-9_.-]{{1,{_MAX_NAME}}}")


class Gate(Protocol):
    """Decides whether there is room for one more session. Inherit :class:`GateBase` for more than that.

    The context manager may also be a :class:`KeyedPermit`: its ``rekey`` is called when the session's ``key`` changes.
    """

    def admit(self, session: Session, /) -> AbstractAsyncContextManager[Any]:
        """Return a context manager that holds the session's permit.

        Entering it raises :class:`TryAgainLater` to refuse the session. Any other exception is a fault of the gate: it
        is logged, and the setting ``gate_failure`` decides.
        """


@runtime_checkable
class KeyedPermit(Protocol):
    """Permit of a gate that counts by key."""

    def rekey(self) -> None:
        """Move to the key that the session has now.

        :raises TryAgainLater: if there is no room under it; the permit then keeps its old key.
        """


class GateBase(abc.ABC):
    """Gate with a name, numbers for metrics, and background work. Only ``admit`` is required.

    About ten times a second the background ticker calls ``sample``, ``excess``, ``to_shed`` and ``expired``.

    :param name: the gate's name in logs, metrics, snapshots and alerts: 1 to 64 letters, digits, ``_``, ``.`` and
        ``-``. By default the attribute ``name`` of the class, or the class's own: ``max_sessions`` for ``MaxSessions``.
        A guard makes default names unique, as ``max_sessions_2``.
    :raises ValueError: if ``name`` cannot be used.
    :raises TypeError: if the class has no ``admit``.
    """

    __slots__ = ("_given_name", "_name")

    _class_name: ClassVar[str | None] = None  # the attribute ``name`` of a class; subclasses inherit it
    _own_name: ClassVar[str | None] = None  # of the library's gates, whose classes may be renamed; not inherited
    _is_ticked: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls._is_ticked = any(getattr(cls, name) is not getattr(GateBase, name) for name in _TICKED)
        if isinstance(name := vars(cls).get("name"), str):
            cls._class_name = name
            del cls.name  # else it would hide the property

    def __init__(self, name: str | None = None) -> None:
        _check_admit(self, type(self).__qualname__)
        self._given_name = None if name is None else _checked_name(name)
        self._name = self._given_name or _checked_name(self._default_name())

    def _default_name(self) -> str:
        return self._class_name or vars(type(self)).get("_own_name") or default_name(type(self))

    @property
    def name(self) -> str:
        """The gate's name."""
        return self._name

    @name.setter
    def name(self, name: str) -> None:
        self._given_name = self._name = _checked_name(name)

    @property
    def is_named(self) -> bool:
        """Whether the name was given explicitly."""
        return self._given_name is not None or type(self).name is not GateBase.name

    def name_apart_from(self, taken: Container[str]) -> None:
        """Take the default name, or the first of ``max_sessions_2``, ``max_sessions_3`` … that is not ``taken``."""
        default = self._name = _checked_name(self._default_name())
        number = 1
        while self._name in taken:
            suffix = f"_{(number := number + 1)}"
            self._name = f"{default[: _MAX_NAME - len(suffix)]}{suffix}"

    # Any: a subclass may have an attribute or a property in its place, and type checkers let nothing else be both.
    cause: Any = "shed"
    """Token that tells clients why this gate refuses or sheds them."""
    is_overload: Any = True
    """Whether its refusals mean that the process is overloaded, not that a client is at its own limit."""
    limit: Any = None
    """Limit, a number; None if there is none."""
    usage: Any = None
    """Part of the limit that is in use, a number; None if it is unknown."""

    @property
    def is_watched(self) -> bool:
        """Whether the ticker has work to do for this gate."""
        return self._is_ticked

    @abc.abstractmethod
    def admit(self, session: Session, /) -> AbstractAsyncContextManager[Any]:
        """Return a context manager that holds the session's permit; see :meth:`Gate.admit`."""

    def admit_in_shadow(self, session: Session, /) -> AbstractAsyncContextManager[Any]:
        """Return the same for :class:`Shadow`: a permit that may refuse, but never sheds another session for it."""
        return self.admit(session)

    def adopt(self, _session: Session, /) -> AbstractAsyncContextManager[Any]:
        """Return the permit of a session that was open before this gate was set: it is counted, never refused."""
        return NO_PERMIT

    def _refusal(
        self, usage: float | None = None, *, retry_after: float | None = None, cause: str | None = None
    ) -> TryAgainLater:
        """Return a refusal by this gate, which is not checked.

        The session does that when it sends it. The constructor does it too, for users, and takes four times as long.
        """
        refusal = TryAgainLater.__new__(TryAgainLater, TryAgainLater.reason)
        refusal.cause = self.cause if cause is None else cause
        refusal.usage, refusal.limit, refusal.retry_after = usage, self.limit, retry_after
        refusal.is_overload = self.is_overload
        return refusal

    def sample(self) -> None:
        """Sample what the gate measures."""

    def pause(self) -> None:
        """Forget the last sample: none will be taken for now."""

    def excess(self) -> int:
        """Return how many sessions should be shed, no matter which."""
        return 0

    def to_shed(self) -> Iterable[Session]:
        """Return the sessions that should be shed, at the pace of the setting ``shed_rate``."""
        return ()

    def expired(self) -> Iterable[Session]:
        """Return the sessions that have to end now, whatever the setting ``shed_order`` says."""
        return ()

    def attach(self, report: Observer) -> None:
        """Report events to ``report`` from now on."""

    def start(self) -> None:
        """Start background work, as the application starts.

        :raises RuntimeError: to keep the application from starting.
        """

    async def stop(self) -> None:
        """Stop background work, as the application has stopped; within 10 s."""


_TICKED = ("sample", "excess", "to_shed", "expired")
_ABILITIES = (*_TICKED, "adopt", "attach", "start", "stop")


class _BareGate(GateBase):
    """Wrapper of an object with ``admit``; uses those of :class:`GateBase`'s methods and numbers that it has."""

    def __init__(self, gate: Any) -> None:
        self._gate = gate
        name = getattr(gate, "name", None)
        name = name if _is_name(name) else None
        is_of_class = name is getattr(type(gate), "name", None)
        self._default = (is_of_class and name) or default_name(type(gate))
        super().__init__(None if is_of_class else name)
        for ability in _ABILITIES:
            if callable(method := getattr(gate, ability, None)):
                setattr(self, ability, method)

    def _default_name(self) -> str:
        return self._default

    @property
    def cause(self) -> str:
        cause: str = getattr(self._gate, "cause", super().cause)
        return cause

    @property
    def is_overload(self) -> bool:
        is_overload: bool = getattr(self._gate, "is_overload", super().is_overload)
        return is_overload

    @property
    def limit(self) -> float | None:
        limit: float | None = getattr(self._gate, "limit", None)
        return limit

    @property
    def usage(self) -> float | None:
        usage: float | None = getattr(self._gate, "usage", None)
        return usage

    @property
    def is_watched(self) -> bool:
        try:
            has_work = getattr(self._gate, "limit", 0) is not None
        except Exception:
            has_work = True
        return has_work and any(name in vars(self) for name in _TICKED)

    def admit(self, session: Session, /) -> AbstractAsyncContextManager[Any]:
        permit: AbstractAsyncContextManager[Any] = self._gate.admit(session)
        return permit


def as_gate(gate: Gate, what: str = "a gate") -> GateBase:
    """Return ``gate``, wrapped if it is no :class:`GateBase`.

    No other code checks what attributes a gate has.

    :param what: name of the argument, for the error.
    :raises TypeError: if it is no gate; a class is none, though it has the methods.
    :raises ValueError: if its name is no token.
    """
    kind = gate.__qualname__ if isinstance(gate, type) else type(gate).__qualname__
    _check_admit(gate, f"{what}: {kind}")
    if isinstance(gate, type):
        raise TypeError(f"{what}: {kind} is a class; give a gate of it, as {kind}(...)")
    if not isinstance(gate, GateBase):
        return _BareGate(gate)
    try:
        name = gate.name
    except AttributeError:  # a subclass that has not called __init__
        GateBase.__init__(gate)
        name = gate.name
    _checked_name(name)
    return gate


def name_gates(gates: Iterable[GateBase], reserved: Container[str] = ()) -> None:
    """Give each gate a unique name, other than those ``reserved``.

    :raises ValueError: if two have been given the same name explicitly.
    """
    gates = {id(gate): gate for gate in gates}.values()
    taken: set[str] = set()
    for gate in gates:
        if gate.is_named:
            if gate.name in taken or gate.name in reserved:
                raise ValueError(
                    f"two gates are named {gate.name}: logs, metrics and alerts could not tell them apart; "
                    "give one of them another name, as name='rooms'"
                )
            taken.add(gate.name)
    for gate in gates:
        if not gate.is_named:
            gate.name_apart_from(taken)
            taken.add(gate.name)


def default_name(kind: type) -> str:
    """Return ``max_sessions`` for the class ``MaxSessions``."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", kind.__name__).lower()
    return token(words)


def token(text: str) -> str:
    """Return ``text`` as the nearest valid name of a gate."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", text)[:_MAX_NAME] or "gate"


def _check_admit(gate: object, what: str) -> None:
    if not callable(getattr(gate, "admit", None)):
        remedy = "AllOf(...) makes one gate of several" if isinstance(gate, (list, tuple, set)) else "see gates.Gate"
        raise TypeError(f"{what} has no method admit(session); {remedy}")


def _is_name(name: object) -> bool:
    return type(name) is str and _NAME.fullmatch(name) is not None


def _checked_name(name: str) -> str:
    if not _is_name(name):
        raise ValueError(f"name={shown(name)}: use 1 to {_MAX_NAME} letters, digits, '_', '.' and '-' for a gate")
    return name


class PlainPermit:
    """Permit that is acquired and released without an await: :class:`AllOf` needs no coroutine for it."""

    __slots__ = ()

    def acquire(self) -> None:
        """Take the permit.

        :raises TryAgainLater: to refuse the session.
        """

    def release(self) -> None:
        """Release the permit."""

    async def __aenter__(self) -> None:
        self.acquire()

    async def __aexit__(self, *_error: object) -> None:
        self.release()


NO_PERMIT = PlainPermit()
"""Permit of a gate that counts nothing."""


def rekey(permit: AbstractAsyncContextManager[Any]) -> None:
    """Move ``permit`` to its session's current key, if its gate counts by key."""
    if isinstance(permit, KeyedPermit):
        permit.rekey()
