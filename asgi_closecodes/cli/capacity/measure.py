"""Search for the number of sessions that a server holds: doubling first, then bisection."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

import psutil

from .connection import Connection, NoWebSocket, Refusal, Target
from .load import (
    HANDSHAKE_TIMEOUT_S,
    Held,
    Load,
    SlowOpening,
    addresses,
    is_lack_of_files,
    is_lack_of_ports,
    percentile,
)
from .options import duration
from .process import Server

FIRST_STEP_SESSIONS = 10
"""Sessions of the first step."""

PRECISION = 0.06
"""Relative precision of the result."""

ANSWER_TIMEOUT_S = 10.0
"""Seconds that the first answer may take, and that a server may take to recover after a failed step."""

_AT_ONCE = 0.5
"""Seconds after its start within which an ended session counts as closed at once."""

_OVERLOADS = {"lag", "memory", "cpu", "slow"}
"""Causes that show the server's own capacity; all others are limits that somebody has set."""

_BREAKDOWNS = {500, 502, 504, 1006, 1011}
"""Close codes and HTTP statuses that also show it."""

_FEW_AT_ONCE = 2
"""Concurrent handshakes that a server answers if it can hold more sessions."""

_BUSY = 0.9
"""Share of a core from which on this command itself limits the result."""


class Unusable(Exception):  # noqa: N818 - of the server
    """The server cannot be measured; the text says why, and what to do."""


class End(Enum):
    """Reason why a search ends."""

    SERVER = "the server holds no more"
    LIMIT = "a limit that is set"
    MOST = "--most"
    COMMAND = "this command was at its own limit before the server was: measure from another machine"
    GONE = "nobody listens there any more: check its log"
    FILES = "this command may open no more files: raise its limit, as with ulimit -n"
    PORTS = "this machine has no more local ports to that address: measure from another machine too"


@dataclass(frozen=True, slots=True)
class Plan:
    """Goal of the search, and its pace."""

    p99: float
    """Seconds that an answer may take."""
    every: float
    """Seconds from one message of a session to its next."""
    hold: float
    """Seconds for which each step is measured."""
    most: int | None
    """Maximum number of sessions."""


@dataclass(frozen=True, slots=True)
class Step:
    """One row of the table."""

    sessions: int
    p99: float
    memory: float | None
    """Bytes a session; None if unknown, or if sessions were closed before."""
    handshakes: float | None
    """Sessions opened a second in this step; None if none were."""
    is_hurried: bool
    """Whether this command limited that rate."""
    problem: str
    """Reason why the server did not hold the step; "" if it did."""


@dataclass(slots=True)
class Result:
    """Result so far; it may be read at any time."""

    steps: list[Step] = field(default_factory=list)
    held: int = 0
    """Sessions that the server held."""
    refusal: Refusal | None = None
    """First refusal."""
    refused_at: int = 0
    """Sessions that were open at that refusal."""
    ends_by: End | None = None
    """Reason why the search ended; None if it has not."""
    workers: int = 1
    proxy: str = ""
    """Name of a proxy, if its headers show one."""


class Search:
    """Search for the number of sessions that a server holds."""

    def __init__(
        self, target: Target, tls: ssl.SSLContext | None, plan: Plan, server: Server | None, tell: Callable[[str], None]
    ) -> None:
        self.result = Result()
        self._target, self._tls, self._plan, self._server, self._show_status = target, tls, plan, server, tell

    async def run(self) -> None:
        """Search until the result is known.

        :raises Unusable: if the server cannot be measured at all.
        """
        self._show_status("checking the server")
        self._load = load = await self._probed()
        if self._server is not None:
            try:
                self._server.begin()
            except psutil.Error:
                raise Unusable("the process of --pid is gone; is it the server's?") from None
        load.talk()
        try:
            await self._search()
        finally:
            if self._server is not None:
                self.result.workers = self._server.workers()
            await load.stop()

    # The first session

    async def _probed(self) -> Load:
        """Return the load on the first address of the server that answers a session.

        :raises Unusable: if none does.
        """
        url = self._target.url
        try:
            found = await addresses(url.host, url.port)
        except OSError:
            raise Unusable(f"there is no host {url.host}; check its name") from None
        for number, address in enumerate(found, 1):
            load = Load(self._target, address, self._tls, self._plan.every)
            try:
                connection = await load.connect()
            except ConnectionRefusedError:
                if number == len(found):
                    raise Unusable(
                        f"nobody listens at {url.host} port {url.port}; start the server, or check the port"
                    ) from None
            except Exception as error:
                raise Unusable(self._why(error)) from None
            else:
                try:
                    await self._probe(connection)
                finally:
                    load.close(1)
                    connection.leave()
                return load
        raise Unusable(f"there is no host {url.host}; check its name")

    def _why(self, error: Exception) -> str:
        url = self._target.url
        match error:
            case ssl.SSLCertVerificationError(verify_code=18 | 19 | 20 | 21):  # unknown issuer
                return f"the certificate is not trusted ({error.verify_message}); name its authority by --ca FILE"
            case ssl.SSLCertVerificationError():
                return f"the certificate is not that of {url.host}, or not valid: {error.verify_message}"
            case ssl.SSLError() | ConnectionError() if url.secure:
                return "the server speaks no TLS there; use ws:// instead of wss://, or its port for TLS"
            case TimeoutError():
                return f"the server did not answer the handshake within {HANDSHAKE_TIMEOUT_S:.0f} s; is it a WebSocket?"
            case NoWebSocket() | ConnectionError():
                return f"there is no WebSocket: {error}; check the port, and ws:// or wss://"
            case OSError():
                return f"there is no connection to {url.host} port {url.port}: {error.strerror or type(error).__name__}"
            case _:
                return f"there is no WebSocket: {type(error).__name__}"

    async def _probe(self, connection: Connection) -> None:
        self.result.proxy = _proxy_of(connection)
        await _until(lambda: connection.refusal is not None, _AT_ONCE)
        if connection.refusal is None:
            connection.ask(time.perf_counter())
            await _until(lambda: connection.asked_at is None or connection.refusal is not None, ANSWER_TIMEOUT_S)
            if connection.refusal is None and connection.asked_at is not None:
                what = "ping" if self._target.message is None else "message"
                remedy = "" if self._target.message is None else "; use another --message, or none, which sends pings"
                raise Unusable(f"the server does not answer a {what} within {ANSWER_TIMEOUT_S:.0f} s{remedy}")
            await _until(lambda: connection.refusal is not None, 0.1)  # a close may follow the answer
        if connection.refusal is not None:
            raise Unusable(_explained(connection.refusal))

    # The steps

    async def _search(self) -> None:
        result, most = self.result, self._plan.most
        low, high, target = 0, None, min(FIRST_STEP_SESSIONS, most or FIRST_STEP_SESSIONS)
        while True:
            step = await self._step(target, grows=high is None)
            result.steps.append(step)
            if not step.problem:
                low = result.held = max(low, step.sessions)
            else:
                high = min(target, max(step.sessions, low) + 1)
            if result.ends_by is not None:
                return
            if high is None and target == most:
                result.ends_by = End.MOST
                return
            if high is not None and high - low <= max(1, low * PRECISION):
                result.ends_by = End.SERVER
                return
            target = (low + high) // 2 if high is not None else min(target * 2, most or target * 2)

    async def _step(self, target: int, *, grows: bool) -> Step:
        load, plan = self._load, self._plan
        load.forget()
        before, start, used = len(load.sessions), time.perf_counter(), time.process_time()
        self._show_status(f"opening {target} sessions")
        if before > target:
            load.close(before - target)
        else:
            await load.open(target - before)
            while type(load.error) is TimeoutError and load.at_once > _FEW_AT_ONCE:
                load.error, load.at_once = None, load.at_once // 5  # more than the server answers within the time-out
                await load.open(target - len(load.sessions))
        took = time.perf_counter() - start
        opened = len(load.sessions) - before
        is_hurried = (time.process_time() - used) / took > _BUSY
        self._show_status(f"{len(load.sessions)} sessions are open")
        held = await self._hold()
        if percentile(held.latencies, 0.99) > plan.p99 and load.refusal is None:
            held = await self._hold()  # repeat once: something else may have been busy
        sessions = len(load.sessions)
        grown = self._server.grown() if self._server is not None and grows else None
        return Step(
            sessions=sessions,
            p99=percentile(held.latencies, 0.99),
            memory=grown / sessions if grown is not None and sessions else None,
            handshakes=opened / took if opened > 0 and grows else None,
            is_hurried=is_hurried,
            problem=self._problem(held),
        )

    async def _hold(self) -> Held:
        await self._load.settle(self._plan.p99, ANSWER_TIMEOUT_S)
        return await self._load.hold(max(self._plan.hold, self._plan.every), self._plan.p99)

    def _problem(self, held: Held) -> str:
        """Return why the server did not hold a step, "" if it did; record what ends the search."""
        load, plan = self._load, self._plan
        is_late = percentile(held.latencies, 0.99) > plan.p99 or not held.latencies
        problem = f"answers came later than {duration(plan.p99)}" if is_late else ""
        if load.refusal is not None:
            return self._refused(load.refusal) or problem
        if load.error is not None:
            return self._failed(load.error) or problem
        if held.late > plan.p99 / 2 or held.busy > _BUSY:
            self.result.ends_by = End.COMMAND
        return problem

    def _refused(self, refusal: Refusal) -> str:
        result = self.result
        if result.refusal is None:
            result.refusal, result.refused_at = refusal, len(self._load.sessions)
        if refusal.cause in _OVERLOADS:
            return str(refusal)
        if refusal.cause is None and {refusal.code, refusal.status} & _BREAKDOWNS:
            return self._lack_of_files() or str(refusal)
        result.ends_by = End.LIMIT
        return ""

    def _failed(self, error: Exception) -> str:
        if is_lack_of_files(error) or is_lack_of_ports(error):
            self.result.ends_by = End.FILES if is_lack_of_files(error) else End.PORTS
            return ""
        if isinstance(error, ConnectionRefusedError):
            self.result.ends_by = End.GONE
            return "the server is gone"
        if lack := self._lack_of_files():
            return lack
        if isinstance(error, SlowOpening):
            return "sessions were opened too slowly"
        if isinstance(error, TimeoutError):
            return f"a handshake took longer than {HANDSHAKE_TIMEOUT_S:.0f} s"
        return f"a handshake failed: {type(error).__name__}"

    def _lack_of_files(self) -> str:
        """Return the server's limit if it lacks files, "" if that is not known. It may fail in any way then."""
        files = self._server.lacks_files() if self._server is not None else 0
        return f"the server may open no more than {files} files (ulimit -n)" if files else ""


async def _until(condition: Callable[[], bool], most: float) -> None:
    end = time.perf_counter() + most
    while not condition() and time.perf_counter() < end:  # noqa: ASYNC110 - most of the time nothing happens
        await asyncio.sleep(0.01)


def _proxy_of(connection: Connection) -> str:
    if connection.response is None:
        return ""
    headers = connection.response.headers
    server = next(iter(headers.get_all("Server")), "")
    name = server.lower().partition("/")[0]
    if headers.get_all("Via"):
        return "one with a Via header"
    return name if name in {"nginx", "envoy", "istio-envoy", "caddy", "cloudflare", "awselb", "traefik"} else ""


def _explained(refusal: Refusal) -> str:
    """Return why the first session was refused."""
    if refusal.cause is not None:
        return f"the server refuses the first session: {refusal}{remedy_for(refusal)}"
    match refusal.status:
        case None if refusal.code == 1006:
            return "the server drops the connection at once, without a close code; check its log"
        case None:
            return f"the server closes the session at once: {refusal}; does it want a cookie or a token (--header)?"
        case 401 | 403 | 407:
            return f"the server refuses the handshake: {refusal}; does it want a cookie or a token (--header)?"
        case 301 | 302 | 303 | 307 | 308:
            return f"the server redirects ({refusal}) to {refusal.location or 'nowhere'}; give that address"
        case 404:
            return f"there is no WebSocket at this path: {refusal}"
        case _:
            return f"there is no WebSocket: the server answers the handshake with {refusal}"


REMEDIES = {
    "full": "max_sessions",
    "client": "max_sessions_per_client, or a limit by key: all sessions of this command are one client's",
    "rate": "handshakes_per_second",
    "setup": "max_handshakes_in_progress",
    "cluster": "cluster_max_sessions",
    "lag": "max_loop_lag",
    "memory": "max_memory",
    "cpu": "max_cpu",
    "drain": "the server drains",
    "idle": "idle_timeout",
    "slow": "send_timeout",
    "age": "max_session_age",
    "auth": "auth_timeout",
    "messages": "messages_per_second",
}
"""Setting behind each cause."""


def remedy_for(refusal: Refusal) -> str:
    """Return the origin of a refusal, as the end of a sentence."""
    name = REMEDIES.get(refusal.cause or "")
    return f": {name}" if name else ""
