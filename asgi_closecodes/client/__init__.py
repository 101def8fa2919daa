"""A client that reconnects by the close code, as fast as the server can bear."""

from __future__ import annotations

import inspect
import math
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from asgi_closecodes.naming import shown

from .backoff import Backoff
from .events import ClientEvent, Connecting, Ended, GaveUp, Opened

if TYPE_CHECKING:
    import httpx

    from .session import Sessions

__all__ = ["Backoff", "ClientEvent", "Connecting", "Ended", "GaveUp", "Opened", "connect"]


def connect(
    url: str,
    client: httpx.AsyncClient | None = None,
    *,
    backoff: Backoff | None = None,
    on_event: Callable[[ClientEvent], object] | None = None,
    renew: Callable[[], Awaitable[Mapping[str, Any] | None] | Mapping[str, Any] | None] | None = None,
    open_timeout: float | None = 10.0,
    max_size: int | None = 2**20,
    **options: Any,
) -> Sessions:
    """Iterate over sessions, one after another: each is opened when the one before it has ended.

    ::

        async for session in connect("ws://127.0.0.1:8000/chat"):
            async with session:
                await session.send_text("hello")
                async for message in session:
                    print(message)

    The inner block ends with the session, however that happened. The outer loop then waits as :class:`Backoff` says.
    It ends after 1000, and after a close without a code. Other closes that are not retried raise :class:`GaveUp`.

    A session is httpx-ws's ``AsyncWebSocketSession``: its ``receive_text()``, ``send_text()`` and so on raise
    ``WebSocketDisconnect`` or ``WebSocketNetworkError`` at its end. ``async with session:`` swallows those of its own
    session, in exception groups of child tasks too. Without it they leave the outer loop, unless you catch them and
    ``continue``. Iteration ends at the end of the session. Messages sent after it are dropped until the end is
    received, for 5 s at most.

    A turn that leaves its session open closes it with 1001, and the loop reconnects. Leaving the loop closes the
    session with 1000, in the background. ``async with contextlib.aclosing(connect(…)) as sessions`` waits for that.

    :param url: ``ws:`` or ``wss:``, or the same with ``http``.
    :param client: the httpx client to use, which stays open. The default is one of its own.
    :param backoff: the default is ``Backoff()``. It belongs to one loop.
    :param on_event: a plain function that is called with each :class:`Connecting`, :class:`Opened` and :class:`Ended`.
    :param renew: a plain or async function that gets new credentials after 3000 or HTTP 401, before the next attempt.
        It returns a mapping of the arguments to replace, such as ``{"headers": {"authorization": …}}`` or
        ``{"url": …}``, or None. If it raises, :class:`GaveUp` is raised from that error. Without it these are not
        retried.
    :param open_timeout: seconds for connecting and the handshake together. None for no limit of its own.
    :param max_size: bytes of the biggest message that is received. A bigger one closes the session with 1009, which is
        not retried. None for no limit.
    :param options: ``subprotocols=``, ``headers=`` and the others of ``httpx_ws.aconnect_ws``.
    :raises ImportError: if httpx-ws is not installed.
    :raises TypeError: if ``on_event`` is a coroutine function, which would never run, or ``renew`` is no function.
    :raises ValueError: if ``open_timeout`` or ``max_size`` is not above 0.
    """
    try:
        from .session import Sessions  # noqa: PLC0415 - httpx-ws is an extra that Backoff does not need
    except ImportError as error:
        raise ImportError(f"connect() needs httpx-ws: pip install 'asgi-closecodes[client]' ({error})") from error
    if inspect.iscoroutinefunction(on_event):
        raise TypeError(f"on_event={shown(on_event)} is async; it is called, not awaited: use a plain function")
    if renew is not None and not callable(renew):
        raise TypeError(f"renew={shown(renew)} is not callable; use a function, plain or async")
    for name, value in (("open_timeout", open_timeout), ("max_size", max_size)):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name}={shown(value)}: use a number above 0, or None for no limit")
    return Sessions(
        url,
        client,
        backoff or Backoff(),
        on_event=on_event,
        renew=renew,
        open_timeout=open_timeout,
        max_size=max_size,
        options=options,
    )
