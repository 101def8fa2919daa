"""Closing of the open sessions that a function chooses, as to sign a user out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

import anyio
import anyio.lowlevel

from asgi_closecodes.codes import may_be_sent
from asgi_closecodes.events import CallbackFailed, Observer
from asgi_closecodes.exceptions import EndedFromOutside
from asgi_closecodes.naming import name_of, shown
from asgi_closecodes.session import Session

from .dispatch import reject_coroutine
from .shedding import ENDS_A_TURN

CAUSE = "close_sessions"
"""Token for logs and counts."""

_SESSIONS_A_TURN = 250
"""Sessions that ``where`` is asked about in one turn of the event loop."""


async def close_sessions(
    sessions: Iterable[Session], where: Callable[[Session], object], code: int, reason: str, report: Observer
) -> int:
    """Close those of ``sessions`` that ``where`` chooses; see :meth:`Guard.close_sessions`.

    :raises TypeError: if ``where`` cannot be called.
    :raises ValueError: if ``code`` must not be sent.
    """
    if not callable(where):
        raise TypeError(
            f"where must be a function of a session, as lambda session: session.key == 7, not {shown(where)}"
        )
    if not may_be_sent(code):
        raise ValueError(f"code={shown(code)} must not be sent in a close frame; use 1000-1003, 1007-1014 or 3000-4999")
    closed = 0
    has_failed = False

    async def close(session: Session) -> None:
        nonlocal closed
        if await session.end(EndedFromOutside(code, reason, CAUSE)):
            closed += 1

    async with anyio.create_task_group() as tasks:
        chosen = 0
        for number, session in enumerate([*sessions], 1):
            try:
                is_chosen = not session.is_leaving and _answer(where, session)
            except (Exception, asyncio.CancelledError) as error:  # cancelled: a future that it reads
                if not has_failed:
                    has_failed = True
                    report(CallbackFailed(f"where={name_of(where)}", error, session.facts()))
                is_chosen = False
            if is_chosen:
                chosen += 1
                tasks.start_soon(close, session)
            if number % _SESSIONS_A_TURN == 0 or (is_chosen and chosen % ENDS_A_TURN == 0):
                await anyio.lowlevel.checkpoint()
    return closed


def _answer(where: Callable[[Session], object], session: Session) -> bool:
    answer = where(session)
    reject_coroutine(answer)
    return bool(answer)
