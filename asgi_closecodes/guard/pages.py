"""Pages that hammer: they come back at once after each refusal, since they reset their back-off in `onopen`."""

from __future__ import annotations

import hashlib
import heapq
import os
import re
import time
from collections import OrderedDict
from collections.abc import Callable

from starlette.types import Scope

from asgi_closecodes.concurrency import COUNTING
from asgi_closecodes.session import client_of

MAX_EARLY = 3
"""Early refusals of a page within :data:`PERIOD_S` with which it counts as hammering."""

PERIOD_S = 3.0
"""Seconds in which early refusals count. A page stops hammering when it has stayed away for as long."""

HINT_PRECISION_S = 0.1
"""Seconds by which an obedient client may come early: hints have one decimal, and timers are imprecise."""

MAX_PAGES = 4096
"""Pages that are remembered. Those refused longest ago are forgotten first, so forged ones do no harm."""

MAX_HINTS = 256
"""Hints of one page that are remembered, where many browsers look like one."""

_KEY = os.urandom(32)
_NAMES = frozenset({b"cookie", b"user-agent", b"origin"})
_MASKED = re.compile(rb"2\|([0-9a-f]{8})\|((?:[0-9a-f]{8}){1,16})\|")
"""A token against forged requests of Tornado's and Streamlit's, which is masked anew in each response."""


def page_of(scope: Scope) -> bytes:
    """Return a keyed hash of the headers that tell one page from another; it reveals none of them."""
    client = client_of(scope)
    path = scope.get("path") or ""
    parts = [
        client[0].encode("utf-8", "surrogatepass") if client else b"",
        path.encode("utf-8", "surrogatepass"),
        scope.get("query_string") or b"",
    ]
    for name, value in scope.get("headers") or ():
        if name in _NAMES:
            parts += name, _MASKED.sub(_unmasked, value) if b"|" in value else value
    return hashlib.blake2b(b"\0".join(parts), digest_size=16, key=_KEY).digest()


def _unmasked(cookie: re.Match[bytes]) -> bytes:
    mask, token = cookie.groups()
    return b"%d|" % (int(token, 16) ^ int(mask * (len(token) // len(mask)), 16))


class Pages:
    """Pages that were refused by close, and those of them that hammer.

    One page may be many browsers behind one address that cannot be told apart. So each hint excuses one refusal at or
    after its time.

    :param clock: monotonic seconds.
    """

    __slots__ = ("_clock", "_hammering", "_refused")

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._refused: OrderedDict[bytes, _Page] = OrderedDict()  # the latest refusal comes last
        self._hammering: OrderedDict[bytes, float] = OrderedDict()  # by last visit, the latest comes last

    def __len__(self) -> int:
        return len(self._refused) + len(self._hammering)

    def forget(self) -> None:
        """Reset in a child process."""
        self._refused.clear()
        self._hammering.clear()

    def is_hammering(self, page: bytes) -> bool:
        """Whether ``page`` hammers; if so, this visit counts as one more."""
        if not self._hammering:
            return False
        with COUNTING:
            now = self._clock()
            self._drop_away(now)
            if page not in self._hammering:
                return False
            self._hammering[page] = now
            self._hammering.move_to_end(page)
            return True

    def refused_by_close(self, page: bytes, retry_after: float) -> None:
        """Count a refusal of ``page``, which does not hammer yet, unless it came at or after a hint.

        :param retry_after: the hint that it gets now.
        """
        with COUNTING:
            now = self._clock()
            entry = self._refused.pop(page, None) or _Page()
            if not entry.take_hint(now) and entry.count_early(now) >= MAX_EARLY:
                self._drop_away(now)
                self._hammering[page] = now
                if len(self._hammering) > MAX_PAGES:
                    self._hammering.popitem(last=False)
                return
            entry.add_hint(now + retry_after - HINT_PRECISION_S)
            self._refused[page] = entry
            if len(self._refused) > MAX_PAGES:
                self._refused.popitem(last=False)

    def _drop_away(self, now: float) -> None:
        while self._hammering and now - next(iter(self._hammering.values())) >= PERIOD_S:
            self._hammering.popitem(last=False)


class _Page:
    """Times at which one page came too early, and at which it was told to come back."""

    __slots__ = ("_early", "_hints")

    def __init__(self) -> None:
        self._early: tuple[float, ...] = ()
        self._hints: list[float] = []  # a heap

    def take_hint(self, now: float) -> bool:
        """Use up one hint that is due by ``now``; return whether there was one."""
        if self._hints and self._hints[0] <= now:
            heapq.heappop(self._hints)
            return True
        return False

    def count_early(self, now: float) -> int:
        """Count an early refusal; return how many there were within the period."""
        self._early = (*(at for at in self._early if now - at <= PERIOD_S), now)
        return len(self._early)

    def add_hint(self, at: float) -> None:
        """Remember that somebody is told to come at ``at``."""
        if len(self._hints) < MAX_HINTS:
            heapq.heappush(self._hints, at)
