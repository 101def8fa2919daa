"""Several gates as one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from types import TracebackType
from typing import Any, Literal, Self

import anyio
import anyio.lowlevel

from asgi_closecodes.concurrency import COUNTING, EventLoop, cancelled_from_outside
from asgi_closecodes.events import GateFailed
from asgi_closecodes.exceptions import TryAgainLater, leaves, refusal_in
from asgi_closecodes.session import Session

from .base import NO_PERMIT, Gate, GateBase, PlainPermit, as_gate, rekey
from .shadow import Shadow, ShadowedPermit, unshadowed


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
        """Permits of sessions that wait in a gate, or have passed them all but are not admitted yet."""
        self.is_inherited = False
        """Whether its permits are the parent process's: none is released here."""

    def admit(self, session: Session, /) -> Permits:
        """Return a context manager that holds the session's permits in all gates."""
        return Permits(self, session)

    def replace(self, gates: Sequence[GateBase], admitted: Iterable[Permits]) -> None:
        """Ask ``gates`` from now on, in any event loop, also for sessions that are passing the gates.

        New gates adopt the sessions: the ``admitted`` ones and those that are passing. Removed gates are dropped
        together with their permits.

        :param admitted: read when the gates are others already.
        """
        changes: dict[tuple[int, int], _Change] = {}
        with COUNTING:
            if self.gates == (gates := tuple(gates)):
                return
            self.gates = gates
            passing = self.entering.copy()  # first: another thread's may be admitted at this moment
            following = [*admitted, *passing]
            if passing:
                following.sort(key=_arrived_at)  # the order in which gates would have been asked
            for permits in following:
                permits.follow(gates, changes)


def _flat(gate: GateBase) -> Iterator[GateBase]:
    """Yield the gates that ``gate`` consists of, so that a failure affects only its own gate."""
    if isinstance(gate, AllOf):
        yield from gate.gates
    elif isinstance(gate, Shadow) and isinstance(gate.gate, AllOf):
        yield from map(Shadow, gate.gate.gates)
    else:
        yield gate


class Permits:
    """Permits of one session in the gates of an :class:`AllOf`.

    Not an AsyncExitStack: with that, the error of one gate would replace the handler's. No permit here inherits from
    AbstractAsyncContextManager: before Python 3.13 that gives each instance a dictionary.
    """

    __slots__ = ("_all", "_entered", "_gates", "_session")

    def __init__(self, all_of: AllOf, session: Session) -> None:
        self._all = all_of
        self._gates: tuple[GateBase, ...] | None = ()  # that this session passes; None when it is over
        self._session = session
        self._entered: tuple[AbstractAsyncContextManager[Any], ...] = ()  # the permit of each gate passed so far

    async def __aenter__(self) -> Self:
        # Without a lock: gates that another thread has changed meanwhile are found before a wait, and at the end.
        self._gates = asked = self._all.gates
        try:
            while True:
                for gate in self._gates[len(self._entered) :]:
                    try:
                        permit = gate.admit(self._session)
                        if isinstance(permit, PlainPermit):
                            permit.acquire()
                    except (Exception, asyncio.CancelledError) as error:
                        permit = self._refuse_or_admit_past(gate, error)
                    if not isinstance(permit, PlainPermit):
                        if self._announce(asked):
                            await self._wait_for(gate, permit)
                        break
                    self._entered += (permit,)  # no list: that takes more for as long as the session lasts
                else:
                    if self._announce(asked):
                        return self
                asked = self._catch_up()
        except BaseException as error:
            if await self.__aexit__(type(error), error, error.__traceback__):  # swallowed by a gate
                raise TryAgainLater(cause="gate") from error
            raise

    def _announce(self, asked: tuple[GateBase, ...]) -> bool:
        """Have a change of the gates find these permits from now on; return False if there was one since ``asked``."""
        self._all.entering.add(self)  # first: replace() changes the gates, and then looks here
        return self._all.gates is asked

    async def _wait_for(self, gate: GateBase, permit: AbstractAsyncContextManager[Any]) -> None:
        """Enter ``permit``, and keep it unless its gate is not asked any more."""
        try:
            await permit.__aenter__()
        except (Exception, asyncio.CancelledError) as error:
            permit = self._refuse_or_admit_past(gate, error)
        with COUNTING:
            count = len(self._entered)
            for asked in (self._gates or ())[count : count + 1]:
                if unshadowed(asked) is unshadowed(gate):
                    self._entered += (permit if asked is gate else self._kept(asked, permit),)

    def _catch_up(self) -> tuple[GateBase, ...]:
        """Return the gates that are asked now, and go on with those of them that are left."""
        with COUNTING:
            self._all.entering.discard(self)
            if (gates := self._all.gates) is not self._gates:
                self.follow(gates, {}, adopts=False)
            return gates

    def admitted(self) -> None:
        """Leave ``entering``: from now on the caller of :meth:`AllOf.replace` passes these permits."""
        self._all.entering.discard(self)

    def follow(
        self, gates: tuple[GateBase, ...], changes: dict[tuple[int, int], _Change], *, adopts: bool = True
    ) -> None:
        """Hold permits of ``gates``; the caller has the lock.

        :param changes: by the gates and the number of permits of a session, kept for others that hold the same.
        :param adopts: whether new gates count the session at once; else they are asked.
        """
        if self._gates is None:
            return
        alike = id(self._gates), len(self._entered)
        if (change := changes.get(alike)) is None:
            change = changes[alike] = _Change(self._gates, len(self._entered), gates, adopts=adopts)
        entered = self._entered
        self._gates = change.gates
        self._entered = tuple(
            [self._adopted(gate) if index is None else self._kept(gate, entered[index]) for gate, index in change.held]
        )

    def _kept(self, gate: GateBase, permit: AbstractAsyncContextManager[Any]) -> AbstractAsyncContextManager[Any]:
        """Return ``permit`` as ``gate`` holds it now: wrapped if it is a shadow."""
        if isinstance(gate, Shadow):
            return gate.shadowed(self._session, permit)
        return permit.permit if isinstance(permit, ShadowedPermit) else permit

    def _adopted(self, gate: GateBase) -> AbstractAsyncContextManager[Any]:
        try:
            return gate.adopt(self._session)
        except Exception as error:  # as raised by its key function
            self._session.report_once((id(gate), "adopt"), self._failed(gate, error, "admit", admitted=True))
            return NO_PERMIT

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
        leaving = self.__aexit__(None, None, None)
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
                self._refuse_or_admit_past(gate, error)

    def _refuse_or_admit_past(self, gate: GateBase, error: BaseException) -> PlainPermit:
        if not issubclass(type(error), Exception) and cancelled_from_outside():
            raise error  # else nobody has cancelled this: a future that the gate awaits was
        if (refusal := refusal_in(error)) is not None:
            try:
                refusal.gate = refusal.gate or gate.name
            except Exception:  # a user's class may do anything with its attributes
                refusal = TryAgainLater(cause="gate")
                refusal.gate = gate.name
            raise refusal from (error if error is not refusal else None)
        admitted = self._all.failure == "open"
        self._report(gate, error, "admit", admitted=admitted)
        if not admitted:
            refusal = TryAgainLater(cause="gate")
            refusal.gate = gate.name
            raise refusal from error
        return NO_PERMIT

    async def __aexit__(
        self, cls: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
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
                swallows = await permit.__aexit__(None if pending is None else type(pending), pending, trace)
                # A gate may end its session by its own scope. It must not swallow errors: daphne has to see them.
                if swallows and not issubclass(type(pending), Exception):
                    pending = None
            except Exception as failure:
                # contextlib re-raises the error it throws into a generator, and task groups wrap it: no failure.
                if any(leaf is not pending for leaf in leaves(failure)):
                    gate = next(gate for gate, its in zip(gates, entered, strict=False) if its is permit)
                    self._report(gate, failure, "release", admitted=True)
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

    def _report(
        self, gate: GateBase, error: BaseException, step: Literal["admit", "release"], *, admitted: bool
    ) -> None:
        self._session.report(self._failed(gate, error, step, admitted=admitted))

    def _failed(
        self, gate: GateBase, error: BaseException, step: Literal["admit", "release"], *, admitted: bool
    ) -> GateFailed:
        return GateFailed(self._session.facts(), gate.name, error, step, admitted)


def _arrived_at(permits: Permits) -> float:
    return permits.arrived_at


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


def _is_cancelled(error: BaseException | None) -> bool:
    if error is None or issubclass(type(error), (Exception, GeneratorExit)):
        return False  # returns early: without a running event loop the class below is unknown
    return issubclass(type(error), anyio.get_cancelled_exc_class())
