"""The chat room, on live servers."""

import contextlib
import json

import httpx
import pytest
import websockets.exceptions
import websockets.sync.client

from tests.support.peers import wait_until
from tests.support.servers import serve


@pytest.fixture(scope="module", params=["uvicorn-sansio", "granian"])
def chat(request, tmp_path_factory):
    with serve(request.param, "demo_app.chat:app", tmp_path_factory.mktemp("chat"), forked=True) as running:
        yield running


@pytest.fixture
def people():
    with contextlib.ExitStack() as stack:
        yield stack


class Member:
    """Somebody's socket in a room."""

    def __init__(self, chat, name, room="hall", who=None):
        who = signed_in(chat, name) if who is None else who
        self._connecting = websockets.sync.client.connect(
            f"{chat.url}/rooms/{room}", additional_headers={"Cookie": f"who={who}"}, proxy=None, close_timeout=1
        )

    def say(self, text):
        self.socket.send(text)

    def hears(self):
        message = json.loads(self.socket.recv(timeout=10))
        return f"{message['name']}: {message['text']}"

    def end(self):
        """The close, as soon as it comes."""
        with pytest.raises(websockets.exceptions.ConnectionClosed) as closed:
            while True:
                self.socket.recv(timeout=10)
        return f"{closed.value.rcvd.code} {closed.value.rcvd.reason}"

    def __enter__(self):
        self.socket = self._connecting.__enter__()
        return self

    def __exit__(self, *error):
        self._connecting.__exit__(*error)


def end(chat, name, room="hall", **options):
    """How the session of somebody who listens ends."""
    with Member(chat, name, room, **options) as member:
        return member.end()


def signed_in(chat, name):
    answer = httpx.post(f"{chat.url.replace('ws', 'http', 1)}/sign-in", json={"name": name}, trust_env=False)
    assert answer.status_code == 204
    assert "httponly" in answer.headers["set-cookie"].lower()
    assert "samesite=strict" in answer.headers["set-cookie"].lower()
    return answer.cookies["who"]


def test_chat_message_reaches_the_room_and_later_visitors(chat, people):
    alice, bob = (people.enter_context(Member(chat, name, "first")) for name in ("alice", "bob"))
    elsewhere = people.enter_context(Member(chat, "carol", "second"))
    alice.say("hello")
    assert alice.hears() == bob.hears() == "alice: hello"
    bob.say("hi")
    assert alice.hears() == bob.hears() == "bob: hi"
    late = people.enter_context(Member(chat, "dave", "first"))
    assert [late.hears(), late.hears()] == ["alice: hello", "bob: hi"]
    elsewhere.say("alone")
    assert elsewhere.hears() == "carol: alone"


def test_person_has_two_sessions_at_most_in_whatever_room(chat, people):
    first = contextlib.ExitStack()
    first.enter_context(Member(chat, "erin", "first"))
    people.enter_context(Member(chat, "erin", "second"))
    refused = end(chat, "erin")
    assert refused.startswith("1013 try again later; retry_after=")
    assert refused.endswith("; cause=client")
    other = people.enter_context(Member(chat, "frank"))
    other.say("not me")
    assert other.hears() == "frank: not me"
    [record, *_] = chat.wait_for_records(1, event__name="closecodes.session.refused")
    assert (record["closecodes.gate.name"], record["closecodes.gate.limit"]) == ("max_sessions_per_key", 2)

    first.close()  # a place is free again as soon as its session is over

    def comes_in():
        with contextlib.suppress(websockets.exceptions.ConnectionClosed):
            member = people.enter_context(Member(chat, "erin", "third"))
            member.say("back")
            return member.hears() == "erin: back"

    assert wait_until(comes_in)


@pytest.mark.parametrize("who", ["", "mallory", "mallory.0123", "mallory.\xff", "."])
def test_visitor_not_signed_in_is_told_so(chat, who):
    assert end(chat, "mallory", who=who) == "1008 sign in first"


@pytest.mark.parametrize("name", ["", "two words", "x" * 21, "semi;colon", "zoë"])
def test_name_is_a_word(chat, name):
    answer = httpx.post(f"{chat.url.replace('ws', 'http', 1)}/sign-in", json={"name": name}, trust_env=False)
    assert answer.status_code == 422


def test_chat_without_a_database_connection_closes_with_1013(chat, people):
    """A database without a free connection is a refusal, and no error."""
    slow = [people.enter_context(Member(chat, name, "slow")) for name in ("grace", "heidi")]
    third = people.enter_context(Member(chat, "ivan", "slow"))
    for member in slow:
        member.say("/slow")
    with contextlib.suppress(websockets.exceptions.ConnectionClosed):
        while True:  # until both queries have come to the database
            third.say("and me?")
            third.hears()
    busy = third.end()
    assert busy.startswith("1013 the database is busy; retry_after=")
    assert busy.endswith("; cause=database")
    newcomer = end(chat, "judy", "slow")
    assert newcomer.endswith("; cause=database")
    for member in slow:
        member.say("over")
        while not member.hears().endswith(": over"):
            pass
    assert not chat.records(level="error")


def test_page_is_there(chat):
    answer = httpx.get(chat.url.replace("ws", "http", 1), trust_env=False)
    assert "A chat room on FastAPI" in answer.text
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
