"""When a client should come back: a rule of the close code, the server's hint and what the last session proved."""

from __future__ import annotations

import math
import random
import re
import time
from collections.abc import Callable, Iterable
from email.utils import parsedate_to_datetime

from asgi_closecodes.bounds import is_between
from asgi_closecodes.codes import CloseCode, private_use_code
from asgi_closecodes.naming import shown

BASE = 1.0
"""Seconds within which the first retry falls; twice as many for each one after it."""

PROVEN = 5.0
"""Seconds of being open after which a session has not been refused."""

UNHINTED = 2.0
"""Seconds to wait at least for a server that is overloaded and gives no hint; up to twice as many, by chance."""

_CRASHES = frozenset({CloseCode.INTERNAL_ERROR, private_use_code(CloseCode.INTERNAL_ERROR), 500})
_OVERLOADS = frozenset({CloseCode.TRY_AGAIN_LATER, private_use_code(CloseCode.TRY_AGAIN_LATER), 503})
_RETRIED = _OVERLOADS | {
    CloseCode.GOING_AWAY,
    CloseCode.ABNORMAL_CLOSURE,
    CloseCode.SERVICE_RESTART,
    private_use_code(CloseCode.SERVICE_RESTART),
    CloseCode.BAD_GATEWAY,
    502,
    504,
}

_HINT = re.compile(r"; *retry_after=([0-9]+(?:\.[0-9]+)?) *(?=;|\Z)")


class Backoff:
    """Says after each close how long to wait, or that there is no point in coming back.

    Attempt *k* waits ``max(hint, random(0, min(cap, 1 s * 2**k)))``. *k* starts again from 0 when a session was open
    for 5 s or had a message, never because it was accepted: a full server accepts in order to close, and a reset
    there makes a tight loop. The hint is ``retry_after`` of a close reason, or ``Retry-After`` of an HTTP response;
    one that is no number, or negative, is ignored; of several the last counts, since a server puts its own behind the
    text. A server that is overloaded (1013, HTTP 503) and gives none is
    given 2 to 4 s.

    Worth a retry are 1001, 1006, 1012, 1013, 1014, HTTP 502, 503 and 504, and 1011 and HTTP 500 until they came
    ``max_crashes`` times in a row. 4011, 4012 and 4013 count as 1011, 1012 and 1013, for which they stand where a
    server cannot send those.

    It does no I/O: tell it what happens, to use it with any client::

        backoff.opened()
        backoff.received()
        wait = backoff.closed(1013, "try again later; retry_after=2.3")  # seconds; None: give up

    :param cap: the longest wait that it chooses by itself, in seconds.
    :param max_hint: the longest wait that a server may ask for, in seconds; it stands for longer ones.
    :param max_crashes: the 1011 (or HTTP 500) in a row that is the last. A message between them does not help, 5 s do.
    :param retry: more close codes, or HTTP statuses, that are worth a retry.
    :param random: a number from 0 to 1.
    :param clock: monotonic seconds.
    :raises ValueError: if ``cap``, ``max_hint`` or ``max_crashes`` is not positive, or not finite.
    """

    def __init__(
        self,
        *,
        cap: float = 60.0,
        max_hint: float = 600.0,
        max_crashes: int = 5,
        retry: Iterable[int] = (),
        random: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        for name, value in (("cap", cap), ("max_hint", max_hint), ("max_crashes", max_crashes)):
            if not (is_between(value, 0) and value > 0):
                raise ValueError(f"{name}={shown(value)}: use a number above 0")
        self.cap = cap
        self.max_hint = max_hint
        self.max_crashes = max_crashes
        self.retry = frozenset(retry)
        self._random = random
        self._clock = clock
        self._attempts = 0
        self._crashes = 0
        self._opened_at = math.inf
        self._heard = False

    def opened(self) -> None:
        """Take note that the server accepted; that proves nothing yet."""
        self._opened_at = self._clock()

    def received(self) -> None:
        """Take note of a message from the server."""
        self._heard = True

    def closed(self, code: int, reason: str = "") -> float | None:
        """Return the seconds to wait after this close (1006: no connection), or None to give up."""
        hints = _HINT.findall(reason)
        return self._after(code, float(hints[-1]) if hints else None)

    def refused(self, status: int, retry_after: str = "") -> float | None:
        """Return the seconds to wait after this HTTP response to the handshake, or None to give up.

        :param retry_after: its header of that name: seconds, or a date (RFC 9110 section 10.2.3).
        """
        return self._after(status, _seconds(retry_after.strip()))

    def _after(self, code: int, hint: float | None) -> float | None:
        crashed = code in _CRASHES
        if self._clock() - self._opened_at >= PROVEN or (self._heard and not crashed):
            self._attempts = self._crashes = 0
        self._opened_at, self._heard = math.inf, False
        self._crashes = self._crashes + 1 if crashed else 0
        if self._crashes >= self.max_crashes if crashed else code not in _RETRIED | self.retry:
            return None
        if hint is None:
            hint = UNHINTED * (1 + self._random()) if code in _OVERLOADS else 0.0
        jitter = self._random() * min(self.cap, BASE * 2.0 ** min(self._attempts, 64))
        self._attempts += 1
        return max(min(hint, self.max_hint), jitter)


def _seconds(retry_after: str) -> float | None:
    if retry_after.isascii() and retry_after.isdigit():
        return float(retry_after)
    try:
        seconds = parsedate_to_datetime(retry_after).timestamp() - time.time()
    except (ValueError, OverflowError):
        return None
    return seconds if seconds >= 0 else None
