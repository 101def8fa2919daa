import chainlit


@chainlit.on_chat_start
async def start():
    await chainlit.Message("hello").send()
