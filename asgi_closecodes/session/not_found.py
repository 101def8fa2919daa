"""Exceptions by which frameworks say that they have no route for a handshake, which is no failure."""

from __future__ import annotations

from asgi_closecodes.error_identity import traceback_of, type_name

NOT_FOUND = frozenset(
    {
        "channels.routing.URLRouter.__call__",  # a ValueError, which says so in its text alone
        "sanic.exceptions.NotFound",
    }
)
"""Functions that raise them, and their classes, as ``module.qualname``: so no framework has to be imported."""


def says_not_found(error: BaseException) -> bool:
    """Whether ``error`` says that there is no route: by its class, or by the function that raised it."""
    if not NOT_FOUND.isdisjoint(map(type_name, type.mro(type(error)))):
        return True
    trace = traceback_of(error)
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    frame = trace.tb_frame
    return f"{frame.f_globals.get('__name__')}.{frame.f_code.co_qualname}" in NOT_FOUND
