"""The settings: what can be set, and where it comes from."""

from __future__ import annotations

import difflib
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, ParamSpec, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from asgi_closecodes.codes import CloseCode
from asgi_closecodes.exceptions import MAX_RETRY_AFTER
from asgi_closecodes.gates.cluster import checked_name
from asgi_closecodes.naming import shown

from .gates import LIMITS
from .types import (
    ClusterLimit,
    Code,
    Count,
    Memories,
    Positive,
    Seconds,
    Sessions,
    Share,
    TimeLimit,
    limits_only,
    names,
    none,
    redis_url_only,
)

PREFIX = "CLOSECODES_"


class SettingsError(ValueError):
    """The settings cannot be used; the text names every problem with its value and the remedy."""


class Settings(BaseSettings):
    """How the middleware behaves: keyword arguments, or environment variables of the prefix ``CLOSECODES_``.

    :raises SettingsError: naming all that is wrong, at once.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, frozen=True, extra="forbid")

    max_sessions: Sessions = Field(
        default=None, description="Open sessions of one process. None is no limit, 0 admits nobody."
    )
    max_sessions_per_client: Sessions = Field(
        default=None, description="Open sessions of one client address (IPv6: of one /64) in one process."
    )
    when_client_full: Literal["refuse", "replace_oldest"] = Field(
        default="refuse",
        description=(
            "At that limit, and at `cluster_max_sessions_per_client`, the new session is refused (`refuse`), or the "
            "client's oldest one is shed for it (`replace_oldest`)."
        ),
    )
    max_handshakes_in_progress: Sessions = Field(
        default=None, description="Handshakes that wait for their answer in one process."
    )
    handshake_timeout: Positive = Field(
        default=10.0, description="Seconds that one of them may take, where that limit is set."
    )
    handshakes_per_second: Annotated[Annotated[Seconds, Field(ge=0)] | None, BeforeValidator(none)] = Field(
        default=None,
        description="New sessions a second in one process. For 30 s after the start it grows from a third.",
    )
    handshake_burst: Annotated[Annotated[Seconds, Field(ge=1)] | None, BeforeValidator(none)] = Field(
        default=None, description="New sessions at once after a pause. None is as many as come in a second."
    )
    max_loop_lag: Annotated[Annotated[Seconds, Field(ge=0.001, le=60)] | None, BeforeValidator(none)] = Field(
        default=None,
        description="Seconds that the event loop may be late. Half as late sessions are admitted again.",
    )
    max_memory: Memories = Field(
        default=None,
        description=(
            "Memory that may be in use: a share of what the process may use, as `0.8` or `80%`, or a size, as "
            "`512MiB`. Below 90 % of that sessions are admitted again."
        ),
    )
    max_cpu: Annotated[Annotated[Share, Field(ge=0.01)] | None, BeforeValidator(none)] = Field(
        default=None,
        description=(
            "Share of time in which the process lacks a core (throttled, waiting, or busy on all it may use). "
            "Below 80 % of that sessions are admitted again."
        ),
    )
    redis_url: Annotated[Annotated[SecretStr, AfterValidator(redis_url_only)] | None, BeforeValidator(none)] = Field(
        default=None,
        repr=False,
        description=(
            "The Redis or Valkey of the limits of a cluster: `redis://`, `rediss://`, `unix://`, `redis+sentinel://` "
            "or `redis+cluster://`. It is never logged."
        ),
    )
    cluster_max_sessions: ClusterLimit = Field(
        default=None, description="Open sessions of all processes that share `redis_url` and `cluster_name`."
    )
    cluster_max_sessions_per_client: ClusterLimit = Field(
        default=None,
        description="Open sessions of one client address in all these processes; each costs a round trip to Redis.",
    )
    cluster_name: Annotated[str, AfterValidator(checked_name)] = Field(
        default="default", description="Tells applications on the same Redis apart."
    )
    cluster_lease_duration: Annotated[Seconds, Field(ge=2, le=3600)] = Field(
        default=30.0,
        description=(
            "Seconds that a process may go on by itself without Redis, and after which the places of one that died "
            "are free again."
        ),
    )
    cluster_fallback: Literal["share", "open", "closed"] = Field(
        default="share",
        description=(
            "Who is admitted when Redis is away for longer: in each process up to what it had, and an equal part of "
            "80 % of what was free (`share`), all (`open`), or nobody (`closed`)."
        ),
    )
    shadow: Annotated[frozenset[str], NoDecode, BeforeValidator(names), AfterValidator(limits_only)] = Field(
        default=frozenset(),
        description="Limits that only log what they would refuse: names as `max_sessions,max_cpu`, or `all`.",
    )
    shed_order: Literal["never", "newest", "oldest", "idle"] | Callable[[Any], Any] = Field(
        default="newest",
        description=(
            "Who leaves first when a limit was lowered below what is open, when the lag is twice its limit, or half "
            "of what is left of memory or cpu is gone: `newest`, `oldest`, `idle`, or `never` anybody. In code also "
            "a function of the session: the smallest go first."
        ),
    )
    shed_rate: Annotated[Annotated[Seconds, Field(gt=0)] | None, BeforeValidator(none)] = Field(
        default=None, description="Sessions that are shed a second. None is 1 % of the open ones, at least 1."
    )
    shed_grace: Annotated[Seconds, Field(ge=0)] = Field(
        default=10.0, description="Seconds that the handler of a session that was ended has before it is cancelled."
    )
    abandon_after: Positive = Field(
        default=60.0,
        description="Seconds that a session counts after its close where the server still holds its connection.",
    )
    idle_timeout: TimeLimit = Field(
        default=None,
        description=(
            "Seconds without a message in either direction after which a session is closed with 3008; late by at most "
            "1 s or a tenth of it."
        ),
    )
    send_timeout: TimeLimit = Field(
        default=None,
        description=(
            "Seconds that a handler may wait in one `send`, for a peer that does not read, before its session is shed "
            "with `cause=slow`."
        ),
    )
    cancel_after_disconnect: bool = Field(
        default=False,
        description="Cancel a handler that goes on for `shed_grace` seconds after its peer has left.",
    )
    drain_window: Annotated[Seconds, Field(ge=0)] = Field(
        default=30.0, description="Seconds over which `guard.drain()` closes the open sessions."
    )
    drain_on_sigterm: bool = Field(
        default=False,
        description="Drain at the first SIGTERM, then let the server stop. Under uvicorn only; read at its start.",
    )
    reject_with: Literal["close", "http", "auto"] = Field(
        default="close",
        description=(
            "How a handshake is refused: `close` accepts and closes, so that browsers see the code; `http` "
            "answers 503 or 500; `auto` closes for browsers (an `Origin` header), else answers by HTTP."
        ),
    )
    max_refusals_per_second: Annotated[Annotated[Seconds, Field(ge=0)] | None, BeforeValidator(none)] = Field(
        default=200.0,
        description=(
            "Refusals that may be closes; the rest use HTTP, since a peer that answers no close holds its "
            "socket for 10 s. None is no limit."
        ),
    )
    max_retry_after: Annotated[Seconds, Field(ge=1, le=MAX_RETRY_AFTER)] = Field(
        default=60.0, description="The longest retry hint of the queue, in seconds."
    )
    gate_failure: Literal["open", "closed"] = Field(
        default="open",
        description="A gate that raises an error lets sessions pass (`open`) or refuses them (`closed`).",
    )
    error_code: Code = Field(
        default=int(CloseCode.INTERNAL_ERROR), description="The close code of an unhandled exception."
    )
    try_again_code: Code = Field(default=int(CloseCode.TRY_AGAIN_LATER), description="The close code of a refusal.")
    reraise: bool = Field(
        default=False, description="Let the exception travel on after the close, to instrumentation outside."
    )
    debug: bool = Field(
        default=False, description="Put the exception's text into the close reason. Never in production."
    )
    log_path: Literal["redacted", "raw", "off"] = Field(
        default="redacted",
        description=(
            "`url.path` in logs: with what looks like a token masked (`redacted`), as it came (`raw`), or `off`."
        ),
    )
    log_client: Literal["full", "truncated", "hashed", "off"] = Field(
        default="full",
        description="`client.address` in logs: `full`, `truncated` to its /24 (IPv6: /48), `hashed`, or `off`.",
    )
    log_burst: Annotated[Annotated[Count, Field(ge=1)] | None, BeforeValidator(none)] = Field(
        default=10,
        description=(
            "Equal errors that are logged one by one after a quiet time, the first always; the others are counted. "
            "Five times as many of all kinds together. None logs every error."
        ),
    )
    log_per_minute: Annotated[Annotated[Seconds, Field(ge=0)] | None, BeforeValidator(none)] = Field(
        default=10.0,
        description="Equal errors that are logged a minute after that. 60 times as many of all kinds together.",
    )

    def __init__(self, **values: Any) -> None:
        given, problem = frozenset(values), None
        try:
            super().__init__(**values)
        except ValidationError as error:
            problem = SettingsError(_explained(error))
        finally:
            values.clear()
        if problem is not None:  # here neither its context nor a local variable holds the values: a URL has a password
            raise problem from None
        self.__dict__["_given"] = given  # no field: settings are equal wherever they come from

    def overridden(self) -> list[str]:
        """Return the names of environment variables that say something else than these settings, given in code."""
        names = {name.upper(): name for name in os.environ if os.environ[name]}
        variables = {name: names.get(f"{PREFIX}{name}".upper()) for name in self.__dict__.get("_given", ())}
        overridden = {name: variable for name, variable in variables.items() if variable is not None}
        if not overridden:
            return []
        others = {name: getattr(self, name) for name in variables if name not in overridden}
        try:
            without = type(self)(**others)
        except SettingsError:
            return sorted(overridden.values())
        return sorted(
            variable for name, variable in overridden.items() if getattr(without, name) != getattr(self, name)
        )

    def changed(self, **changes: Any) -> Self:
        """Return these settings with ``changes``; the environment is not read again.

        :raises SettingsError: naming all that is wrong, at once.
        """
        values = {**self.model_dump(), **changes}
        try:
            return type(self)(**values)
        finally:
            values.clear()
            changes.clear()

    def limits(self) -> dict[str, object]:
        """Return the settings that limit something, by name."""
        return {
            name: getattr(self, name) for name in (*LIMITS, "idle_timeout", "send_timeout", "max_refusals_per_second")
        }


def checked_change(before: Settings, after: Settings, *, is_running: bool) -> Settings:
    """Return ``after``.

    :param is_running: whether the application has started.
    :raises SettingsError: if it changes what is read only at the start, or where the processes of a cluster meet: what
        is open is counted there.
    """
    for name in ("redis_url", "cluster_name", *(("drain_on_sigterm",) if is_running else ())):
        if getattr(before, name) != getattr(after, name):
            raise SettingsError(f"{name} cannot be changed while the application runs: restart it")
    return after


_Parameters = ParamSpec("_Parameters")


def no_settings_of_its_own(init: Callable[_Parameters, None]) -> Callable[_Parameters, None]:
    """Have ``init`` say where settings go that it is given itself; what it takes stays as it is, for type checkers."""
    code = init.__code__
    known = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    parts = [name for name in known if name not in {"self", "app"}]

    @functools.wraps(init)
    def checked(*arguments: _Parameters.args, **named: _Parameters.kwargs) -> None:
        if unknown := {name: value for name, value in named.items() if name not in known}:
            raise _misplaced(init.__qualname__.partition(".")[0], parts, unknown)
        init(*arguments, **named)

    return checked


def _misplaced(where: str, parts: Sequence[str], given: Mapping[str, object]) -> TypeError:
    settings = [name for name in given if name in Settings.model_fields]
    if settings:
        values = ", ".join(f"{name}={_shown(name, given[name])}" for name in settings)
        return TypeError(f"{where} takes no {', '.join(settings)}: settings go into settings=Settings({values})")
    name = next(iter(given))
    nearest = difflib.get_close_matches(name, parts, n=1)
    if not nearest:
        nearest = [
            f"settings=Settings({one}=...)" for one in difflib.get_close_matches(name, Settings.model_fields, n=1)
        ]
    hint = f"; did you mean {nearest[0]}?" if nearest else ""
    return TypeError(f"{where} takes no {name}, but {', '.join(parts[:-1])} and {parts[-1]}{hint}")


def _shown(name: str, value: object) -> str:
    return shown(value) if type(value) in {int, float, str, bool} and name != "redis_url" else "..."


def unknown_settings(environment: Mapping[str, str] = os.environ) -> dict[str, str | None]:
    """Return the names in ``environment`` with our prefix that are no setting, each with the nearest one."""
    bare = [name.upper() for name in Settings.model_fields]
    known = {f"{PREFIX}{name}" for name in bare}
    unknown = {}
    for name in environment:
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            nearest = difflib.get_close_matches(name.upper().removeprefix(PREFIX), bare, n=1)
            unknown[name] = f"{PREFIX}{nearest[0]}" if nearest else None
    return unknown


def _explained(error: ValidationError) -> str:
    problems: dict[str, str] = {}
    for problem in error.errors(include_url=False):
        name = str(problem["loc"][0]) if problem["loc"] else "settings"
        if problem["type"] == "extra_forbidden":  # its value may be anything, a secret too
            nearest = difflib.get_close_matches(name, Settings.model_fields, n=1)
            hint = f"; did you mean {nearest[0]}?" if nearest else ""
            problems[name] = f"{name} (or {PREFIX}{name.upper()}): no such setting{hint}"
            continue
        text = problem["msg"].removeprefix("Value error, ")
        remedy = f"{text[0].lower()}{text[1:]} ({Settings.model_fields[name].description})"
        # The first of several says enough: a union has one for each of its members.
        value = "" if name == "redis_url" else f" = {shown(problem['input'])}"  # there may be a password in it
        problems.setdefault(name, f"{name}{value} (or {PREFIX}{name.upper()}): {remedy}")
    lines = "".join(f"\n  {text}" for text in problems.values())
    return f"{len(problems)} setting{'s' if len(problems) > 1 else ''} cannot be used:{lines}"
