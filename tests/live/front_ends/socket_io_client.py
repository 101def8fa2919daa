"""Connect once with python-socketio's client, by WebSocket only; end when it is in."""

import sys

import socketio

client = socketio.Client()
client.connect(sys.argv[1], transports=["websocket"], retry=True)
client.disconnect()
