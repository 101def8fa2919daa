"""The client and the route that an ASGI scope names."""

from __future__ import annotations

from starlette.types import Scope

from asgi_closecodes.addresses import canonical_address


def client_of(scope: Scope) -> tuple[str, int] | None:
    """Return the peer's address and port, None on a unix socket; granian has ports as strings, and ("", "0") there.

    A port, brackets or quotes that a proxy's header brought along with the address are taken off.
    """
    client = scope.get("client")
    if not isinstance(client, (tuple, list)) or not client or not client[0]:
        return None
    port = str(client[1]) if len(client) > 1 else ""
    return canonical_address(str(client[0])), int(port) if port.isdecimal() and len(port) <= 5 else 0


def route_of(scope: Scope, servers_scope: Scope) -> str | None:
    """Return the template of the route that matched, or None if it is not known for sure.

    A mount leaves its actual path in ``root_path``: that is its template only if it has no parameters.
    """
    route = scope.get("route")
    path = getattr(route, "path_format", None)
    if not isinstance(path, str) or hasattr(route, "routes"):  # a mount's own is "/{path}", whatever it leads to
        return None
    # Inside of a mount of Starlette's root_path holds its path too.
    root_path: str = servers_scope.get("app_root_path", servers_scope.get("root_path", ""))
    mount = scope.get("root_path", "").removeprefix(root_path)
    of_route = getattr(route, "param_convertors", {})
    if mount and any(name not in of_route for name in scope.get("path_params", ())):
        return None
    return f"{mount}{path}"
