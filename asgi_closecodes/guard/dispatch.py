"""Events to observers. One that fails is reported once, and called again."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import ParamSpec, TypeVar

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
    """Hands each event to the observers that it is for.

    :param own: observers of some kinds of events, which hear of them first.
    :param followers: observers of all events.
    """

    __slots__ = ("__weakref__", "_observers", "_reported", "_watchers", "followers")

    def __init__(
        self, own: Mapping[events.Observer, Iterable[type]], followers: Iterable[events.Observer] = ()
    ) -> None:
        self.followers = followers = tuple(followers)
        self._observers: dict[type, tuple[events.Observer, ...]] = {
            kind: (*(observer for observer, kinds in own.items() if kind in kinds), *self.followers)
            for kind in events.KINDS
        }
        self._reported: set[Hashable] = set()
        objects: list[object] = [*followers]  # for mypy, which takes a function for nothing else
        self._watchers = [observer for observer in objects if isinstance(observer, events.WatchingObserver)]

    def report(self, event: events.Event) -> None:
        """Hand ``event`` to every observer that it is for."""
        for observer in self._observers.get(type(event)) or self._observers_of(type(event)):
            try:
                returned = observer(event)
                if returned is not None:
                    reject_coroutine(returned)
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:  # a CancelledError too: of a future that it asked, nobody cancels a call
                self.failed_once(f"observer {name_of(observer)}", id(observer), error)

    def _observers_of(self, kind: type) -> tuple[events.Observer, ...]:
        """Return the observers of an event class of the user's, whose gate may report its own: by its base class."""
        return next((self._observers[base] for base in kind.__mro__ if base in self._observers), self.followers)

    def report_once(self, key: Hashable, event: events.Event) -> None:
        """Report the first of all events of one ``key``; those of too many keys are one together."""
        with COUNTING:
            key = key if key in self._reported or len(self._reported) < _MAX_ONCE else None
            is_new = key not in self._reported
            self._reported.add(key)
        if is_new:
            self.report(event)

    def failed_once(self, name: str, key: Hashable, error: BaseException) -> None:
        """Report once that something which the user plugged in has failed."""
        self.report_once(key, events.CallbackFailed(name, error))

    def watch(self, snapshot: Callable[[], events.Snapshot | None]) -> None:
        """Give ``snapshot`` to the observers that ask for it."""
        for watcher in self._watchers:
            watcher.watch(snapshot)

    def is_watched(self) -> bool:
        """Whether there are such observers."""
        return bool(self._watchers)

    def sample(self) -> None:
        """Have those that ask by themselves do so."""
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
        """Return what a method of a gate's or an observer's answers, or ``default`` where it fails.

        :param read: makes the answer what it should be.
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
    """Do nothing.

    :raises TypeError: if ``returned`` is a coroutine, which nobody awaits.
    """
    if inspect.iscoroutine(returned):
        returned.close()
        raise TypeError("this has to be a plain function; it is async and was not awaited")


def checked_observers(observers: Iterable[events.Observer]) -> list[events.Observer]:
    """Return ``observers``.

    :raises TypeError: if they are no list, or one of them cannot be called.
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
    """Return a function that does what ``method`` does as long as its object lives, then nothing."""
    reference = weakref.WeakMethod(method)

    def call_if_alive(*arguments: _Arguments.args, **options: _Arguments.kwargs) -> _Returned | None:
        alive = reference()
        return None if alive is None else alive(*arguments, **options)

    return call_if_alive
