import chainlit

from asgi_closecodes.integrations.socketio import current_session


@chainlit.on_chat_start
async def start():
    await chainlit.Message("hello").send()


@chainlit.on_message
async def answer(message):
    await current_session().fail(ValueError("secret"))
