"""An application that admits fifty sessions a second from its first second on."""

from asgi_closecodes import CloseCodeMiddleware, Guard, Settings
from asgi_closecodes.gates import HandshakeRate

from .apps import bare

app = CloseCodeMiddleware(bare, Guard(Settings(), gate=HandshakeRate(50, ramp=0)))
