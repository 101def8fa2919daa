"""The JavaScript module in Chromium, under a strict policy: the same rule as the Python client, against the same server."""

import itertools
import threading

import pytest
import websockets.sync.server

from tests.support.client_rule import ATTEMPTS_IN_TEN_SECONDS, CASES, IDS, REASONS, plain, seen
from tests.support.ports import free_port
from tests.support.servers import serve

HANDSHAKE_FAILED = "WebSocket connection to .* failed"
"""Chromium says so on the console."""

FOLLOW = """
async ({ url, options, until, random, speed }) => {
  const { ReconnectingWebSocket } = await import("/static/reconnecting-websocket.js");
  options.backoff = { ...options.backoff, now: () => speed * performance.now() };
  if (random !== null) options.backoff.random = () => random;
  let renewals = 0;
  const renew = RENEW;
  if (renew) options.renew = () => (renewals++, renew());
  const socket = new ReconnectingWebSocket(url, options);
  const events = [];
  const note = (...what) => events.push(what);
  return await new Promise((resolve) => {
    socket.addEventListener("connecting", () => note("connecting", socket.state));
    socket.addEventListener("open", () => note("open", socket.state, socket.protocol));
    socket.addEventListener("message", ({ data }) => note("message", data));
    socket.addEventListener("close", ({ code, reason, wasClean, retryIn, renewError }) => {
      if (renewError) note("renew failed", renewError.name, renewError.message);
      note("close", socket.state, code, reason, wasClean, retryIn);
      if (renew && retryIn === null) note("renewals", renewals);
      if (retryIn === null) resolve(events);
    });
    if (until !== null) setTimeout(() => socket.close(), until);
  });
}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    with serve("uvicorn-sansio", "tests.client.app:app", folder, forked=True) as running:
        yield running


@pytest.fixture
def key(_keys=itertools.count()):
    return f"browser{next(_keys)}"


@pytest.fixture
def follow(new_page, server):
    """Follow a socket in a page until it is closed for good; return its events."""

    def follow(path, *, until=None, random=None, speed=1, context=None, renew="null", **options):
        page = new_page(**context or {})
        page.goto(server.url.replace("ws", "http", 1) + "/page")
        told = {"url": path, "options": options, "until": until, "random": random, "speed": speed}
        return page.evaluate(FOLLOW.replace("RENEW", renew), told)  # a function cannot be an argument

    return follow


def closes(events):
    return [(code, retry_in) for kind, _, *rest in events if kind == "close" for code, _, _, retry_in in [rest]]


def test_rule_is_the_same(page, server):
    page.goto(server.url.replace("ws", "http", 1) + "/page")
    waits = page.evaluate(
        """
        async (cases) => {
          const { Backoff } = await import("/static/reconnecting-websocket.js");
          return cases.map(([{ renew, ...options }, story]) => {
            let now = 1000;
            const backoff = new Backoff({ ...options, random: () => 1, now: () => now });
            const waits = [];
            for (const [what, ...values] of story) {
              if (what === "close") waits.push(backoff.closed(...values, renew));
              if (what === "pass") now += 1000 * values[0];
              if (what === "opened") backoff.opened();
              if (what === "message") backoff.received();
            }
            return waits;
          });
        }
        """,
        [[milliseconds(options), [plain(step) for step in story]] for _, options, story, _ in CASES],
    )
    for name, seen_waits, (_, _, _, wanted) in zip(IDS, waits, CASES, strict=True):
        assert seen_waits == [None if wait is None else pytest.approx(wait * 1000) for wait in wanted], name


def milliseconds(options):
    names = {"cap": "cap", "max_hint": "maxHint"}
    options = {names.get(name, name): value * 1000 if name in names else value for name, value in options.items()}
    return {"maxCrashes" if name == "max_crashes" else name: value for name, value in options.items()}


@pytest.mark.parametrize("code", [1008, 3000, 3003])
def test_websocket_gives_up_after_a_code_that_says_so(follow, key, code):
    assert follow(f"/close/{key}/{code}?reason=no") == [
        ["connecting", "connecting"],
        ["open", "open", ""],
        ["close", "closed", code, "no", True, None],
    ]


def test_websocket_is_done_after_1000(follow, key):
    events = follow(f"/close/{key}/1000?messages=2")
    assert [event[0] for event in events] == ["connecting", "open", "message", "message", "close"]
    assert closes(events) == [(1000, None)]


def test_websocket_comes_back_until_then(follow, key):
    events = follow(f"/close/{key}/1012,3008,1001,1011,4011,1000?messages=1", random=0.01)
    # A message is a proof for all of them but the crashes.
    assert closes(events) == [(1012, 10), (3008, 10), (1001, 10), (1011, 20), (4011, 40), (1000, None)]


def test_five_seconds_of_being_open_are_a_proof(follow, key):
    events = follow(f"/close/{key}/1012,1012,1012,1000?seconds=0.2", random=0.01, speed=1000)
    assert closes(events) == [(1012, 10), (1012, 10), (1012, 10), (1000, None)]


def test_crashes_in_a_row_are_bounded(follow, key):
    events = follow(f"/close/{key}/1011?messages=1", backoff={"maxCrashes": 2})
    assert [code for code, _ in closes(events)] == [1011, 1011]


@pytest.mark.parametrize("kind", ["", "async "])
@pytest.mark.parametrize("changes", ['{ url: "URL?token=new" }', '{ protocols: ["new"] }'])
def test_renew_replaced_options_are_used_from_then_on(follow, key, kind, changes):
    url = f"/protect/{key}/,1012,1000"
    events = follow(url, renew=f"{kind}() => ({changes.replace('URL', url)})", random=0.01)
    assert closes(events) == [(3000, 0), (1012, 10), (1000, None)]
    assert events[-1] == ["renewals", 1]


@pytest.mark.parametrize("renew", ["() => undefined", "async () => null"])
def test_renew_second_3000_gives_up(follow, key, renew):
    events = follow(f"/close/{key}/3000?messages=1", renew=renew)
    assert closes(events) == [(3000, 0), (3000, None)]
    assert events[-1] == ["renewals", 1]


def test_renew_after_five_seconds_open_is_called_again(follow, key):
    events = follow(f"/close/{key}/3000,3000,1000?seconds=0.2", renew="() => {}", speed=1000)
    assert closes(events) == [(3000, 0), (3000, 0), (1000, None)]
    assert events[-1] == ["renewals", 2]


@pytest.mark.parametrize("code", [1008, 3003, 4001])
def test_renew_after_other_codes_is_not_called(follow, key, code):
    events = follow(f"/close/{key}/{code}", renew="() => {}")
    assert closes(events) == [(code, None)]
    assert events[-1] == ["renewals", 0]


@pytest.mark.parametrize(
    ("renew", "error"),
    [
        ("() => { throw new RangeError('no token') }", ["RangeError", "no token"]),
        ("async () => { throw new RangeError('no token') }", ["RangeError", "no token"]),
        ("() => 'token'", ["TypeError", "renew has to return { url, protocols } or nothing"]),
        ("async () => ({ token: 'new' })", ["TypeError", "renew has to return { url, protocols } or nothing"]),
        ("() => ({ url: 'ftp://nowhere' })", ["SyntaxError", None]),
    ],
)
def test_renew_that_fails_gives_up_with_its_error(follow, key, server, renew, error):
    path = f"/close/{key}/3000"
    *_, first, (what, *seen_error), second, renewals = follow(f"{path}?reason=no", renew=renew)
    assert first == ["close", "waiting", 3000, "no", True, 0]
    assert second == ["close", "closed", 3000, "no", True, None]
    assert (what, renewals) == ("renew failed", ["renewals", 1])
    assert seen_error == [error[0], error[1] or seen_error[1]]
    assert len(seen(server)["attempts"][path]) == 1


@pytest.mark.parametrize("outcome", ["resolve({})", "reject(new Error('too late'))"])
def test_renew_while_closed_connects_no_more(page, server, key, outcome):
    page.goto(server.url.replace("ws", "http", 1) + "/page")
    events = page.evaluate(
        """
        async (path) => {
          const { ReconnectingWebSocket } = await import("/static/reconnecting-websocket.js");
          const events = [];
          await new Promise((began) => {
            const renewed = new Promise((resolve, reject) => {
              const renew = () => (began(), renewed);
              const socket = new ReconnectingWebSocket(path, { renew });
              for (const kind of ["connecting", "open"]) socket.addEventListener(kind, () => events.push(kind));
              socket.addEventListener("close", ({ code, retryIn, renewError }) => events.push([code, retryIn, renewError]));
              globalThis.end = () => (socket.close(4000), OUTCOME);
            });
          });
          globalThis.end();
          await new Promise((resolve) => setTimeout(resolve, 100));
          return events;
        }
        """.replace("OUTCOME", outcome),
        f"/close/{key}/3000",
    )
    assert events == ["connecting", "open", [3000, 0, None], [4000, None, None]]


SOCKET = "options: known are protocols, binaryType, backoff, renew"
BACKOFF = "options of the back-off: known are cap, maxHint, maxCrashes, retry, random, now"


@pytest.mark.parametrize(
    ("made", "error"),
    [
        ('ReconnectingWebSocket("/echo/key", { renew: "new" })', "renew is not a function"),
        (
            'ReconnectingWebSocket(() => "/echo/key")',
            "url is a function: give a string or a URL; new ones come from renew",
        ),
        ('ReconnectingWebSocket("/echo/key", "v2")', f"String instead of an object of {SOCKET}"),
        ('ReconnectingWebSocket("/echo/key", ["v2"])', f"Array instead of an object of {SOCKET}"),
        ('ReconnectingWebSocket("/echo/key", null)', f"Null instead of an object of {SOCKET}"),
        ('ReconnectingWebSocket("/echo/key", undefined, {})', f"too many arguments, of {SOCKET}"),
        ('ReconnectingWebSocket("/echo/key", { maxRetries: 5 })', f"no option maxRetries, of {SOCKET}"),
        ('ReconnectingWebSocket("/echo/key", { toString: 1, debug: 1 })', f"no option toString, debug, of {SOCKET}"),
        ('ReconnectingWebSocket("/echo/key", { backoff: { max: 5 } })', f"no option max, of {BACKOFF}"),
        ('ReconnectingWebSocket("/echo/key", { backoff: null })', f"Null instead of an object of {BACKOFF}"),
        ("Backoff({ cap: '30s' })", "cap is 30s: use a number above 0"),
        ("Backoff({ maxHint: NaN })", "maxHint is NaN: use a number above 0"),
        ("Backoff({ maxCrashes: 0 })", "maxCrashes is 0: use a number above 0"),
    ],
)
def test_argument_that_is_unusable_is_named(page, server, made, error):
    assert thrown(page, server, f"new {made}") == ["TypeError", error]


def thrown(page, server, statement):
    """Return the error that a statement throws."""
    page.goto(server.url.replace("ws", "http", 1) + "/page")
    return page.evaluate(
        """
        async () => {
          const { Backoff, ReconnectingWebSocket } = await import("/static/reconnecting-websocket.js");
          try { STATEMENT } catch (error) { return [error.name, error.message] }
        }
        """.replace("STATEMENT", statement)
    )


def test_option_that_is_undefined_is_the_default(page, server):
    made = (
        'const socket = new ReconnectingWebSocket("/echo/key", { protocols: undefined, backoff: { cap: undefined } })'
    )
    assert thrown(
        page, server, f"{made}; throw RangeError(`${{socket.protocols.length}} ${{socket.backoff.cap}}`)"
    ) == [
        "RangeError",
        "0 60000",
    ]


@pytest.mark.parametrize("name", ["onopen", "onmessage", "onclose", "onerror"])
def test_handler_as_a_property_is_an_error(page, server, name):
    """It would never be called."""
    error = thrown(page, server, f'new ReconnectingWebSocket("/echo/key").{name} = () => {{}}')
    assert error == ["TypeError", f"there is no {name}: use addEventListener"]


def test_first_attempt_is_an_event_too(page, server, key):
    page.goto(server.url.replace("ws", "http", 1) + "/page")
    assert page.evaluate(
        """
        async (path) => {
          const { ReconnectingWebSocket } = await import("/static/reconnecting-websocket.js");
          const socket = new ReconnectingWebSocket(path);
          const before = socket.state;
          return await new Promise((resolve) => {
            socket.addEventListener("connecting", () => resolve([before, socket.state]));
            socket.addEventListener("open", () => resolve("too late"));
          });
        }
        """,
        f"/echo/{key}",
    ) == ["connecting", "connecting"]


def test_close_has_what_its_reason_says(page, server, key):
    """Without CloseEvent, too, which some versions of Node lack."""
    page.goto(server.url.replace("ws", "http", 1) + "/page")
    told = page.evaluate(
        """
        async ([path, reasons]) => {
          const { ReconnectingWebSocket } = await import("/static/reconnecting-websocket.js");
          delete globalThis.CloseEvent;
          return await Promise.all(reasons.map((reason) => new Promise((resolve) => {
            const socket = new ReconnectingWebSocket(path);
            socket.addEventListener("close", ({ ref, cause, retryAfter }) => resolve([ref, cause, retryAfter]));
            socket.addEventListener("open", () => socket.close(4000, reason));
          })));
        }
        """,
        [f"/echo/{key}", [reason for reason, *_ in REASONS]],
    )
    for (reason, ref, cause, hint), seen_values in zip(REASONS, told, strict=True):
        assert seen_values == [ref, cause, None if hint is None else pytest.approx(1000 * hint)], reason


def test_refusal_by_http_is_1006_to_a_browser(follow, key):
    events = follow(f"/refuse/{key}/503", until=300, context={"tolerated": HANDSHAKE_FAILED})
    assert ["open", "open", ""] not in events
    assert closes(events)[0][0] == 1006
    assert 0 <= closes(events)[0][1] <= 1000


def test_websocket_survives_a_restart_of_the_server(follow):
    def first_life(connection):
        connection.send("first")
        threading.Thread(target=restart).start()
        for _ in connection:  # until the server stops, which it says with 1001
            pass

    def second_life(connection):
        connection.send("second")
        connection.close(1000)

    def live(life):
        servers.append(server := websockets.sync.server.serve(life, *address))
        threading.Thread(target=server.serve_forever).start()

    def restart():
        servers[0].shutdown()
        pause.wait(1.5)  # so that an attempt or two find nobody there
        live(second_life)

    servers = []
    pause = threading.Event()
    address = "127.0.0.1", free_port()
    live(first_life)
    try:
        context = {"tolerated": HANDSHAKE_FAILED, "bypass_csp": True}
        events = follow(f"ws://127.0.0.1:{address[1]}/", context=context, backoff={"cap": 300})
    finally:
        for server in servers:
            server.shutdown()
    assert [event[1] for event in events if event[0] == "message"] == ["first", "second"]
    codes = [code for code, _ in closes(events)]
    assert (codes[0], {*codes[1:-1]}, codes[-1]) == (1001, {1006}, 1000)


def test_close_is_for_good_whatever_it_is_doing(new_page, server, key):
    page = new_page(tolerated=HANDSHAKE_FAILED)
    page.goto(server.url.replace("ws", "http", 1) + "/page")
    ends = page.evaluate(
        """
        async (key) => {
          const { ReconnectingWebSocket } = await import("/static/reconnecting-websocket.js");
          const until = (socket, type) => new Promise((resolve) => socket.addEventListener(type, resolve));
          const end = async (path, type) => {
            const socket = new ReconnectingWebSocket(path, { backoff: { cap: 20 } });
            const events = [];
            if (type) await until(socket, type);
            for (const kind of ["connecting", "open", "close"]) socket.addEventListener(kind, () => events.push(kind));
            const closed = until(socket, "close");
            socket.close(4000, "enough");
            socket.close();
            const { code, reason, retryIn } = await closed;
            await new Promise((resolve) => setTimeout(resolve, 100));
            socket.close();
            return [events, code, reason, retryIn, socket.state];
          };
          return {
            connecting: await end(`/echo/${key}`, null),
            open: await end(`/echo/${key}`, "open"),
            waiting: await end(`/close/${key}/1012`, "close"),
          };
        }
        """,
        key,
    )
    assert ends == {
        "connecting": [["close"], 1006, "", None, "closed"],
        "open": [["close"], 4000, "enough", None, "closed"],
        "waiting": [["close"], 4000, "enough", None, "closed"],
    }


def test_websocket_sends_and_receives_as_a_websocket(page, server, key):
    page.goto(server.url.replace("ws", "http", 1) + "/page")
    received = page.evaluate(
        """
        async (key) => {
          const { ReconnectingWebSocket } = await import("/static/reconnecting-websocket.js");
          const socket = new ReconnectingWebSocket(`/echo/${key}`, { protocols: ["a", "b"], binaryType: "arraybuffer" });
          const next = (type) => new Promise((resolve) => socket.addEventListener(type, resolve, { once: true }));
          const seen = [];
          try { socket.send("too early") } catch (error) { seen.push(error.name, error.message) }
          await next("open");
          seen.push(socket.protocol);
          for (const data of ["text", new Uint8Array([1, 2])]) {
            socket.send(data);
            const answer = (await next("message")).data;
            seen.push(answer instanceof ArrayBuffer ? [...new Uint8Array(answer)] : answer);
          }
          socket.close();
          return seen;
        }
        """,
        key,
    )
    assert received == ["InvalidStateError", "not sent, since the socket is connecting", "b", "text", [1, 2]]


def test_url_that_is_none_is_an_error_at_once(page, server):
    page.goto(server.url.replace("ws", "http", 1) + "/page")
    name = page.evaluate(
        """
        async () => {
          const { ReconnectingWebSocket } = await import("/static/reconnecting-websocket.js");
          try { new ReconnectingWebSocket("ftp://nowhere") } catch (error) { return error.name }
        }
        """
    )
    assert name == "SyntaxError"


def test_hint_is_honoured_within_a_tenth(follow, key, server):
    path = f"/close/{key}/1013"
    events = follow(f"{path}?reason=try again later; retry_after=1.0", until=3600, backoff={"cap": 1})
    assert {wait for _, wait in closes(events)[:-1]} == {1000}
    times = seen(server)["attempts"][path]
    waits = [after - before for before, after in itertools.pairwise(times)]
    assert len(waits) >= 2
    assert 0.99 < min(waits) < 1.1  # Chromium's clock is coarse


def test_full_server_gets_few_attempts(follow, key, server):
    path = f"/close/{key}/1013"
    follow(path, until=10_000)
    assert 2 <= len(seen(server)["attempts"][path]) <= ATTEMPTS_IN_TEN_SECONDS
