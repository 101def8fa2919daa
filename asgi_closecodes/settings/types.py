"""Types of settings: accepted values and parsers."""

from __future__ import annotations

import math
from typing import Annotated, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ByteSize,
    Field,
    PlainValidator,
    SecretStr,
    TypeAdapter,
    ValidationInfo,
)

from asgi_closecodes.bounds import MAX_NUMBER
from asgi_closecodes.codes import may_be_sent
from asgi_closecodes.gates import Memory
from asgi_closecodes.naming import shown

from .gates import LIMITS


def none(value: object) -> object:
    """Parse "none", "null" or "" as None."""
    return None if isinstance(value, str) and value.strip().lower() in {"", "none", "null"} else value


def _sendable(code: int) -> int:
    if not may_be_sent(code):
        raise ValueError("must not be sent in a close frame; use 1000-1003, 1007-1014 or 3000-4999")
    return code


def not_boolean(value: object) -> object:
    """Reject booleans, which Python accepts as numbers."""
    if isinstance(value, bool):
        raise ValueError("should be a number, not a boolean")  # noqa: TRY004 - pydantic collects ValueErrors
    return value


def _percent(value: object) -> object:
    """Parse "80%"."""
    if isinstance(value, str) and value.strip().endswith("%"):
        return float(value.strip().removesuffix("%")) / 100
    return value


def _share_or_size(value: object) -> float | ByteSize | None:
    """Parse "0.8", "80%" or "512MiB"."""
    remedy = "should be a share of 0.01 to 1, as 0.8 or 80%, or a size from a MiB to 8 PiB, as 512MiB"
    value = _percent(not_boolean(none(value)))
    if value is None or isinstance(value, ByteSize):
        return value
    try:
        share = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        share = math.nan
    if 0.01 <= share <= 1:
        return _readable(share, None)
    try:
        size = TypeAdapter(ByteSize).validate_python(value)  # only where it is needed
    except (ValueError, OverflowError):
        raise ValueError(remedy) from None
    if not 1 << 20 <= size <= MAX_NUMBER:  # less is probably a percentage without its sign
        raise ValueError(remedy)
    return _readable(size, int(size))


_Memory = TypeVar("_Memory", float, ByteSize)


def _readable(limit: _Memory, size: int | None) -> _Memory:
    if not Memory(size).is_readable:
        other = "" if size else ", or a memory limit of the cgroup"
        raise ValueError(f"needs the package psutil{other}: pip install 'asgi-closecodes[pressure]'")
    return limit


TIME_LIMITS = ("idle_timeout", "send_timeout", "max_session_age", "auth_timeout")
"""Names of the settings that end open sessions when their time is over."""

SHADOWED = (*LIMITS, *TIME_LIMITS, "messages_per_second")
"""Names of the settings that can be tried in the shadow."""


def names(value: object) -> object:
    """Parse "max_sessions,max_cpu"."""
    if none(value) is None:
        return frozenset()
    if isinstance(value, str) and value.strip().lower() in {"true", "false"}:
        value = value.strip().lower() == "true"
    if isinstance(value, bool):
        return frozenset(SHADOWED) if value else frozenset()
    if isinstance(value, str):
        return frozenset(name.strip() for name in value.split(",") if name.strip())
    return value


def limits_only(names: frozenset[str]) -> frozenset[str]:
    """Reject names that are not limits; ``all`` is every limit."""
    if unknown := names - {*SHADOWED, "all"}:
        wrong = ", ".join(sorted(shown(name).strip("'") for name in unknown))
        raise ValueError(f"must name limits, not {wrong}; use {', '.join(SHADOWED)}, or all")
    return frozenset(SHADOWED) if "all" in names else names


def redis_url_only(url: SecretStr) -> SecretStr:
    """Reject a value that is not a Redis URL."""
    from asgi_closecodes.gates.cluster import checked_url  # noqa: PLC0415 - only where there is a cluster

    checked_url(url.get_secret_value())
    return url


def cluster_name_only(name: str) -> str:
    """Reject a name that cannot be a part of a key."""
    from asgi_closecodes.gates.cluster import checked_name  # noqa: PLC0415 - only where there is a cluster

    return checked_name(name)


def _needs_redis(limit: object, info: ValidationInfo) -> object:
    if limit is not None and info.data.get("redis_url", "invalid, and reported already") is None:
        raise ValueError("needs redis_url, shared by all processes, as redis://localhost:6379/0")
    return limit


Count = Annotated[int, BeforeValidator(not_boolean), Field(le=MAX_NUMBER)]

Sessions = Annotated[Count, Field(ge=0)] | None

ClusterLimit = Annotated[Sessions, AfterValidator(_needs_redis)]

Code = Annotated[int, BeforeValidator(not_boolean), AfterValidator(_sendable)]

Seconds = Annotated[float, BeforeValidator(not_boolean), Field(allow_inf_nan=False, le=MAX_NUMBER)]

Positive = Annotated[Seconds, Field(gt=0)]

TimeLimit = Positive | None

Share = Annotated[float, BeforeValidator(not_boolean), BeforeValidator(_percent), Field(le=1)]

Memories = Annotated[float | ByteSize | None, PlainValidator(_share_or_size)]
