"""Framework that catches its handlers' exceptions and closes with its own code, as an installed package."""

import sysconfig

SOURCE = """
async def run(handler, send, close):
    try:
        await handler()
    except Exception as error:
        await close(send, error)

async def close(send, error):
    await send({"type": "websocket.close", "code": 4500, "reason": "of the framework"})

async def wrap_and_run(handler, send, close):
    async def wrapped():
        try:
            await handler()
        except Exception as error:
            raise RuntimeError("of the framework") from error
    await run(wrapped, send, close)

async def close_later(handler, send, close):
    try:
        await handler()
    except Exception as error:
        pass
    await close(send, None)
"""

installed = {"__name__": "framework"}
exec(compile(SOURCE, f"{sysconfig.get_paths()['purelib']}/framework.py", "exec"), installed)
