"""The client and the route that an ASGI scope names."""

from __future__ import annotations

import re

from starlette.types import Scope

from asgi_closecodes.addresses import canonical_address

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 section 5.6.2


def client_of(scope: Scope) -> tuple[str, int] | None:
    """Return the peer's address and port; None on a unix socket. granian has ports as strings, and ("", "0") there.

    A port, brackets or quotes in the address, as from a proxy's header, are removed.
    """
    client = scope.get("client")
    if not isinstance(client, (tuple, list)) or not client or not client[0]:
        return None
    port = str(client[1]) if len(client) > 1 else ""
    return canonical_address(str(client[0])), int(port) if port.isdecimal() and len(port) <= 5 else 0


def can_deny(scope: Scope) -> bool:
    """Whether the server can answer the handshake by an HTTP response."""
    return "websocket.http.response" in (scope.get("extensions") or ())


def is_served(scope: Scope) -> bool:
    """Whether a server made ``scope``: a server names the version of ASGI there.

    Test clients that call the application themselves (Starlette's, httpx-ws's, asgiref's and Channels') do not.
    """
    return "asgi" in scope


def offered_subprotocols(scope: Scope) -> list[str]:
    """Return the subprotocols that the client offers, without those that are no valid tokens."""
    offered = scope.get("subprotocols")
    return [name for name in offered if _TOKEN.fullmatch(name)] if offered else []


def never_tells_codes(scope: Scope) -> bool:
    """Whether 1006 may stand for any code: hypercorn reports it for every peer that leaves.

    hypercorn is recognised by the ASGI version in the server's scope, which no middleware changes. granian names the
    same one, but never reports 1006.
    """
    return (scope.get("asgi") or {}).get("spec_version") == "2.3"


def route_of(scope: Scope, servers_scope: Scope) -> str | None:
    """Return the template of the route that matched, or None if it is not known for sure.

    Starlette leaves its route in the scope; Litestar and the integration of Quart leave the template. A mount leaves
    its actual path in ``root_path``, which is its template only without parameters.
    """
    route = scope.get("route")
    if route is None and "path_template" in scope:
        return _path_template(scope, servers_scope)
    path = getattr(route, "path_format", None)
    if not isinstance(path, str) or hasattr(route, "routes"):  # a mount's own path is "/{path}", whatever it leads to
        return None
    # Within one of Starlette's mounts, root_path includes the mount's path.
    root_path: str = servers_scope.get("app_root_path", servers_scope.get("root_path", ""))
    mount = scope.get("root_path", "").removeprefix(root_path)
    of_route = getattr(route, "param_convertors", {})
    if mount and any(name not in of_route for name in scope.get("path_params", ())):
        return None
    return f"{mount}{path}"


def _path_template(scope: Scope, servers_scope: Scope) -> str | None:
    template = scope["path_template"]
    is_mounted = scope.get("root_path", "") != servers_scope.get("root_path", "")
    # A mount of Litestar's has the template "/", whatever it leads to.
    leads_elsewhere = getattr(scope.get("route_handler"), "is_mount", False)
    return template if isinstance(template, str) and not (is_mounted or leads_elsewhere) else None
