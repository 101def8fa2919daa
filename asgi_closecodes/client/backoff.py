"""Reconnect delays by close code, the server's hint and the length of the last session."""

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

BASE_DELAY_S = 1.0
"""Longest wait before the first retry. It doubles with each further retry."""

RESET_AFTER_S = 5.0
"""Open time after which a session resets the back-off."""

MIN_OVERLOAD_DELAY_S = 2.0
"""Shortest wait for an overloaded server that gives no hint. Chance makes it up to twice as long."""

RENEWABLE = frozenset({CloseCode.UNAUTHORIZED, 401})
"""Close code and HTTP status that ask for new credentials."""

_INTERNAL_ERRORS = frozenset({CloseCode.INTERNAL_ERROR, private_use_code(CloseCode.INTERNAL_ERROR), 500})
_OVERLOADS = frozenset({CloseCode.TRY_AGAIN_LATER, private_use_code(CloseCode.TRY_AGAIN_LATER), 503})
_RETRIABLE = _OVERLOADS | {
    CloseCode.GOING_AWAY,
    CloseCode.ABNORMAL_CLOSURE,
    CloseCode.SERVICE_RESTART,
    private_use_code(CloseCode.SERVICE_RESTART),
    CloseCode.BAD_GATEWAY,
    CloseCode.TIMEOUT,
    502,
    504,
}

_HINT = re.compile(r"; *retry_after=([0-9]+(?:\.[0-9]+)?) *(?=;|\Z)")


class Backoff:
    """Reconnect rule: after each close, seconds to wait, or None to give up.

    Attempt *k* waits ``max(hint, random(0, min(cap, 1 s * 2**k)))``. A session that was open for 5 s, or had a
    message and did not end with 1011, resets *k* to 0. Opening alone does not: a full server accepts in order to
    close, and a reset there makes a tight loop.

    The hint is ``retry_after`` of a close reason, or ``Retry-After`` of an HTTP response. A negative hint, or one that
    is no number, is ignored. The last of several counts, since a server appends its own to the text. Without a hint,
    an overloaded server (1013, HTTP 503) is given 2 to 4 s.

    These are retried: 1001, 1006, 1012, 1013, 1014, 3008, HTTP 502, 503 and 504. So are 1011 and HTTP 500, until they
    came ``max_crashes`` times in a row. 4011, 4012 and 4013 count as 1011, 1012 and 1013, for servers that cannot send
    those.

    3000 and HTTP 401 are retried once, at once, by clients that can renew their credentials. Another one is only
    retried after a session that was open for 5 s.

    It does no I/O. Report what happens, to use it with any client::

        backoff.opened()
        backoff.received()
        wait = backoff.closed(1013, "try again later; retry_after=2.3")  # seconds; None: give up

    :param cap: longest wait that it chooses by itself, in seconds.
    :param max_hint: longest wait that a server may ask for, in seconds. Longer hints are cut to it.
    :param max_crashes: number of 1011 (or HTTP 500) in a row after which it gives up. 5 s of being open end the row, a
        message does not.
    :param retry: more close codes, or HTTP statuses, to retry.
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
        self._has_renewed = False
        self._opened_at = math.inf
        self._has_received = False

    def opened(self) -> None:
        """Note that the server accepted. This alone resets nothing."""
        self._opened_at = self._clock()

    def received(self) -> None:
        """Note a message from the server."""
        self._has_received = True

    def closed(self, code: int, reason: str = "", *, can_renew: bool = False) -> float | None:
        """Return the seconds to wait after this close (1006: no connection), or None to give up.

        :param can_renew: whether the client gets new credentials before an attempt that follows 3000.
        """
        hints = _HINT.findall(reason)
        return self._delay(code, float(hints[-1]) if hints else None, can_renew=can_renew)

    def refused(self, status: int, retry_after: str = "", *, can_renew: bool = False) -> float | None:
        """Return the seconds to wait after this HTTP response to the handshake, or None to give up.

        :param retry_after: its header of that name: seconds, or a date (RFC 9110 section 10.2.3).
        :param can_renew: whether the client gets new credentials before an attempt that follows 401.
        """
        return self._delay(status, _parse_retry_after(retry_after.strip()), can_renew=can_renew)

    def _delay(self, code: int, hint: float | None, *, can_renew: bool) -> float | None:
        crashed = code in _INTERNAL_ERRORS
        was_long = self._clock() - self._opened_at >= RESET_AFTER_S
        if was_long or (self._has_received and not crashed):
            self._attempts = self._crashes = 0
        if was_long:
            self._has_renewed = False
        self._opened_at, self._has_received = math.inf, False
        self._crashes = self._crashes + 1 if crashed else 0
        if code in RENEWABLE and can_renew and not self._has_renewed:
            self._has_renewed = True
            return min(hint or 0.0, self.max_hint)
        if self._crashes >= self.max_crashes if crashed else code not in _RETRIABLE | self.retry:
            return None
        if hint is None:
            hint = MIN_OVERLOAD_DELAY_S * (1 + self._random()) if code in _OVERLOADS else 0.0
        jitter = self._random() * min(self.cap, BASE_DELAY_S * 2.0 ** min(self._attempts, 64))
        self._attempts += 1
        return max(min(hint, self.max_hint), jitter)


def _parse_retry_after(header: str) -> float | None:
    if header.isascii() and header.isdigit():
        return float(header)
    try:
        seconds = parsedate_to_datetime(header).timestamp() - time.time()
    except (ValueError, OverflowError):
        return None
    return seconds if seconds >= 0 else None
