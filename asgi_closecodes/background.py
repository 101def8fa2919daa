"""Tasks that belong to no session: started from plain functions, on asyncio and trio, gone with their event loop."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Awaitable, Callable

import anyio

from .channel import on_asyncio

_LOGGER = logging.getLogger("asgi_closecodes.error")

_tasks: set[asyncio.Task[None]] = set()  # asyncio itself holds its tasks only weakly


def spawn(function: Callable[..., Awaitable[object]], *arguments: object) -> None:
    """Run ``function`` in a task of its own, as long as the event loop runs; what it raises is logged.

    A task, and not a task group's: where no lifespan reaches the middleware, nobody could hold one open.
    """
    if on_asyncio():
        task = asyncio.get_running_loop().create_task(logged(function, *arguments), context=contextvars.Context())
        _tasks.add(task)
        task.add_done_callback(_tasks.discard)
    else:
        import trio  # noqa: PLC0415 - only where it runs

        trio.lowlevel.spawn_system_task(logged, function, *arguments)


def inside_event_loop() -> bool:
    """Whether there is an event loop to run something in."""
    try:
        anyio.get_current_task()
    except RuntimeError:
        return False
    return True


async def logged(function: Callable[..., Awaitable[object]], *arguments: object) -> None:
    """Run ``function``; what it raises is logged."""
    try:
        await function(*arguments)
    except Exception:
        name = getattr(function, "__qualname__", repr(function))
        _LOGGER.exception("background work failed: %s", name, extra={"event.name": "closecodes.background.failed"})
