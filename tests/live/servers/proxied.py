"""One session a client address, which a proxy's header names. The recipes are those of asgi_closecodes/README.md."""

from granian.utils.proxies import wrap_asgi_with_proxy_headers
from hypercorn.middleware import ProxyFixMiddleware

from asgi_closecodes import CloseCodeMiddleware, Guard, Settings
from asgi_closecodes.logs import configure_logging

from .apps import bare

configure_logging(format="json")

app = CloseCodeMiddleware(bare, Guard(Settings(max_sessions_per_client=1, reject_with="close")))
by_http = CloseCodeMiddleware(bare, Guard(Settings(max_sessions=0, reject_with="http")))


async def plain(scope, receive, send):
    chosen = by_http if scope.get("path") == "/by-http" else app
    await chosen(scope, receive, send)


hypercorn = ProxyFixMiddleware(plain, trusted_hops=1)
granian = wrap_asgi_with_proxy_headers(plain, trusted_hosts="127.0.0.1")
