"""Settings model: fields, sources and error texts."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import NoneType
from typing import Annotated, Any, Literal, ParamSpec, Self, get_args

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from asgi_closecodes.codes import CloseCode
from asgi_closecodes.exceptions import MAX_RETRY_AFTER
from asgi_closecodes.naming import shown

from .types import (
    SHADOWED,
    ClusterLimit,
    Code,
    Count,
    Memories,
    Positive,
    Seconds,
    Sessions,
    Share,
    TimeLimit,
    cluster_name_only,
    limits_only,
    names,
    none,
    redis_url_only,
)

PREFIX = "CLOSECODES_"


class SettingsError(ValueError):
    """Unusable settings; the text names each problem, its value and the remedy."""


class Settings(BaseSettings):
    """Settings of the middleware: keyword arguments, or environment variables with the prefix ``CLOSECODES_``.

    :raises SettingsError: naming every problem at once.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, frozen=True, extra="forbid")

    max_sessions: Sessions = Field(
        default=None, description="Open sessions of one process. None is unlimited, 0 refuses all."
    )
    max_sessions_per_client: Sessions = Field(
        default=None, description="Open sessions of one client address (IPv6: of one /64) in one process."
    )
    when_client_full: Literal["refuse", "replace_oldest"] = Field(
        default="refuse",
        description=(
            "At `max_sessions_per_client` and `cluster_max_sessions_per_client`: refuse the new session (`refuse`), or "
            "shed the client's oldest one (`replace_oldest`)."
        ),
    )
    max_handshakes_in_progress: Sessions = Field(default=None, description="Unanswered handshakes in one process.")
    handshake_timeout: Positive = Field(
        default=10.0, description="Seconds that a handshake may take if `max_handshakes_in_progress` is set."
    )
    handshakes_per_second: Annotated[Seconds, Field(ge=0)] | None = Field(
        default=None,
        description="New sessions a second in one process. It grows from a third in the first 30 s.",
    )
    handshake_burst: Annotated[Seconds, Field(ge=1)] | None = Field(
        default=None, description="New sessions at once after a pause. None is one second's worth."
    )
    max_loop_lag: Annotated[Seconds, Field(ge=0.001, le=60)] | None = Field(
        default=None,
        description="Delay of the event loop in seconds. Below half of it, sessions are admitted again.",
    )
    max_memory: Memories = Field(
        default=None,
        description=(
            "Memory in use: a share of what the process may use, as `0.8` or `80%`, or a size, as `512MiB`. "
            "Below 90 % of that, sessions are admitted again."
        ),
    )
    max_cpu: Annotated[Share, Field(ge=0.01)] | None = Field(
        default=None,
        description=(
            "Share of time in which the process lacks a core (throttled, waiting, or busy on all it may use). "
            "Below 80 % of that, sessions are admitted again."
        ),
    )
    redis_url: Annotated[SecretStr, AfterValidator(redis_url_only)] | None = Field(
        default=None,
        repr=False,
        description=(
            "URL of the Redis or Valkey for cluster limits: `redis://`, `rediss://`, `unix://`, `redis+sentinel://` or "
            "`redis+cluster://`. Never logged."
        ),
    )
    cluster_max_sessions: ClusterLimit = Field(
        default=None, description="Open sessions of all processes that share `redis_url` and `cluster_name`."
    )
    cluster_max_sessions_per_client: ClusterLimit = Field(
        default=None,
        description="Open sessions of one client address in all these processes. Each costs a round trip to Redis.",
    )
    cluster_name: Annotated[str, AfterValidator(cluster_name_only)] = Field(
        default="default", description="Name that separates applications on the same Redis."
    )
    cluster_lease_duration: Annotated[Seconds, Field(ge=2, le=3600)] = Field(
        default=30.0,
        description=(
            "Seconds that a process may admit without Redis, and after which the permits of a dead process are free."
        ),
    )
    cluster_fallback: Literal["share", "open", "closed"] = Field(
        default="share",
        description=(
            "Admission when Redis is unreachable for longer: in each process its last count and an equal part of 80 % "
            "of the free permits (`share`), everything (`open`), or nothing (`closed`)."
        ),
    )
    shadow: Annotated[frozenset[str], NoDecode, BeforeValidator(names), AfterValidator(limits_only)] = Field(
        default=frozenset(),
        description="Limits that only log whom they would refuse or close: names, as `max_sessions,max_cpu`, or `all`.",
    )
    shed_order: Literal["never", "newest", "oldest", "idle"] | Callable[[Any], Any] = Field(
        default="newest",
        description=(
            "Which sessions to close first when a limit drops below the current count, lag reaches twice its limit, or "
            "half the remaining memory or CPU headroom is used: `newest`, `oldest`, `idle`, or `never` any. In code "
            "also a sort key: a function of the session."
        ),
    )
    shed_rate: Annotated[Seconds, Field(gt=0)] | None = Field(
        default=None, description="Sessions shed a second. None is 1 % of the open ones, at least 1."
    )
    shed_grace: Annotated[Seconds, Field(ge=0)] = Field(
        default=10.0, description="Seconds before the handler of an ended session is cancelled."
    )
    abandon_after: Positive = Field(
        default=60.0,
        description="Seconds that a session counts after its close while the server holds its connection.",
    )
    idle_timeout: TimeLimit = Field(
        default=None,
        description=(
            "Seconds without a message in either direction, after which a session is closed with 3008. Precision: 1 s "
            "or a tenth of it."
        ),
    )
    max_session_age: TimeLimit = Field(
        default=None,
        description=(
            "Seconds after which a session is closed with 1012: `cause=age`. Each has its own age, at random from half "
            "of it to all of it, so that sessions that came together do not leave together."
        ),
    )
    auth_timeout: TimeLimit = Field(
        default=None,
        description="Seconds that an accepted session may have no `session.key` before it is closed with 3000.",
    )
    send_timeout: TimeLimit = Field(
        default=None,
        description=(
            "Seconds that one `send` may wait for a peer that does not read before the session is shed: `cause=slow`."
        ),
    )
    messages_per_second: TimeLimit = Field(
        default=None,
        description="Messages a second that a handler receives; beyond it the next one is read later.",
    )
    message_burst: Annotated[Seconds, Field(ge=1)] | None = Field(
        default=None, description="Messages at once after a pause. None is one second's worth, at least 1."
    )
    message_patience: Positive = Field(
        default=5.0,
        description="Seconds of delay by `messages_per_second` without a pause after which a session gets 1008.",
    )
    cancel_after_disconnect: bool = Field(
        default=False,
        description="Cancel a handler that still runs `shed_grace` seconds after its peer has left.",
    )
    drain_window: Annotated[Seconds, Field(ge=0)] = Field(
        default=30.0, description="Seconds over which `guard.drain()` closes the open sessions."
    )
    drain_patience: Annotated[Seconds, Field(ge=0)] = Field(
        default=0.0,
        description="Seconds that a drain waits for sessions in a block of `session.busy()`, before `drain_window`.",
    )
    drain_on_sigterm: bool = Field(
        default=False,
        description="Drain at the first SIGTERM, then let the server stop. uvicorn and daphne; read at the start.",
    )
    reject_with: Literal["auto", "close", "http"] | Callable[[Any], Any] = Field(
        default="auto",
        description=(
            "Rejection of a handshake: `close` accepts and closes, so that clients see the code; `http` answers 503, "
            "500 or 403; `auto` closes, but uses HTTP for Engine.IO, HTTP/2 and pages that come back at once. In code "
            "also a function of the session that returns `close` or `http`."
        ),
    )
    deliver_early_closes: bool = Field(
        default=False,
        description=(
            "Accept a handshake that the handler closes with a code, so that browsers see the code and not 1006. A "
            "plain close stays HTTP 403."
        ),
    )
    max_refusals_per_second: Annotated[Seconds, Field(ge=0)] | None = Field(
        default=200.0,
        description=(
            "Refusals by close; the rest use HTTP, since a peer that ignores the close holds its socket for 10 s. None "
            "is unlimited."
        ),
    )
    max_retry_after: Annotated[Seconds, Field(ge=1, le=MAX_RETRY_AFTER)] = Field(
        default=60.0, description="Longest retry hint of the queue in seconds."
    )
    gate_failure: Literal["open", "closed"] = Field(
        default="open",
        description="Decision of a gate that raises an error: admit (`open`) or refuse (`closed`).",
    )
    error_code: Code = Field(default=int(CloseCode.INTERNAL_ERROR), description="Close code of an unhandled exception.")
    try_again_code: Code = Field(default=int(CloseCode.TRY_AGAIN_LATER), description="Close code of a refusal.")
    reraise: bool | Literal["auto"] = Field(
        default="auto",
        description=(
            "Raise the exception again after the close, for outer instrumentation. `auto` does so where no server "
            "serves the application: in a test client, whose test must fail."
        ),
    )
    debug: bool = Field(
        default=False, description="Put the exception's text into the close reason. Never in production."
    )
    log_path: Literal["redacted", "raw", "off"] = Field(
        default="redacted",
        description=("`url.path` in logs: with tokens masked (`redacted`), as received (`raw`), or `off`."),
    )
    log_client: Literal["full", "truncated", "hashed", "off"] = Field(
        default="full",
        description="`client.address` in logs: `full`, `truncated` to its /24 (IPv6: /48), `hashed`, or `off`.",
    )
    log_burst: Annotated[Count, Field(ge=1)] | None = Field(
        default=10,
        description=(
            "Equal errors logged one by one after a quiet time; further ones are counted. Five times as many of all "
            "kinds together. None logs every error."
        ),
    )
    log_per_minute: Annotated[Seconds, Field(ge=0)] | None = Field(
        default=10.0,
        description="Equal errors logged a minute after `log_burst`. 60 times as many of all kinds together.",
    )
    log_stalls: Annotated[Seconds, Field(ge=0.01, le=60)] | None = Field(
        default=None,
        description=(
            "Delay of the event loop in seconds that is logged with the line that blocked it. A stall may be missed "
            "if it is longer than that by less than 0.25 s."
        ),
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Leave out sources that have no variable: each examines every field, for longer than all the rest takes."""
        sources = (init_settings, env_settings, dotenv_settings, file_secret_settings)
        # Fields of a subclass may have variables of other names.
        return sources if settings_cls is not Settings else tuple(filter(_has_variables, sources))

    @model_validator(mode="before")
    @classmethod
    def _parse_none(cls, values: Any) -> Any:
        """Parse "none" where None is meant: once, since a validator of each field costs time at import."""
        if not isinstance(values, dict):
            return values  # pydantic says what is wrong with it
        optional = {name for name, field in cls.model_fields.items() if NoneType in get_args(field.annotation)}
        return {name: none(value) if name in optional else value for name, value in values.items()}

    def __init__(self, **values: Any) -> None:
        given, problem = frozenset(values), None
        try:
            super().__init__(**values)
        except ValidationError as error:
            problem = SettingsError(_describe_error(error))
        finally:
            values.clear()
        if (
            problem is not None
        ):  # outside of the handler no context or local variable holds the values: a URL has a password
            raise problem from None
        self.__dict__["_given"] = given  # not a field: the source does not matter for equality

    def overridden(self) -> list[str]:
        """Return the environment variables that arguments in code override."""
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
        """Return these settings with ``changes``, without reading the environment again.

        :raises SettingsError: naming every problem at once.
        """
        values = {**self.model_dump(), **changes}
        try:
            return type(self)(**values)
        finally:
            values.clear()
            changes.clear()

    def limits(self) -> dict[str, object]:
        """Return the limits by name."""
        return {name: getattr(self, name) for name in (*SHADOWED, "max_refusals_per_second")}


def _has_variables(source: PydanticBaseSettingsSource) -> bool:
    if isinstance(source, DotEnvSettingsSource):
        return bool(source.env_vars)
    if isinstance(source, EnvSettingsSource):
        return any(name.lower().startswith(source.env_prefix.lower()) for name in source.env_vars)
    return True


def checked_change(before: Settings, after: Settings, *, is_running: bool) -> Settings:
    """Return ``after`` if the change is allowed.

    :param is_running: whether the application has started.
    :raises SettingsError: for a change of a setting that is read only at the start, or of the store, which counts the
        open sessions.
    """
    for name in ("redis_url", "cluster_name", *(("drain_on_sigterm",) if is_running else ())):
        if getattr(before, name) != getattr(after, name):
            raise SettingsError(f"{name} cannot be changed while the application runs: restart it")
    return after


_Parameters = ParamSpec("_Parameters")


def reject_misplaced_settings(init: Callable[_Parameters, None]) -> Callable[_Parameters, None]:
    """Make ``init`` reject settings passed as its own arguments; its signature is unchanged for type checkers."""
    code = init.__code__
    known = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    parts = [name for name in known if name not in {"self", "app"}]

    @functools.wraps(init)
    def checked(*arguments: _Parameters.args, **named: _Parameters.kwargs) -> None:
        if unknown := {name: value for name, value in named.items() if name not in known}:
            raise _misplaced_settings_error(init.__qualname__.partition(".")[0], parts, unknown)
        init(*arguments, **named)

    return checked


def _misplaced_settings_error(where: str, parts: Sequence[str], given: Mapping[str, object]) -> TypeError:
    settings = [name for name in given if name in Settings.model_fields]
    if settings:
        values = ", ".join(f"{name}={_shown(name, given[name])}" for name in settings)
        return TypeError(f"{where} takes no {', '.join(settings)}: settings go into settings=Settings({values})")
    name = next(iter(given))
    nearest = _nearest(name, parts)
    if nearest is None and (setting := _nearest(name, Settings.model_fields)) is not None:
        nearest = f"settings=Settings({setting}=...)"
    hint = "" if nearest is None else f"; did you mean {nearest}?"
    return TypeError(f"{where} takes no {name}, but {', '.join(parts[:-1])} and {parts[-1]}{hint}")


def _shown(name: str, value: object) -> str:
    return shown(value) if type(value) in {int, float, str, bool} and name != "redis_url" else "..."


def unknown_settings(environment: Mapping[str, str] = os.environ) -> dict[str, str | None]:
    """Return unknown names in ``environment`` with our prefix, each with the most similar setting."""
    bare = [name.upper() for name in Settings.model_fields]
    known = {f"{PREFIX}{name}" for name in bare}
    unknown = {}
    for name in environment:
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            nearest = _nearest(name.upper().removeprefix(PREFIX), bare)
            unknown[name] = None if nearest is None else f"{PREFIX}{nearest}"
    return unknown


def _nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the one that ``name`` may have been meant to be."""
    import difflib  # noqa: PLC0415 - only after a mistake

    return next(iter(difflib.get_close_matches(name, [*known], n=1)), None)


def _describe_error(error: ValidationError) -> str:
    problems: dict[str, str] = {}
    for problem in error.errors(include_url=False):
        name = str(problem["loc"][0]) if problem["loc"] else "settings"
        if problem["type"] == "extra_forbidden":  # the value is not shown: it may be a secret
            nearest = _nearest(name, Settings.model_fields)
            hint = "" if nearest is None else f"; did you mean {nearest}?"
            problems[name] = f"{name} (or {PREFIX}{name.upper()}): no such setting{hint}"
            continue
        text = problem["msg"].removeprefix("Value error, ")
        remedy = f"{text[0].lower()}{text[1:]} ({Settings.model_fields[name].description})"
        # Only the first: a union has a problem for each member.
        value = "" if name == "redis_url" else f" = {shown(problem['input'])}"  # it may contain a password
        problems.setdefault(name, f"{name}{value} (or {PREFIX}{name.upper()}): {remedy}")
    lines = "".join(f"\n  {text}" for text in problems.values())
    return f"{len(problems)} setting{'s' if len(problems) > 1 else ''} cannot be used:{lines}"
