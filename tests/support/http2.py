"""WebSockets over HTTP/2 (RFC 8441): several sockets in one connection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import h2.config
import h2.connection
import h2.events
import h2.settings
import wsproto.connection
import wsproto.events
import wsproto.frame_protocol


class Http2:
    """A connection without TLS, to a server that is known to speak HTTP/2."""

    def __init__(self, server: Any) -> None:
        self.socket = server.connect()
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        self._h2.initiate_connection()
        self._sockets: dict[int | None, Socket] = {}
        self.is_over = False
        self.flush()
        self.read_until(lambda: self._h2.remote_settings.get(h2.settings.SettingCodes.ENABLE_CONNECT_PROTOCOL))

    def flush(self) -> None:
        try:
            self.socket.sendall(self._h2.data_to_send())
        except ConnectionError:
            self.is_over = True

    def read_until(self, enough: Callable[[], object]) -> None:
        """Read until ``enough()`` or the connection's end."""
        while not (enough() or self.is_over):
            try:
                received = self.socket.recv(65536)
            except ConnectionError:
                received = b""
            if not received:
                self.is_over = True
                return
            for event in self._h2.receive_data(received):
                if isinstance(event, h2.events.ConnectionTerminated):
                    self.is_over = True
                elif (opened := self._sockets.get(getattr(event, "stream_id", None))) is not None:
                    opened.see(event)
                    if isinstance(event, h2.events.DataReceived):
                        self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            self.flush()

    def open(self, path: str) -> Socket:
        stream_id = self._h2.get_next_available_stream_id()
        opened = self._sockets[stream_id] = Socket(self, stream_id)
        pseudo = {":method": "CONNECT", ":protocol": "websocket", ":scheme": "http", ":path": path}
        headers = {**pseudo, ":authority": "localhost", "sec-websocket-version": "13"}
        self._h2.send_headers(stream_id, [*headers.items()])
        self.flush()
        self.read_until(lambda: opened.status is not None)
        return opened

    def send(self, stream_id: int, data: bytes) -> None:
        self._h2.send_data(stream_id, data)
        self.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.socket.close()


class Socket:
    """One WebSocket in such a connection."""

    def __init__(self, connection: Http2, stream_id: int) -> None:
        self._connection, self._stream_id = connection, stream_id
        self._frames = wsproto.connection.Connection(wsproto.connection.ConnectionType.CLIENT)
        self.status: int | None = None
        self.messages: list[str] = []
        self.close: tuple[int, str] | None = None
        """The code and the reason of the close frame."""
        self.is_over = False

    def see(self, event: Any) -> None:
        if isinstance(event, h2.events.ResponseReceived):
            self.status = int(dict[Any, Any](event.headers)[":status"])
        elif isinstance(event, h2.events.DataReceived) and self.close is None:
            self._frames.receive_data(event.data)
            for frame in self._frames.events():
                if isinstance(frame, wsproto.events.TextMessage):
                    self.messages.append(frame.data)
                elif isinstance(frame, wsproto.events.CloseConnection):
                    self.close = frame.code, frame.reason or ""
        elif isinstance(event, (h2.events.StreamEnded, h2.events.StreamReset)):
            self.is_over = True

    def send(self, text: str) -> None:
        self._connection.send(self._stream_id, self._frames.send(wsproto.events.TextMessage(text)))

    def answer_close(self) -> None:
        assert self.close is not None
        code, reason = self.close
        self._connection.send(self._stream_id, self._frames.send(wsproto.events.CloseConnection(code, reason)))

    def read_until(self, enough: Callable[[], object]) -> None:
        """Read until ``enough()`` or the end of this socket."""
        self._connection.read_until(lambda: enough() or self.is_over)
