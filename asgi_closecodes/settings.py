"""What can be set, where it comes from, and the gates that it describes."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from .codes import CloseCode, may_be_sent
from .gates import MaxSessions, MaxSessionsPerKey

PREFIX = "CLOSECODES_"


def _none(value: object) -> object:
    """Read an environment's way to say None."""
    return None if isinstance(value, str) and value.strip().lower() in {"", "none", "null"} else value


def _sendable(code: int) -> int:
    if not may_be_sent(code):
        raise ValueError("may not be sent in a close frame; use 1000-1003, 1007-1014 or 3000-4999")
    return code


def _not_boolean(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("should be a number, not a boolean")  # noqa: TRY004 - pydantic collects ValueErrors
    return value


Sessions = Annotated[
    Annotated[int, BeforeValidator(_not_boolean), Field(ge=0)] | None,
    BeforeValidator(_none),
]
Code = Annotated[int, BeforeValidator(_not_boolean), AfterValidator(_sendable)]
Seconds = Annotated[float, BeforeValidator(_not_boolean), Field(allow_inf_nan=False)]


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
    handshake: Literal["close", "http", "auto"] = Field(
        default="close",
        description=(
            "How a handshake is refused: `close` accepts and closes, so that browsers see the code; `http` "
            "answers 503 or 500; `auto` closes for browsers (an `Origin` header), else answers by HTTP."
        ),
    )
    max_refusals_per_second: Annotated[Seconds, Field(ge=0)] = Field(
        default=200.0,
        description=(
            "Refusals that may be closes; the rest use HTTP, since a peer that answers no close holds its "
            "socket for 10 s."
        ),
    )
    retry_after_cap: Annotated[Seconds, Field(ge=1)] = Field(
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

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise SettingsError(_explained(error)) from None

    def changed(self, **changes: Any) -> Self:
        """Return these settings with ``changes``; the environment is not read again.

        :raises SettingsError: naming all that is wrong, at once.
        """
        return type(self)(**{**self.model_dump(), **changes})

    def limits(self) -> dict[str, object]:
        """Return the settings that limit something, by name."""
        return {name: getattr(self, name) for name in (*_GATES, "max_refusals_per_second")}


_GATES: dict[str, type[MaxSessions | MaxSessionsPerKey]] = {
    # In the order in which they are asked.
    "max_sessions_per_client": MaxSessionsPerKey,
    "max_sessions": MaxSessions,
}


def limited_gates(settings: Settings) -> dict[str, MaxSessions | MaxSessionsPerKey]:
    """Return the gates that ``settings`` describe, each under the name of the setting that is its limit."""
    return {name: kind(getattr(settings, name)) for name, kind in _GATES.items()}


def unknown_settings(environment: Mapping[str, str] = os.environ) -> dict[str, str | None]:
    """Return the names in ``environment`` with our prefix that are no setting, each with the nearest one."""
    known = {f"{PREFIX}{name}".upper() for name in Settings.model_fields}
    unknown = {}
    for name in environment:
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            nearest = difflib.get_close_matches(name.upper(), known, n=1)
            unknown[name] = nearest[0] if nearest else None
    return unknown


def _explained(error: ValidationError) -> str:
    problems = []
    for problem in error.errors(include_url=False):
        name = str(problem["loc"][0]) if problem["loc"] else "settings"
        if problem["type"] == "extra_forbidden":
            nearest = difflib.get_close_matches(name, Settings.model_fields, n=1)
            remedy = f"no such setting{f'; did you mean {nearest[0]}?' if nearest else ''}"
        else:
            text = problem["msg"].removeprefix("Value error, ")
            remedy = f"{text[0].lower()}{text[1:]} ({Settings.model_fields[name].description})"
        problems.append(f"\n  {name} = {problem['input']!r} (or {PREFIX}{name.upper()}): {remedy}")
    return f"{len(problems)} setting{'s' if len(problems) > 1 else ''} cannot be used:{''.join(problems)}"
