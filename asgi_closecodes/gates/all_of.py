"""Several gates as one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias

import anyio
import anyio.lowlevel

from asgi_closecodes.concurrency import COUNTING, EventLoop, cancelled_from_outside
from asgi_closecodes.events import GateFailed
from asgi_closecodes.exceptions import TryAgainLater, leaves, refusal_in
from asgi_closecodes.session import Session

from .base import NO_PERMIT, Gate, GateBase, PlainPermit, as_gate, rekey
from .shadow import Shadow, ShadowedPermit, unshadowed

HeldPermits: TypeAlias = tuple[AbstractAsyncContextManager[Any], ...]
"""Permits of a session, one of each gate that it has passed."""

_Waiting: TypeAlias = tuple[GateBase, AbstractAsyncContextManager[Any]]


class AllOf(GateBase):
    """All ``gates`` as one. They are entered in order; the first refusal releases the permits before it, in reverse.

    A gate that fails is reported. The others still admit, refuse and release.

    :param failure: effect of a gate that fails on entry: ``open`` admits past it, ``closed`` refuses.
    """

    _own_name = "all_of"
    __slots__ = ("entering", "failure", "gates", "is_inherited")

    def __init__(self, *gates: Gate, failure: Literal["open", "closed"] = "open") -> None:
        super().__init__()
        self.gates: tuple[GateBase, ...] = tuple(one for gate in gates for one in _flat(as_gate(gate)))
        self.failure = failure
        self.entering: set[Permits] = set()
        """Permits of sessions that wait in a gate, or hold them outside of a guard."""
        self.is_inherited = False
        """Whether its permits are the parent process's: none is released here."""

    def admit(self, session: Session, /) -> Permits:
        """Return a context manager that holds the session's permits in all gates."""
        return Permits(self, session)

    def replace(self, gates: Sequence[GateBase], sessions: Iterable[Session]) -> None:
        """Ask ``gates`` from now on, in any event loop, also for sessions that are passing the gates.

        New gates adopt the sessions: the admitted ones and those that are passing. Removed gates are dropped together
        with their permits.

        :param sessions: the admitted ones.
        """
        changes: dict[tuple[int, int], _Change] = {}
        with COUNTING:
            before = self.gates
            if before == (gates := tuple(gates)):
                return
            self.gates = gates
            following: list[Session | Permits] = [*sessions]
            if self.entering:
                following += self.entering
                following.sort(key=_arrived_at)  # the order in which gates would have been asked
            for one in following:
                if isinstance(one, Permits):
                    one.follow(gates, changes)
                elif (permits := one.permits) is not None:
                    one.permits = _change(changes, before, permits, gates).made(one, permits)

    def take(self, session: Session, admit: Callable[[Session, HeldPermits], None]) -> Awaitable[None] | None:
        """Ask the gates for permits of ``session``; return what has to be awaited if one of them waits.

        :param admit: called with all permits while no gate can change, to keep them. It may refuse too.
        """
        asked = self.gates
        alike: Any = asked  # where each gate itself is the permit, all sessions share one tuple
        permits: HeldPermits = ()  # no list: that takes more for as long as the session lasts
        waiting: _Waiting | None = None
        try:
            for gate in asked:
                permit = self.ask(gate, session)
                if not isinstance(permit, PlainPermit):
                    waiting = gate, permit
                    break
                permits += (permit,)
            else:
                with COUNTING:
                    if self.gates is asked:  # else another thread has changed them meanwhile
                        admit(session, alike if permits == alike else permits)
                        return None
        except BaseException:
            if permits:
                Permits(self, session, asked, permits).let_go()
            raise
        return Permits(self, session, asked, permits).wait(waiting, admit)

    def ask(self, gate: GateBase, session: Session) -> AbstractAsyncContextManager[Any]:
        """Return the permit of ``gate``, acquired unless that has to be awaited."""
        try:
            permit = gate.admit(session)
            if isinstance(permit, PlainPermit):
                permit.acquire()
        except (Exception, asyncio.CancelledError) as error:
            return self.refuse_or_admit_past(gate, session, error)
        return permit

    def refuse_or_admit_past(self, gate: GateBase, session: Session, error: BaseException) -> PlainPermit:
        """Raise the refusal that ``error`` of ``gate`` is; if it is a fault, do what ``failure`` says."""
        if not issubclass(type(error), Exception) and cancelled_from_outside():
            raise error  # else nobody has cancelled this: a future that the gate awaits was
        if (refusal := refusal_in(error)) is not None:
            try:
                refusal.gate = refusal.gate or gate.name
            except Exception:  # a user's class may do anything with its attributes
                refusal = TryAgainLater(cause="gate")
                refusal.gate = gate.name
            raise refusal from (error if error is not refusal else None)
        admitted = self.failure == "open"
        session.report(GateFailed(session.facts(), gate.name, error, "admit", admitted))
        if not admitted:
            refusal = TryAgainLater(cause="gate")
            refusal.gate = gate.name
            raise refusal from error
        return NO_PERMIT

    def release(self, session: Session, gates: tuple[GateBase, ...], permits: HeldPermits) -> Permits | None:
        """Release the permits of a session, the last first; return those that are left if one has to be awaited.

        :param gates: those of the permits: others may be asked by now.
        """
        left = len(permits)
        for permit in reversed(permits):
            if not isinstance(permit, PlainPermit):
                return Permits(self, session, gates, permits[:left])
            try:
                permit.release()
            except Exception as failure:
                _report_release(permit, session, gates, permits, failure)
            except BaseException:  # as of a future that was cancelled, which a user's gate asks for its result
                Permits(self, session, gates, permits[: left - 1]).let_go()
                raise
            left -= 1
        return None


def _flat(gate: GateBase) -> Iterator[GateBase]:
    """Yield the gates that ``gate`` consists of, so that a failure affects only its own gate."""
    if isinstance(gate, AllOf):
        yield from gate.gates
    elif isinstance(gate, Shadow) and isinstance(gate.gate, AllOf):
        yield from map(Shadow, gate.gate.gates)
    else:
        yield gate


class Permits:
    """Permits of one session in the gates of an :class:`AllOf`. A guard's sessions keep them themselves when admitted.

    Not an AsyncExitStack: with that, the error of one gate would replace the handler's. No permit here inherits from
    AbstractAsyncContextManager: before Python 3.13 that gives each instance a dictionary.

    :param gates: those that the session passes.
    :param entered: the permits that it has already.
    """

    __slots__ = ("_all", "_entered", "_gates", "_session")

    def __init__(
        self, all_of: AllOf, session: Session, gates: tuple[GateBase, ...] = (), entered: HeldPermits = ()
    ) -> None:
        self._all = all_of
        self._gates: tuple[GateBase, ...] | None = gates  # None when it is over
        self._session = session
        self._entered = entered  # the permit of each gate passed so far

    async def __aenter__(self) -> Self:
        if (waiting := self._all.take(self._session, self._keep)) is not None:
            await waiting
        return self

    def _keep(self, _session: Session, permits: HeldPermits) -> None:
        self._gates, self._entered = self._all.gates, permits
        self._all.entering.add(self)

    async def wait(self, waiting: _Waiting | None, admit: Callable[[Session, HeldPermits], None]) -> None:
        """Wait for the permit ``waiting``, and for those of the gates that are left; see :meth:`AllOf.take`."""
        asked = self._gates or ()
        try:
            while True:
                if waiting is None:
                    if self._settle(asked, admit):
                        return
                elif self._announce(asked):
                    await self._wait_for(*waiting)
                asked = self._catch_up()
                waiting = self._ask()
        except BaseException as error:
            if await self.release(error):  # swallowed by a gate
                raise TryAgainLater(cause="gate") from error
            raise

    def _ask(self) -> _Waiting | None:
        """Take the permits of the gates that are left, up to one that waits; return that one."""
        for gate in (self._gates or ())[len(self._entered) :]:
            permit = self._all.ask(gate, self._session)
            if not isinstance(permit, PlainPermit):
                return gate, permit
            self._entered += (permit,)
        return None

    def _settle(self, asked: tuple[GateBase, ...], admit: Callable[[Session, HeldPermits], None]) -> bool:
        """Hand all permits to ``admit``; return False if gates have changed since ``asked``."""
        with COUNTING:
            if self._all.gates is not asked:
                return False
            if self._gates is not asked:  # they were asked in another order
                self.follow(asked, {})
            admit(self._session, self._entered)
            return True

    def _announce(self, asked: tuple[GateBase, ...]) -> bool:
        """Have a change of the gates find these permits from now on; return False if there was one since ``asked``."""
        with COUNTING:
            if self._all.gates is not asked:
                return False
            self._all.entering.add(self)
            return True

    async def _wait_for(self, gate: GateBase, permit: AbstractAsyncContextManager[Any]) -> None:
        """Enter ``permit``, and keep it unless its gate is not asked any more."""
        try:
            await permit.__aenter__()
        except (Exception, asyncio.CancelledError) as error:
            permit = self._all.refuse_or_admit_past(gate, self._session, error)
        with COUNTING:
            count = len(self._entered)
            for asked in (self._gates or ())[count : count + 1]:
                if unshadowed(asked) is unshadowed(gate):
                    self._entered += (permit if asked is gate else _kept(asked, permit, self._session),)

    def _catch_up(self) -> tuple[GateBase, ...]:
        """Return the gates that are asked now, and go on with those of them that are left."""
        with COUNTING:
            self._all.entering.discard(self)
            if (gates := self._all.gates) is not self._gates:
                self.follow(gates, {}, adopts=False)
            return gates

    def follow(
        self, gates: tuple[GateBase, ...], changes: dict[tuple[int, int], _Change], *, adopts: bool = True
    ) -> None:
        """Hold permits of ``gates``; the caller has the lock.

        :param changes: by the gates and the number of permits of a session, kept for others that hold the same.
        :param adopts: whether new gates count the session at once; else they are asked.
        """
        if self._gates is None:
            return
        change = _change(changes, self._gates, self._entered, gates, adopts=adopts)
        self._gates = change.gates
        self._entered = change.made(self._session, self._entered)

    @property
    def arrived_at(self) -> float:
        """Arrival of the session in monotonic seconds."""
        return self._session.arrived_at

    @property
    def loop(self) -> EventLoop:
        """Event loop of the session."""
        return self._session.loop

    def let_go(self) -> None:
        """Release all permits without awaiting, since the event loop of the session is gone.

        A user's gate that awaits something stops there, as if garbage-collected.
        """
        most = len(self._entered)
        leaving = self.release()
        with suppress(StopIteration, GeneratorExit, asyncio.CancelledError):
            leaving.send(None)
            for _ in range(most):
                leaving.throw(GeneratorExit())

    def rekey(self) -> None:
        """Have the gates that count by key count the session under its new key.

        :raises TryAgainLater: if one has no room under that key.
        """
        with COUNTING:
            held = [*zip(self._gates or (), self._entered, strict=False)]
        for gate, permit in held:
            try:
                rekey(permit)
            except Exception as error:
                self._all.refuse_or_admit_past(gate, self._session, error)

    async def __aexit__(
        self, cls: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        return await self.release(error)

    async def release(self, error: BaseException | None = None) -> bool:
        """Release all permits, and show them ``error`` with which the session ends; return whether one swallows it."""
        pending = error
        with COUNTING:
            self._all.entering.discard(self)
            entered, self._entered = () if self._all.is_inherited else self._entered, ()
            gates, self._gates = self._gates or (), None
        for permit in reversed(entered):
            try:
                if isinstance(permit, PlainPermit):
                    permit.release()
                    continue
                trace = None if pending is None else pending.__traceback__
                swallows = await permit.__aexit__(None if pending is None else type(pending), pending, trace)
                # A gate may end its session by its own scope. It must not swallow errors: daphne has to see them.
                if swallows and not issubclass(type(pending), Exception):
                    pending = None
            except Exception as failure:
                # contextlib re-raises the error it throws into a generator, and task groups wrap it: no failure.
                if any(leaf is not pending for leaf in leaves(failure)):
                    _report_release(permit, self._session, gates, entered, failure)
                if _is_cancelled(pending) and not cancelled_from_outside():
                    pending = None  # the cancellation of a task group or a scope of the gate's own,
                    try:
                        await anyio.lowlevel.checkpoint_if_cancelled()  # unless somebody else cancels too
                    except BaseException as cancellation:
                        pending = cancellation
            except BaseException as cancellation:
                pending = cancellation
        if pending is not None and pending is not error:
            raise pending
        return pending is not error


def _arrived_at(one: Session | Permits) -> float:
    return one.arrived_at


def _report_release(
    permit: object, session: Session, gates: Iterable[GateBase], permits: HeldPermits, failure: Exception
) -> None:
    # None if another thread has changed the gates since the session is over.
    gate = next((gate for gate, its in zip(gates, permits, strict=False) if its is permit), None)
    name = "unknown" if gate is None else gate.name
    session.report(GateFailed(session.facts(), name, failure, "release", admitted=True))


def _kept(
    gate: GateBase, permit: AbstractAsyncContextManager[Any], session: Session
) -> AbstractAsyncContextManager[Any]:
    """Return ``permit`` as ``gate`` holds it now: wrapped if it is a shadow."""
    if isinstance(gate, Shadow):
        return gate.shadowed(session, permit)
    return permit.permit if isinstance(permit, ShadowedPermit) else permit


def _adopted(gate: GateBase, session: Session) -> AbstractAsyncContextManager[Any]:
    try:
        return gate.adopt(session)
    except Exception as error:  # as raised by its key function
        session.report_once((id(gate), "adopt"), GateFailed(session.facts(), gate.name, error, "admit", admitted=True))
        return NO_PERMIT


class _Change:
    """Change from gates ``before`` to ``after``, for a session that has passed ``count`` of ``before``."""

    __slots__ = ("before", "gates", "held")

    def __init__(
        self, before: tuple[GateBase, ...], count: int, after: tuple[GateBase, ...], *, adopts: bool = True
    ) -> None:
        self.before = before  # kept alive: changes are found by its id
        passed = {unshadowed(gate): index for index, gate in enumerate(before[:count])}
        left = {*map(unshadowed, before[count:] if adopts else after)} - passed.keys()
        self.held = [(gate, passed.get(unshadowed(gate))) for gate in after if unshadowed(gate) not in left]
        """Gates that hold a permit of the session, each with its index in the old permits; None for a new gate."""
        to_ask = [gate for gate in after if unshadowed(gate) in left]
        self.gates = (*(gate for gate, _ in self.held), *to_ask) if to_ask else after

    def made(self, session: Session, permits: HeldPermits) -> HeldPermits:
        """Return what ``session`` holds after the change instead of ``permits``."""
        return tuple(
            [
                _adopted(gate, session) if index is None else _kept(gate, permits[index], session)
                for gate, index in self.held
            ]
        )


def _change(
    changes: dict[tuple[int, int], _Change],
    before: tuple[GateBase, ...],
    permits: HeldPermits,
    after: tuple[GateBase, ...],
    *,
    adopts: bool = True,
) -> _Change:
    alike = id(before), len(permits)
    if (change := changes.get(alike)) is None:
        change = changes[alike] = _Change(before, len(permits), after, adopts=adopts)
    return change


def _is_cancelled(error: BaseException | None) -> bool:
    if error is None or issubclass(type(error), (Exception, GeneratorExit)):
        return False  # returns early: without a running event loop the class below is unknown
    return issubclass(type(error), anyio.get_cancelled_exc_class())
