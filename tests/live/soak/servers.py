"""What servers do wrong without the middleware as well, and what a soak does about it.

Found by ``--bare``; it would end a soak, or hide what the middleware does wrong.
"""

import sys
import traceback


def contain_connections() -> None:
    """Have an error of one connection end that connection alone; on trio hypercorn's ends the whole process.

    Frames in the same packet as the handshake suffice (h11's LocalProtocolError), or a ping that is answered while
    the application sends (trio's BusyResourceError).
    """
    if "hypercorn.trio" not in sys.modules:
        return
    from hypercorn.trio.tcp_server import TCPServer

    run = TCPServer.run

    async def contained(self):
        try:
            await run(self)
        except Exception:
            traceback.print_exc()

    TCPServer.run = contained
