"""Delivery of events to observers. An observer that fails is reported once, and still called."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, ParamSpec, TypeVar

from asgi_closecodes import events
from asgi_closecodes.concurrency import COUNTING
from asgi_closecodes.gates import GateBase
from asgi_closecodes.naming import name_of, shown

_Answer = TypeVar("_Answer")
_Arguments = ParamSpec("_Arguments")
_Read = TypeVar("_Read")
_Returned = TypeVar("_Returned")

_MAX_ONCE = 256
"""Kinds of faults that are reported once each."""


class Dispatcher:
    """Hands each event to the observers of its class.

    :param own: observers of some classes of events, which are called first.
    :param followers: observers of all events.
    """

    __slots__ = ("__weakref__", "_observers", "_reported", "_watchers", "followers")

    def __init__(
        self, own: Mapping[Callable[[Any], None], Iterable[type]], followers: Iterable[events.Observer] = ()
    ) -> None:
        self.followers = followers = tuple(followers)
        self._observers: dict[type, tuple[events.Observer, ...]] = {
            kind: (*(observer for observer, kinds in own.items() if kind in kinds), *self.followers)
            for kind in events.KINDS
        }
        self._reported: set[Hashable] = set()
        objects: list[object] = [*followers]  # objects: mypy does not narrow a function to WatchingObserver
        self._watchers = [observer for observer in objects if isinstance(observer, events.WatchingObserver)]

    def report(self, event: events.Event) -> None:
        """Hand ``event`` to every observer of its class."""
        for observer in self._observers.get(type(event)) or self._observers_of(type(event)):
            try:
                returned = observer(event)
                if returned is not None:
                    reject_coroutine(returned)
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:  # CancelledError too: of a future that it reads; nobody cancels a call
                self.failed_once(f"observer {name_of(observer)}", id(observer), error)

    def _observers_of(self, kind: type) -> tuple[events.Observer, ...]:
        """Return the observers of an event class that a user's gate defines: those of its base class."""
        return next((self._observers[base] for base in kind.__mro__ if base in self._observers), self.followers)

    def report_once(self, key: Hashable, event: events.Event) -> None:
        """Report only the first event of each ``key``; beyond a number of keys, all others count as one."""
        with COUNTING:
            key = key if key in self._reported or len(self._reported) < _MAX_ONCE else None
            is_new = key not in self._reported
            self._reported.add(key)
        if is_new:
            self.report(event)

    def failed_once(self, name: str, key: Hashable, error: BaseException) -> None:
        """Report once that a callback of the user's has failed."""
        self.report_once(key, events.CallbackFailed(name, error))

    def watch(self, snapshot: Callable[[], events.Snapshot | None]) -> None:
        """Give ``snapshot`` to the observers that ask for it."""
        for watcher in self._watchers:
            watcher.watch(snapshot)

    def is_watched(self) -> bool:
        """Whether an observer wants snapshots regularly."""
        return bool(self._watchers)

    def sample(self) -> None:
        """Let the observers that read snapshots regularly do so."""
        for watcher in self._watchers:
            if isinstance(watcher, events.SamplingObserver):
                self.ask(watcher, watcher.sample, bool, default=False)

    def ask(
        self,
        owner: GateBase | events.SamplingObserver,
        question: Callable[[], _Answer],
        read: Callable[[_Answer], _Read],
        *,
        default: _Read,
    ) -> _Read:
        """Return what a method of a gate or an observer returns, or ``default`` if it fails.

        :param read: converts the answer.
        """
        try:
            answer = question()
            reject_coroutine(answer)
            return read(answer)
        except Exception as error:
            who = owner.name if isinstance(owner, GateBase) else type(owner).__name__
            what = name_of(question).rpartition(".")[2]
            self.failed_once(f"{who}.{what}", (id(owner), what), error)
            return default


def reject_coroutine(returned: object) -> None:
    """Refuse a coroutine, as of an async function where a plain one is called.

    :raises TypeError: if ``returned`` is a coroutine, which nobody awaits.
    """
    if inspect.iscoroutine(returned):
        returned.close()
        raise TypeError("this has to be a plain function; it is async and was not awaited")


def checked_observers(observers: Iterable[events.Observer]) -> list[events.Observer]:
    """Return ``observers``.

    :raises TypeError: if they are not iterable, or one of them cannot be called.
    """
    try:
        observers = [*observers]
    except TypeError:
        raise TypeError(
            f"observers must be a list of functions, not {shown(observers)}; use observers=[print]"
        ) from None
    for observer in observers:
        if isinstance(observer, type):
            raise TypeError(f"observers: {shown(observer)} is a class; give an observer, as {observer.__name__}()")
        if not callable(observer):
            raise TypeError(f"observers: {shown(observer)} cannot be called; an observer is a function of an event")
    return observers


def weak(method: Callable[_Arguments, _Returned]) -> Callable[_Arguments, _Returned | None]:
    """Return a function that calls ``method`` while its object is alive, and then does nothing."""
    reference = weakref.WeakMethod(method)

    def call_if_alive(*arguments: _Arguments.args, **options: _Arguments.kwargs) -> _Returned | None:
        alive = reference()
        return None if alive is None else alive(*arguments, **options)

    return call_if_alive
