"""Common part of the cluster gates: the task beside the sessions, and two parameters."""

from __future__ import annotations

import abc
from typing import Any, get_args

from asgi_closecodes import events
from asgi_closecodes.bounds import is_between
from asgi_closecodes.gates.base import token
from asgi_closecodes.gates.sessions import Limited
from asgi_closecodes.naming import shown

from .lease import Fallback, Terms
from .task import ProcessTask

MIN_LEASE_DURATION_S = 2.0
"""Shortest lease: it has to outlast a refresh, another one that fails after a second, and a third."""


class ClusterGate(Limited):
    """Gate that shares its limit through a store; a task in each process talks to it."""

    def __init__(
        self,
        cluster_name: str,
        task: ProcessTask,
        terms: Terms,
        lease_duration: float,
        fallback: Fallback,
        **parameters: Any,
    ) -> None:
        """Build the gate.

        :param parameters: those of the next base class, such as the limit.
        """
        self._cluster_name = cluster_name
        self._task = task
        self._terms = terms
        self._report: events.Observer = _nobody
        self._is_stopped = False
        super().__init__(**parameters)
        self.lease_duration = lease_duration
        self.fallback = fallback

    def _default_name(self) -> str:
        name = super()._default_name()
        return name if self._cluster_name == "default" else token(f"{name}.{self._cluster_name}")

    def _on_limit_changed(self) -> None:
        super()._on_limit_changed()
        if self._limit is None:
            self._task.stop_soon()

    @property
    def lease_duration(self) -> float:
        """Seconds after which a dead process's permits are free, and for which a process may admit by itself."""
        return self._terms.lease_duration

    @lease_duration.setter
    def lease_duration(self, lease_duration: float) -> None:
        if not is_between(lease_duration, MIN_LEASE_DURATION_S, 3600):
            raise ValueError(
                f"lease_duration={shown(lease_duration)}: use {MIN_LEASE_DURATION_S:g} to 3600 seconds; "
                "a shorter lease would end between two syncs"
            )
        self._terms.lease_duration = lease_duration

    @property
    def fallback(self) -> Fallback:
        """Rule of admission while Redis is unreachable: ``share``, ``open`` or ``closed``."""
        return self._terms.fallback

    @fallback.setter
    def fallback(self, fallback: Fallback) -> None:
        if fallback not in get_args(Fallback):
            raise ValueError(f"fallback={shown(fallback)}: use 'share', 'open' or 'closed'")
        self._terms.fallback = fallback

    def attach(self, report: events.Observer) -> None:
        """Report events to ``report`` from now on."""
        self._report = report

    def _forward_event(self, event: events.Event) -> None:
        self._report(event)

    def start(self) -> None:
        """Start the task that talks to the store.

        :raises RuntimeError: on trio.
        """
        self._is_stopped = False
        if self._limit is not None:
            self._task.start()

    def sample(self) -> None:
        """Wake the task if a sync is due, unless this process has left: the ticker outlasts the lifespan a little."""
        if not self._is_stopped:
            self.start()
            self._task.wake_if_due()

    async def stop(self) -> None:
        """Release this process's permits, and stop until it is started or asked again."""
        self._is_stopped = True
        await self._task.stop()

    @abc.abstractmethod
    def forked(self) -> None:
        """Reset in a child process: tasks and connections are the parent's."""


def _nobody(_event: events.Event) -> None:
    pass
