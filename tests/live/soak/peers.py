"""Hostile peers and well-behaved ones, over sockets written by hand.

Each is a function of a server, a path and a random generator; it returns when it has done its worst. What it is
answered is of interest for the well-behaved alone.
"""

import contextlib
import os
import socket
import threading
import time
import zlib

from tests.support.peers import Raw, handshake

from .handlers import SECRET

PEERS = {}
"""The hostile ones, by name."""

TEXT, BINARY, CLOSE, PING = 1, 2, 8, 9
HUGE = 17_000_000
"""Bytes; more than the 16 MiB that most servers take."""

_huge_ones = threading.BoundedSemaphore(1)
"""One message of that size at a time: what many of them take is the server's affair."""


class SecretTold(Exception):
    """A peer was told an exception's text."""


def hostile(function):
    PEERS[function.__name__] = function
    return function


def is_open(peer):
    """Wait for the answer; whether it is 101."""
    return peer.answer() == 101


def frame(opcode, payload=b"", *, first=0x80, mask=b"\0\0\0\0"):
    """Return a frame; ``first`` has the bits beside the opcode."""
    size, bit = len(payload), 0x80 if mask else 0
    if size < 126:
        length = bytes([bit | size])
    elif size < 65536:
        length = bytes([bit | 126]) + size.to_bytes(2)
    else:
        length = bytes([bit | 127]) + size.to_bytes(8)
    return bytes([first | opcode]) + length + mask + payload


def listen(peer, seconds):
    """Read whatever comes for so long."""
    end = time.monotonic() + seconds
    heard = b""
    while (left := end - time.monotonic()) > 0:
        peer.socket.settimeout(left)
        try:
            data = peer.socket.recv(65536)
        except TimeoutError:
            return
        if not data:
            return
        heard = heard[-len(SECRET) :] + data
        if SECRET.encode() in heard:
            raise SecretTold(heard[-200:])


def send(peer, data, seconds=5):
    """Send as long as the server reads."""
    peer.socket.settimeout(seconds)
    peer.socket.sendall(data)


# Hostile ones that talk badly, or not at all


@hostile
def mute(server, path, random):
    with Raw(server, path):
        time.sleep(random.uniform(0.5, 4))


@hostile
def connect_and_vanish(server, path, random):
    server.connect().close()


@hostile
def reset(server, path, random):
    peer = Raw(server, path)
    if random.random() < 0.7:
        peer.answer()
        send(peer, frame(TEXT, b"hello") * random.randrange(3))
    time.sleep(random.choice([0, 0, random.uniform(0, 1)]))
    peer.vanish()


@hostile
def half_open(server, path, random):
    with Raw(server, path) as peer:
        if random.random() < 0.8:
            peer.answer()
        peer.socket.shutdown(socket.SHUT_WR)
        listen(peer, random.uniform(0, 3))


@hostile
def stop_in_the_handshake(server, path, random):
    with server.connect() as plain:
        request = handshake(path)
        plain.sendall(request[: random.randrange(1, len(request))])
        time.sleep(random.uniform(0, 3))


@hostile
def one_byte_at_a_time(server, path, random):
    with Raw(server, path) as peer:
        for byte in frame(TEXT, b"slowly"):
            send(peer, bytes([byte]))
            time.sleep(0.05)
        listen(peer, 1)


@hostile
def read_slowly(server, path, random):
    with server.connect() as plain:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        plain.sendall(handshake(path) + frame(TEXT, b"x" * 50_000) * 5)
        for _ in range(random.randrange(60)):
            if not plain.recv(256):
                break
            time.sleep(0.05)


@hostile
def bad_handshake(server, path, random):
    good = handshake(path)
    line, _, headers = good.partition(b"\r\n")
    bad = random.choice(
        [
            good.replace(b"Sec-WebSocket-Key", b"X-Key"),
            good.replace(b"Version: 13", b"Version: 7"),
            good.replace(b"GET", b"POST"),
            good.replace(b"Host: localhost\r\n", b""),
            good.replace(b"HTTP/1.1", b"HTTP/1.0"),
            good.replace(b"HTTP/1.1", b"HTTP/9.9"),
            good.replace(b"Upgrade: websocket", b"Upgrade: h2c"),
            good.replace(b"Upgrade: websocket", b"Upgrade: websocket\r\nX-Long: " + b"x" * 100_000),
            line + b"\r\n" + b"X: y\r\n" * 500 + headers,
            good.replace(b"\r\n\r\n", b"\r\nContent-Length: 5\r\n\r\nhello"),
            good.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
            good.replace(b"\r\n\r\n", b"\r\nSec-WebSocket-Protocol: \xff, ,\r\n\r\n"),
            good.replace(
                b"\r\n\r\n", b"\r\nSec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=99\r\n\r\n"
            ),
            good.replace(b"\r\n", b"\n"),
            os.urandom(300),
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + os.urandom(200),  # TLS
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + os.urandom(50),
        ]
    )
    with server.connect() as plain:
        plain.sendall(bad)
        plain.settimeout(random.uniform(0, 1.5))
        plain.recv(65536)


@hostile
def path_of_bytes(server, path, random):
    path = random.choice(
        [b"/\xff\xfe", b"/%ff%00", b"/%ed%a0%80", b"/a%0d%0ab", b"//x/../%2e%2e", b"*", b"http://[::1/"]
    )
    with Raw(server, path) as peer:
        listen(peer, random.uniform(0, 1))


@hostile
def pipelined_junk(server, path, random):
    junk = random.choice([handshake(path), b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 3, os.urandom(500)])
    with Raw(server, path, behind=junk) as peer:
        if random.random() < 0.5:
            listen(peer, random.uniform(0, 2))
        elif random.random() < 0.5:
            peer.vanish()


@hostile
def data_before_accept(server, path, random):
    with Raw(server, path, behind=frame(TEXT, b"already") * random.randrange(1, 50)) as peer:
        if random.random() < 0.3:
            peer.vanish()
        else:
            listen(peer, random.uniform(0, 2))


@hostile
def close_before_accept(server, path, random):
    with Raw(server, path, behind=frame(CLOSE, b"\x03\xe8")) as peer:
        listen(peer, random.uniform(0, 1))


# Hostile ones once they are let in


def once_open(junk):
    """Register a peer that sends what ``junk(random)`` yields, and stays a while or not."""

    def run(server, path, random):
        with Raw(server, path, extra=getattr(junk, "extra", b"")) as peer:
            if not is_open(peer):
                return
            for data in junk(random):
                send(peer, data)
            listen(peer, random.uniform(0, 2))

    run.__name__ = junk.__name__
    hostile(run)
    return junk


@once_open
def text_instead_of_frames(random):
    yield random.choice([b"hello\r\n" * 20, b'{"type": "hello"}\n', b"\r\n", b"\0" * 100])


@once_open
def length_of_2_62(random):
    yield bytes([0x82, 0xFF]) + (1 << random.choice([40, 62, 63])).to_bytes(8) + b"\0\0\0\0" + b"x" * 10_000


@once_open
def ping_flood(random):
    for _ in range(random.randrange(40)):
        yield frame(PING, b"p" * 125) * 100


@once_open
def endless_fragments(random):
    yield frame(TEXT, b"a", first=0)
    for _ in range(random.randrange(60)):
        yield frame(0, b"b" * random.randrange(3), first=0) * 100


@once_open
def invalid_utf8(random):
    yield frame(TEXT, random.choice([b"\xff\xfe", b"\xc0\xaf", b"\xed\xa0\x80", b"ok \xe2\x82"]))


@once_open
def bad_frames(random):
    yield random.choice(
        [
            frame(TEXT, b"unmasked", mask=b""),
            frame(TEXT, b"reserved bits", first=0xF0),
            frame(3, b"reserved opcode"),
            frame(0xB, b"reserved control"),
            frame(PING, b"x" * 126),
            frame(PING, b"in parts", first=0),
            frame(0, b"continues nothing"),
            frame(TEXT, b"one", first=0) + frame(TEXT, b"two"),
            frame(CLOSE, b"\x03"),
            frame(CLOSE, b"\x03\xed"),
            frame(CLOSE, b"\x00\x00"),
            frame(CLOSE, b"\x03\xe8\xff\xfe"),
            frame(CLOSE, b"\x03\xe8" + b"x" * 200),
            b"\x82\xfe\x00\x05\0\0\0\0short",  # a length that is longer than it has to be
            b"\x81",
        ]
    )


@once_open
def many_small_messages(random):
    yield frame(TEXT, b"again") * random.randrange(2000)


def _deflated(size):
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    blank = b"\0" * 1_000_000
    parts = [deflate.compress(blank) for _ in range(size // len(blank))]
    return b"".join(parts) + deflate.flush(zlib.Z_SYNC_FLUSH)[:-4]


@once_open
def deflate_bomb(random):
    with _huge_ones:
        yield frame(BINARY, _deflated(random.choice([1, 17, 40]) * 1_000_000), first=0xC0)


deflate_bomb.extra = b"Sec-WebSocket-Extensions: permessage-deflate\r\n"


@once_open
def huge_message(random):
    with _huge_ones:
        yield frame(random.choice([TEXT, BINARY]), b"x" * HUGE)


@hostile
def close_and_go(server, path, random):
    with Raw(server, path) as peer:
        if is_open(peer):
            send(peer, frame(TEXT, b"bye") * random.randrange(3) + frame(CLOSE, b"\x03\xe8"))


@hostile
def close_and_stay(server, path, random):
    with Raw(server, path) as peer:
        if is_open(peer):
            send(peer, frame(CLOSE, b"\x03\xe9going") + frame(TEXT, b"but talking") * random.randrange(3))
            time.sleep(random.uniform(0, 3))


@hostile
def never_answer_the_close(server, path, random):
    with Raw(server, path) as peer:
        if is_open(peer):
            send(peer, frame(TEXT, b"hello"))
            listen(peer, random.uniform(0, 3))


# Those that behave


def behave(server, path, random):
    """Talk for a while, answer a close, and leave politely; return how it ended."""
    extra = random.choice([b"", b"Origin: http://localhost\r\n", b"Sec-WebSocket-Protocol: chat\r\n"])
    with Raw(server, path, extra=extra) as peer:
        try:
            if (status := peer.answer()) != 101:
                return f"HTTP {status}"
            for _ in range(random.randrange(1, 6)):
                _say(peer, frame(TEXT, b'{"say": "hello"}'))
                if (code := _listen_for_close(peer, random.uniform(0, 0.4))) is not None:
                    _say(peer, frame(CLOSE, code))
                    return str(int.from_bytes(code)) if code else "1005"
            _say(peer, frame(CLOSE, b"\x03\xe8"))
            return "no answer to its close" if _listen_for_close(peer, 10) is None else "left"
        except TimeoutError:
            return "no answer"
        except OSError as error:
            return f"cut off by {type(error).__name__}"


def _say(peer, data):
    with contextlib.suppress(ConnectionError):  # the server's last word may have come before
        send(peer, data)


def _listen_for_close(peer, seconds):
    """Return the code in the close frame that comes within so many seconds, as it is on the wire."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        peer.socket.settimeout(left)
        try:
            opcode, payload = peer.frame()
        except TimeoutError:
            return None
        if SECRET.encode() in payload:
            raise SecretTold(payload)
        if opcode == CLOSE:
            return payload[:2]
        if opcode == PING:
            _say(peer, frame(10, payload))
    return None
