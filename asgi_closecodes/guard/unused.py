"""Guards that no middleware has, and which therefore limit nobody."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Collection
from typing import Protocol

from starlette.middleware import Middleware

from asgi_closecodes.events import SettingIgnored
from asgi_closecodes.settings import LIMITS, Settings


class _Guard(Protocol):
    @property
    def has_limits(self) -> bool:
        """Whether it would limit anybody."""

    def warn_if_unused(self) -> None:
        """Report that no middleware has this guard."""


_unused: weakref.WeakSet[_Guard] = weakref.WeakSet()


def add(guard: _Guard) -> None:
    """Remember a guard that no middleware has yet."""
    _unused.add(guard)


def discard(guard: _Guard) -> bool:
    """Forget ``guard``: a middleware has it, or it was reported. Return whether it was remembered."""
    is_new = guard in _unused
    _unused.discard(guard)
    return is_new


def warn() -> None:
    """Report the guards with limits that no middleware has although an application has started."""
    if guards := [guard for guard in [*_unused] if guard.has_limits]:
        waiting = _waiting()
        for guard in guards:
            if not any(guard is one for one in waiting):
                guard.warn_if_unused()


def _waiting() -> Collection[object]:
    """Return the arguments of middleware that Starlette has yet to build, as it does at the first call.

    This looks at every object there is: tens of milliseconds in a large application.
    """
    specs = [one for one in gc.get_objects() if type(one) is Middleware]  # no isinstance(): a proxy may raise
    return [given for spec in specs for given in (*spec.args, *spec.kwargs.values())]


def event(settings: Settings, own_gate: str | None) -> SettingIgnored:
    """Return the event for an unused guard with these settings.

    :param own_gate: the name of the class of the gate that was given to it.
    """
    limits = {name: getattr(settings, name) for name in LIMITS}
    described = [f"{name}={limit}" for name, limit in limits.items() if limit is not None]
    if own_gate is not None:
        described.append(f"gate={own_gate}")
    problem = "no CloseCodeMiddleware has this guard: give it to one, as CloseCodeMiddleware(app, guard=guard)"
    return SettingIgnored(f"Guard({', '.join(described)})", problem)
