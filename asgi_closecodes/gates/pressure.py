"""Gate that refuses while a sensor of the process is high."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from asgi_closecodes.bounds import finite
from asgi_closecodes.concurrency import COUNTING
from asgi_closecodes.events import Observer
from asgi_closecodes.naming import shown
from asgi_closecodes.session import Session

from .base import NO_PERMIT, GateBase, token
from .rounds import Rounds
from .sensors import ForgettingSensor, Memory, ReportingSensor, Sensor

MIN_REFUSING_S = 5.0
"""Seconds that refusing lasts at least."""

ESCAPE_AFTER_S = 30.0
"""Seconds without growth after which some sessions are admitted, however high the value is."""

FULL_REFUSAL_FACTOR = 1.25
"""At this multiple of ``refuse_above`` all sessions are refused, below it a share."""

MIN_REFUSAL_SHARE = 0.1
"""Share refused at ``refuse_above`` itself."""


class Pressure(GateBase):
    """Refuses new sessions while ``sensor`` is high, and counts none.

    Refusing begins when the value reaches ``refuse_above``, lasts at least 5 s, and ends below ``resume_below``. At
    ``refuse_above`` a tenth is refused, at 1.25 times that all, and between them a growing share. So the load does not
    swing. If the value has not grown for 30 s, one session is admitted in the next second, two in the one after, and so
    on. Else memory that is never returned would close a service for ever. An unknown value refuses nobody.

    :param sensor: see :class:`Sensor`; its name is the cause that clients are told.
    :param refuse_above: in the sensor's unit.
    :param resume_below: lower than that.
    :param shed_above: from this value on nobody is admitted, and open sessions are shed; above ``refuse_above``. None
        sheds nobody. With a :class:`Memory` sensor they are shed in rounds, see :class:`Rounds`.
    :param name: see :class:`GateBase`; by default the sensor's.
    :raises ValueError: for thresholds in another order, or that are no numbers.
    """

    __slots__ = (
        "_clock", "_debt", "_grown_at", "_highest", "_let_in", "_refusing_since", "refuse_above", "resume_below",
        "rounds", "sensor", "shed_above",
    )  # fmt: skip

    def __init__(
        self,
        sensor: Sensor,
        refuse_above: float,
        resume_below: float,
        shed_above: float | None = None,
        *,
        name: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if isinstance(sensor, type):
            raise TypeError(f"sensor is the class {sensor.__qualname__}; give a sensor, as {sensor.__qualname__}()")
        self.sensor = sensor
        super().__init__(name)
        self.rounds = Rounds(clock) if isinstance(sensor, Memory) else None
        """Rounds of shedding, for a sensor whose value falls only some time after it; else None."""
        self._clock = clock
        self._refusing_since: float | None = None
        self._highest = -math.inf
        self._grown_at = -math.inf
        self._let_in = 0
        self._debt = 0.0
        self.refuse_above = refuse_above
        self.resume_below = resume_below
        self.shed_above = shed_above
        self.set(refuse_above, resume_below, shed_above)

    def _default_name(self) -> str:
        if not isinstance(self.sensor.name, str):
            raise TypeError(
                f"the name of the sensor {type(self.sensor).__qualname__} is {shown(self.sensor.name)}; "
                "give it a text, as 'queue': it is the cause that clients are told"
            )
        return token(self.sensor.name)

    def set(self, refuse_above: float, resume_below: float, shed_above: float | None = None) -> None:
        """Change the thresholds.

        :raises ValueError: for thresholds in another order, or that are no numbers.
        """
        given = (
            f"refuse_above={shown(refuse_above)}, resume_below={shown(resume_below)}, shed_above={shown(shed_above)}"
        )
        numbers = [refuse_above, resume_below, *(() if shed_above is None else (shed_above,))]
        if not all(finite(number) is not None for number in numbers):
            raise ValueError(f"{given}: use finite numbers")
        if not 0 <= resume_below < refuse_above:
            raise ValueError(f"{given}: resume_below has to be lower than refuse_above, and not negative")
        if shed_above is not None and shed_above <= refuse_above:
            raise ValueError(f"{given}: shed_above has to be higher than refuse_above: who sheds must not admit")
        self.refuse_above, self.resume_below, self.shed_above = refuse_above, resume_below, shed_above

    def same_as(self, other: Pressure) -> bool:
        """Whether both refuse and shed at the same values of the same kind of sensor."""
        return self._described() == other._described()

    def _described(self) -> tuple[object, ...]:
        bounds = self.refuse_above, self.resume_below, self.shed_above
        return (*bounds, type(self.sensor), self._bytes)

    @property
    def _bytes(self) -> int | None:
        return self.sensor.limit if isinstance(self.sensor, Memory) else None

    def take_over(self, other: Pressure) -> None:
        """Take over the measured usage without sessions from ``other``, which this gate replaces."""
        mine, theirs = self._bytes, other._bytes
        if self.rounds is not None and other.rounds is not None and other.rounds.baseline is not None:
            if mine is None or theirs is None:
                self.rounds.baseline = other.rounds.baseline if mine is theirs else None
            else:  # a baseline is a share of the sensor's limit, which has changed
                self.rounds.baseline = other.rounds.baseline * theirs / mine

    @property
    def cause(self) -> str:
        """The name of the sensor."""
        return self.sensor.name

    @property
    def limit(self) -> float:
        """The same as :attr:`refuse_above`."""
        return self.refuse_above

    @property
    def usage(self) -> float | None:
        """The sensor's value, None if it is unknown."""
        return self.sensor.value()

    def admit(self, _session: Session, /) -> AbstractAsyncContextManager[None]:
        """Admit or refuse the session; there is nothing to release.

        :raises TryAgainLater: while the sensor is high.
        """
        value = self.sensor.value()
        if value is not None:
            with COUNTING:
                refuses = self._refuses(value)
            if refuses:
                raise self._refusal(value)
        return NO_PERMIT

    def _refuses(self, value: float) -> bool:
        now = self._clock()
        if not self._is_refusing(value, now):
            return False
        if self.shed_above is not None and value >= self.shed_above:
            return True
        if value > self._highest:
            self._highest, self._grown_at, self._let_in = value, now, 0
        if (stuck := now - self._grown_at) >= ESCAPE_AFTER_S:
            # One in the first second, two in the next, four: 2 ** n - 1 after n seconds.
            if self._let_in < 2 ** min(1 + int(stuck - ESCAPE_AFTER_S), 30) - 1:
                self._let_in += 1
                return False
            return True
        # Below refuse_above, on its way down, refuse the share of the highest value.
        self._debt += self._share(value if value >= self.refuse_above else self._highest)
        if self._debt < 1:
            return False
        self._debt -= 1
        return True

    def _share(self, value: float) -> float:
        full = FULL_REFUSAL_FACTOR * self.refuse_above
        above = (min(value, full) - self.refuse_above) / (full - self.refuse_above)
        return min(MIN_REFUSAL_SHARE + (1 - MIN_REFUSAL_SHARE) * above, 1.0)

    def _is_refusing(self, value: float, now: float) -> bool:
        since = self._refusing_since
        if since is None and value >= self.refuse_above:
            self._refusing_since = self._grown_at = now
            self._highest, self._let_in = value, 0
            self._debt = 1.0  # so that the first session is refused
        elif since is not None and value < self.resume_below and now - since >= MIN_REFUSING_S:
            self._refusing_since = None
        return self._refusing_since is not None

    def attach(self, report: Observer) -> None:
        """Have the sensor report events to ``report``, if it has any."""
        if isinstance(self.sensor, ReportingSensor):
            self.sensor.attach(report)

    def sample(self) -> None:
        """Take a sample; the background ticker calls this."""
        self.sensor.sample()
        if (value := self.sensor.value()) is not None:
            with COUNTING:
                self._is_refusing(value, self._clock())

    def pause(self) -> None:
        """Have the sensor forget its last sample, if it can: none will be taken for now."""
        if isinstance(self.sensor, ForgettingSensor):
            self.sensor.stop()

    def excess(self) -> int:
        """Return how many sessions to shed: without end while the value is too high.

        It is 0 if they are shed in :attr:`rounds`.
        """
        if self.rounds is not None:
            return 0
        value = self.sensor.value()
        shedding = value is not None and self.shed_above is not None and value >= self.shed_above
        return _ANY_NUMBER if shedding else 0


_ANY_NUMBER = 1 << 62
