"""Meaning of an exception that has ended a handler: whose socket raised it, if one did.

The socket decides, never the class. If the session's own peer has left, that is no error. If another session's has, it
is one. Exceptions are not trusted: their attributes may lie or raise.
"""

from __future__ import annotations

import asyncio
import enum
import functools
import inspect
import sys
from collections.abc import Iterator
from types import CodeType, FrameType, TracebackType
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from asgi_closecodes.error_identity import is_library, traceback_of, type_name
from asgi_closecodes.exceptions import SessionEnded, leaves

from .protocol import HandlerProtocol, session_in
from .state import OPEN

_SENDERS = frozenset({"_forward", "_pass_on", "_send_and_notice"})
"""Methods of a session whose frame in a traceback shows that its socket raised."""


_STARLETTE = WebSocket.send.__code__.co_filename


class Origin(enum.Enum):
    """Socket that a handler's exception is about."""

    OWN = "the session's own peer has left"
    UNSURE = "it has left, or this is misuse: a close that the server takes tells"
    UNKNOWN = "the peer of some session has left: a close that the server takes tells that it was another one's"
    OTHER_SESSION = "the peer of another session has left"
    ELSEWHERE = "nothing"

    __hash__ = object.__hash__  # C code; an Enum's own is Python code


# By themselves, since a look into an Enum takes a thousand instructions on Python 3.11.
OWN, UNSURE, UNKNOWN, OTHER_SESSION, ELSEWHERE = Origin

MAY_BE_DEPARTURE = frozenset({UNSURE, UNKNOWN})
MAY_BE_ANOTHERS = frozenset({UNKNOWN, OTHER_SESSION})


def origin_of(error: BaseException, session: HandlerProtocol, *, has_left: bool) -> Origin:
    """Return the socket that ``error`` is about, which has ended the handler of ``session``.

    :param has_left: whether the peer is known to have left, or this side has ended the session.
    """
    kind = type(error)
    is_departure = issubclass(kind, (WebSocketDisconnect, SessionEnded))
    if not (is_departure or issubclass(kind, (OSError, RuntimeError))):
        return ELSEWHERE
    socket = _Socket(session)
    is_own = socket.has_raised(error)
    if is_own is None:
        if not is_departure:
            return ELSEWHERE  # an OSError of a file, or a database
        return OWN if has_left else UNKNOWN
    if issubclass(kind, RuntimeError):
        # Disconnected is autobahn's, under daphne. uvicorn raises the same error for a departed peer and for misuse.
        if has_left or type_name(kind).endswith(".Disconnected"):
            return OWN if is_own else OTHER_SESSION
        return UNSURE if is_own and (socket.has_sent(error) or socket.has_met_departure(error)) else ELSEWHERE
    return OWN if is_own else OTHER_SESSION


class _Socket:
    """One session's socket, which recognises the exceptions that it has raised."""

    def __init__(self, session: HandlerProtocol) -> None:
        self._sessions = [session]
        while (around := session_in(session.server_scope)) is not None:
            session = around  # another middleware of this library is around this one
            self._sessions.append(session)
        self._code, self._bound = _code_of(session.server_send)

    def has_raised(self, error: BaseException) -> bool | None:
        """Whether this socket raised ``error``; False if another one did, None if its frames do not tell."""
        verdict = None
        for frame in _frames(traceback_of(error)):  # the innermost frame that tells counts
            is_own = self._is_own(frame)
            verdict = verdict if is_own is None else is_own
        return verdict

    def has_sent(self, error: BaseException) -> bool:
        """Whether the server's ``send`` has raised ``error``; granian's leaves no frame."""
        codes = [frame.f_code for frame in _frames(traceback_of(error))]
        return self._code in codes or codes[-1].co_name == "_pass_on"

    def has_met_departure(self, error: BaseException) -> bool:
        """Whether Starlette's socket has raised ``error`` because an earlier ``send`` of it had raised an OSError.

        It is over then, and the session knows nothing: the handler, or another session's, has swallowed that error.
        """
        *_, frame = _frames(traceback_of(error))
        return self._sessions[0].phase is OPEN and frame.f_code.co_filename == _STARLETTE

    def _is_of(self, session: HandlerProtocol | None) -> bool:
        """Whether ``session`` has this socket: it is this one, or that of a middleware around or inside."""
        while session is not None:
            if session in self._sessions:
                return True
            session = session_in(session.server_scope)
        return False

    def _is_own(self, frame: FrameType) -> bool | None:
        """Whether ``frame`` is of this socket; False if of another one, None if it is of none."""
        code = frame.f_code
        if code is self._code:
            return all(frame.f_locals.get(name) is value for name, value in self._bound.items())
        if code.co_varnames[:1] != ("self",):
            return None
        this: Any = frame.f_locals.get("self")
        if issubclass(type(this), HandlerProtocol):
            return self._is_of(this) if code.co_name in _SENDERS else None
        if code.co_filename == _STARLETTE and issubclass(type(this), WebSocket):
            session = session_in(this.scope)
            if session is None:
                return None
            return _is_over(this, code.co_name) if self._is_of(session) else False
        return None


def _is_over(websocket: Any, operation: str) -> bool | None:
    """Whether Starlette's ``websocket`` is over, which its error then means; None if it means something else.

    A ``send`` before ``accept`` is a bug, whether the peer has left or not.
    """
    over = WebSocketState.DISCONNECTED
    states = websocket.client_state, websocket.application_state
    state = states[0] if operation == "receive" else states[1]
    return True if state is over or (over in states and operation == "_raise_on_disconnect") else None


def _frames(trace: TracebackType | None) -> Iterator[FrameType]:
    while trace is not None:
        yield trace.tb_frame
        trace = trace.tb_next


def _code_of(call: Any) -> tuple[CodeType | None, dict[str, Any]]:
    """Return the code of ``call``, and the values in its frame that tell it from other calls of that code."""
    call = inspect.unwrap(call)
    bound: list[Any] = []
    named: dict[str, Any] = {}
    while isinstance(call, functools.partial):  # daphne's send is one
        bound[:0] = call.args
        named = {**call.keywords, **named}
        call = call.func
    if not hasattr(call, "__code__"):
        call = getattr(call, "__call__", None)  # noqa: B004 - an object with that method
    if (this := getattr(call, "__self__", None)) is not None:
        bound.insert(0, this)
    function = getattr(call, "__func__", call)
    code = getattr(function, "__code__", None)
    if not isinstance(code, CodeType):
        return None, {}
    names = dict(zip(code.co_varnames, bound, strict=False))
    names |= {name: named[name] for name in code.co_varnames if name in named}
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=False):
        try:
            names[name] = cell.cell_contents
        except ValueError:  # an empty cell
            continue
    return code, names


def is_closed_by_library(error: BaseException) -> bool:
    """Whether an installed package has caught ``error``, and now sends a close itself.

    The outermost frame of a traceback is the one that caught the exception. If code of the application is between it
    and this frame, that may have chosen the close.
    """
    trace = traceback_of(error)
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - there is no other way to it that is as cheap
    while trace is not None and frame is not None and is_library(frame.f_code.co_filename):
        if frame is trace.tb_frame:
            return True
        frame = frame.f_back
    return False


def is_cancelled(error: BaseException, cancelled_before: int) -> bool:
    """Whether somebody has cancelled the handler. Awaiting a cancelled future raises a CancelledError, too.

    :param error: exception that has ended the handler; no subclass of Exception.
    :param cancelled_before: how often its task was cancelled before it began.
    """
    try:
        task = asyncio.current_task()
    except RuntimeError:
        return True  # on trio only a scope raises Cancelled
    if task is None or task.cancelling() > cancelled_before:
        return True
    kinds = {type(one) for one in leaves(error)}
    return any(not issubclass(kind, (Exception, asyncio.CancelledError)) for kind in kinds)  # KeyboardInterrupt
