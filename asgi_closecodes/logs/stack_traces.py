"""Stack traces as the standard library's ``traceback`` prints them, with a cache of formatted frames.

The text of a frame depends only on its position in the code. ``traceback`` computes it anew each time: it checks
whether the source has changed, parses the line, and counts through the code's positions. That is most of a log
record's cost. In a storm of errors the same frames recur.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator, Sequence
from itertools import islice
from types import CodeType, TracebackType
from typing import Any, NamedTuple, TypeAlias

from asgi_closecodes.error_identity import type_name

Error: TypeAlias = tuple[type[BaseException], BaseException, TracebackType | None]
"""Value of ``sys.exc_info()`` while an exception is handled."""

MAX_CACHED_FRAMES = 1024
"""Cached frames, some hundred bytes each. When the cache is full, it is cleared."""

MAX_FRAME_CHARS = 4096
"""Longer texts are not cached: generated code may have all of its data in one line."""


_MAX_STACK_FRAMES = 200


def stack_trace(error: Error) -> str:
    """Return exactly what ``traceback.format_exception(*error)`` does, or something shorter if that raises.

    A cached source line stays as it was first read: the running code has not changed either.
    """
    try:
        # Everything but the stacks: types, messages, notes, suggestions, chains and groups.
        captured = traceback.TracebackException(*error, limit=0, compact=True)
        _add_stacks(captured, error)
        return _text(captured)
    except Exception as failure:  # attributes of the exception raise
        frames = "".join(traceback.format_tb(error[2]))
        return f"{frames}{type_name(error[0])} (its description raised {type_name(type(failure))})\n"


class CodePosition(NamedTuple):
    """Position in the code where a thread is."""

    code: CodeType
    line: int
    module: str


def stack_text(stack: Sequence[CodePosition]) -> str:
    """Return the text of a stack, as the standard library's ``traceback`` prints it, within the caps of a stack trace.

    :param stack: outermost first; of a deep one the ends.
    """
    head, tail = stack, stack[:0]
    if len(stack) > _MAX_STACK_FRAMES:
        head, tail = stack[: _MAX_STACK_FRAMES // 4], stack[-_MAX_STACK_FRAMES * 3 // 4 :]
    frames = "".join(traceback.StackSummary.from_list([*map(_summary, head)]).format())
    if tail:
        left_out = len(stack) - len(head) - len(tail)
        frames += f"  ... {left_out} frames left out ...\n"
        frames += "".join(traceback.StackSummary.from_list([*map(_summary, tail)]).format())
    return capped(f"Stack (most recent call last):\n{frames}")


def _summary(at: CodePosition) -> traceback.FrameSummary:
    return traceback.FrameSummary(at.code.co_filename, at.line, at.code.co_name, lookup_line=False)


def capped(text: str, size: int = 32 * 1024) -> str:
    """Return at most ``size`` bytes of ``text``: a quarter from its start, the rest from its end."""
    raw = text.encode("utf-8", "backslashreplace")
    if len(raw) <= size:
        return text
    marker = f"\n... {len(raw) - size} bytes left out ...\n"
    head, tail = raw[: size // 4], raw[len(marker) - size * 3 // 4 :]
    return head.decode("utf-8", "ignore") + marker + tail.decode("utf-8", "ignore")


def _text(captured: traceback.TracebackException) -> str:
    """Return the text of ``captured.format()``, without its indenting of each line where there is no group."""
    parts: list[str] = []
    link = captured
    while link.exceptions is None:
        parts += reversed([*link.format_exception_only()])
        if link.stack:
            parts += *reversed(link.stack.format()), "Traceback (most recent call last):\n"
        if link.__cause__ is not None:
            parts.append("\nThe above exception was the direct cause of the following exception:\n\n")
            link = link.__cause__
        elif link.__context__ is not None:  # compact: and is not suppressed
            parts.append("\nDuring handling of the above exception, another exception occurred:\n\n")
            link = link.__context__
        else:
            return "".join(reversed(parts))
    return "".join(captured.format())


def _add_stacks(captured: traceback.TracebackException, error: Error) -> None:
    """Set the stacks of ``captured`` and of its causes, contexts and members, which were built without."""
    captured.stack = _Stack(_frames(error[2]))
    pending = [(captured, error[1])]
    while pending:
        of, it = pending.pop()
        members = it.exceptions if isinstance(it, BaseExceptionGroup) else ()
        parts = zip(of.exceptions or (), members, strict=False)
        for part, exception in ((of.__cause__, it.__cause__), (of.__context__, it.__context__), *parts):
            if part is not None and exception is not None:
                part.stack = _Stack(_frames(exception.__traceback__))
                pending.append((part, exception))


class _Frame(traceback.FrameSummary):
    """Frame with its text."""

    __slots__ = ("code", "text")

    def __init__(self, trace: TracebackType) -> None:
        stack = traceback.extract_tb(trace, limit=1)
        [frame], [self.text] = stack, stack.format()
        super().__init__(frame.filename, frame.lineno, frame.name, line=frame.line, lookup_line=False)
        self.code = trace.tb_frame.f_code
        """Kept alive: its id is a cache key."""


class _Stack(traceback.StackSummary):
    """Stack whose frames have their text."""

    def format_frame_summary(self, frame_summary: traceback.FrameSummary, **_options: Any) -> str:
        assert isinstance(frame_summary, _Frame)
        return frame_summary.text


_frame_cache: dict[tuple[int, int, int], _Frame] = {}


def _frames(trace: TracebackType | None) -> Iterator[_Frame]:
    limit = getattr(sys, "tracebacklimit", None)
    return islice(_all_frames(trace), None if limit is None else max(limit, 0))


def _all_frames(trace: TracebackType | None) -> Iterator[_Frame]:
    while trace is not None:
        # By id: equal code objects may come from different files.
        key = id(trace.tb_frame.f_code), trace.tb_lasti, trace.tb_lineno
        frame = _frame_cache.get(key)
        if frame is None:
            frame = _Frame(trace)
            # A missing line may only mean that no more files can be opened now.
            if frame.line and len(frame.text) <= MAX_FRAME_CHARS:
                if len(_frame_cache) >= MAX_CACHED_FRAMES:
                    _frame_cache.clear()
                _frame_cache[key] = frame
        yield frame
        trace = trace.tb_next
