"""Meanings of Redis errors, and remedies."""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Iterator

_NO_PASSWORD = "it wants a password: put it into the URL, as redis://:password@host"  # noqa: S105

_SEE_ACL = "see the ACL in asgi_closecodes/gates/cluster/README.md"

_NO_PERMISSION = (
    f"the user of the URL may not run EVAL, EVALSHA and the commands of the scripts on closecodes:*: {_SEE_ACL}"
)

_MEANINGS = {
    # By the first word of the server's answer, or by redis-py's class for it.
    "NOAUTH": _NO_PASSWORD,
    "WRONGPASS": "it does not accept the user or the password of the URL",
    "NOPERM": _NO_PERMISSION,
    "READONLY": "it is a replica, which takes no writes: use the primary's address, or redis+sentinel://",
    "OOM": "its memory is full (maxmemory): give it more, or a Redis of its own",
    "LOADING": "it is loading its data",
    "BUSY": "it is busy with somebody's script",
    "MASTERDOWN": "its primary is down",
    "MISCONF": "it takes no writes, since it cannot write to its disk",
    "MOVED": "it is a node of a Redis Cluster: use redis+cluster://",
    "CROSSSLOT": "it is behind a proxy that does not know hash tags",
    "CLUSTERDOWN": "its cluster is down",
    **dict.fromkeys(("Authentication required", "already authenticated", "unauthenticated"), _NO_PASSWORD),
    **dict.fromkeys(("ACL failure in script", "user executing the script"), _NO_PERMISSION),
    "DB index": "it has no database of the number in the URL",
    "Cluster mode is not enabled": "it is no Redis Cluster: use redis://",
    "STALE": "it has heard a later call of this process before this one",
    "TTL exhausted": "its cluster is moving the limit to another node",
    "No master found": "the Sentinels know no primary of that service, cannot be reached, or want a sentinel_password",
}


def describe_error(error: BaseException, *, has_answered: bool = True) -> str:
    """Return what ``error`` of a store means and what to do about it, in one line without secrets.

    :param has_answered: whether the store could be used before.
    """
    from redis import exceptions  # noqa: PLC0415 - an extra

    chain = [*_chain_of(error)]
    if _is_any_of(chain, TimeoutError, exceptions.TimeoutError) or str(error).startswith("Timeout "):
        return "it does not answer in time"
    for one in reversed(chain):  # innermost first: redis-py's own errors say less
        meaning = _of_the_way_there(one) or _of_an_answer(one)
        if meaning is not None:
            return meaning
    if not has_answered and re.search("closed by server|Connection reset|Broken pipe", str(error)):
        return "it hangs up: it may want TLS (rediss://), or a client certificate (ssl_certfile in the URL)"
    if _is_any_of(chain, OSError, exceptions.ConnectionError):
        return "it cannot be reached"
    return f"{type(error).__module__}.{type(error).__qualname__}"


def _of_an_answer(error: BaseException) -> str | None:
    from redis import exceptions  # noqa: PLC0415

    if wrong := re.search(r"(WRONGTYPE|GARBAGE) (closecodes:\{\S+)", str(error)):
        what = "something of another type (WRONGTYPE)" if wrong[1] == "WRONGTYPE" else "what this library cannot read"
        return f"its key {wrong[2]} holds {what}: delete it (redis-cli DEL '{wrong[2]}'), and find out who wrote it"
    if "access a channel" in str(error) or "access one of the channels" in str(error):
        return "the user of the URL may not use the channels closecodes:* (ACL SETUSER … &closecodes:*)"
    if denied := re.search(r"permissions to run the '([a-z|]+)' command", str(error)):
        return f"the user of the URL may not run {denied[1].replace('|', ' ').upper()}: {_SEE_ACL}"
    # The error code is somewhere in the text, or redis-py has a class for it.
    found = re.search("|".join(_MEANINGS), str(error))
    if found is not None:
        return _MEANINGS[found.group()]
    for kind, code in (
        (exceptions.AuthenticationError, "WRONGPASS"),
        (exceptions.NoPermissionError, "NOPERM"),
        (exceptions.ReadOnlyError, "READONLY"),
        (exceptions.OutOfMemoryError, "OOM"),
        (exceptions.BusyLoadingError, "LOADING"),
        (exceptions.MovedError, "MOVED"),
        (exceptions.MasterDownError, "MASTERDOWN"),
        (exceptions.ClusterDownError, "CLUSTERDOWN"),
    ):
        if isinstance(error, kind):
            return _MEANINGS[code]
    return None


def _of_the_way_there(error: BaseException) -> str | None:
    match error:
        case ssl.SSLCertVerificationError(verify_message=why):
            return (
                f"its certificate is not accepted ({why.rstrip('.')}): give ?ssl_ca_certs=/path/ca.pem in the URL, "
                "and the host as the certificate has it"
            )
        case ssl.SSLEOFError() | ssl.SSLZeroReturnError():
            return None  # the connection was closed, as by a server without TLS
        case ssl.SSLError(reason=why):
            return (
                f"TLS with it fails ({(why or 'a file cannot be used').lower().replace('_', ' ')}): "
                "see ssl_ca_certs, ssl_certfile and ssl_keyfile in the URL"
            )
        case socket.gaierror():
            return "the name of its host cannot be resolved"
        case _:
            return None


def _is_any_of(chain: list[BaseException], *kinds: type[BaseException]) -> bool:
    return any(isinstance(one, kinds) for one in chain)


def _chain_of(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those that it was raised for. redis-py names some only in its text."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
