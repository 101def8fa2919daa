"""Which paths stay readable in a log, and which tokens go, whatever they are a part of."""

import base64
import itertools
import random
import string

import pytest

from asgi_closecodes.logs.redaction import safe_path
from asgi_closecodes.logs.tokens import masked_path

READABLE = (
    "/",
    "/rooms/12345",
    "/articles/some-long-article-title-of-2026",
    "/blog/how-to-build-a-websocket-server-in-python-3-11",
    "/2026/11/24/what-changed",
    "/events/2026-11-24T18:30:00Z",
    "/events/2026-11-24T18:30:00.123456+02:00",
    "/events/20261124T183000Z",
    "/releases/v1.2.3-rc.1+build.5",
    "/orders/12345678901234567890",
    "/channels/1189234567890123456",
    "/internationalization",
    "/Donaudampfschifffahrtsgesellschaft",
    "/api/v2beta1/chat",
    "/de-DE/preise",
    "/zh-Hant-TW/home",
    "/products/SKU-12345",
    "/products/WH-1000XM4-black",
    "/products/ISBN-978-3-16-148410-0",
    "/users/@alice",
    "/users/alice@example.com",
    "/CamelCaseWords/GetUserProfileById",
    "/WebSocketHTTPHandlerFactory",
    "/snake_case_words_are_fine_too",
    "/SCREAMING_SNAKE_CASE_NAME",
    "/files/report.final.2026.pdf",
    "/files/holiday%20photos%20(1).jpg",
    "/assets/app.3f2a9c1b.js",
    "/assets/jquery-3.7.1.min.js",
    "/räume/größe/übersicht",
    "/комнаты/общая",
    "/日本語/チャット",
    "/rooms/🎉🎊",
    "/caf%C3%A9",
    "/rooms;color=red;size=10",
    "/rooms/lobby;v=1.2",
    "/zoo;monkey=koko;compass=n;TURKEY=1",
    "/c++/a+b/Results",
    "/get_glyphs_with_font",
    "/token-ring/libcryptsetup-token-systemd-pkcs11.so",
    "/search/java+spring/Page2",
    "/video/1080p/h264/aac",
    "/music/s01e05",
    "/watch/dQw4w9WgXcQ",
    "/products/echo-dot-B07XJ8C8F5",
    "/lib/libSvtAv1Enc.so.1.4.1",
    "/man/XftDrawGlyphs.3.gz",
    "/a+b/c~d/e!f",
    "/sk-learn/tutorials",
    "/basic training/day 1",
    "/token/refresh",
    "/sessions/12345",
    "/auth/oauth2/callback",
    "/reset-password",
    "/keys/v2",
    "/.well-known/openid-configuration",
    "/map/52.5200,13.4050",
    "/lat=52.52/lng=13.405",
    "/iphone15-vs-galaxy-s24-ultra",
    "/covid19-und-die-folgen",
    "/ip/192.168.100.200",
    "/ip/2001:db8::1",
    "/mac/3c:22:fb:1a:2b:3c",
    "/socket.io/",
    "/phone/+491701234567",
    "/errors/D221TSAP80Y3",
    "/commits/3f2a9c1",
    "/python3.13/site-packages",
    "/x86_64-unknown-linux-gnu",
    "/rooms/{room_id}",
    "/ns16550a-uart-driver",
    "/base64/encode",
    "/sha256/verify",
    "/utf-8/latin-1",
    "/kubernetes-k8s-i18n-l10n",
    "/Straßenbahnhaltestelle-Nr-7",
    "/questions/how-do-i-unsubscribe-from-a-channel",
    "/tenants/acme-corp/rooms/general-2",
    "/zażółć-gęślą-jaźń",
    "/wzrost-dziewczyny",
    "/a%2Fb%20c",
)

TOKENS = (
    "0123456789abcdef",
    "550e8400-e29b-41d4-a716-446655440000",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U",
    "AKIAIOSFODNN7EXAMPLE",
    "AKIAIOSFODNN7EXAMPLEwJalrXUtnFEMI",
    "c2VjcmV0IHRva2VuIGZvciB0ZXN0cw==",
    "lobby;jsessionid=1A2B3C",
    "lobby;jsessionid=1A530637289A03B07199A44E8D531427",
    "lobby;token=hunter2",
    "lobby;AccountKey=abc",
    "lobby;userPass=hunter",
    "bot123456:AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw",
    "Basic dXNlcjpwYXNz",
    "Basic dXNlcjpwYXNzd29yZA==",
    "Bearer hunter2abc",
    "@c2VjcmV0LXRva2VuLTEyMw",
    "Zm9vYmFyYmF6cXV4MTIz!",
    "sk-proj-abc123-def456-ghi789",
    "sk-proj-abc123",
    "sk_live_4eC39HqLyjWDarjtT1zdp7dc",
    "sk-ant-api03-xYz12AbC-defGHI_456",
    "ghp_16C7e42F292c6912E7710c838347Ae178B4a",
    "github_pat_11ABCDEFG0abcdefghij_KLMNOP",
    "xoxb-123456789012-1234567890123-AbCdEfGhIjKlMnOpQrStUvWx",
    "glpat-xYz12AbCdEfGh34IjKlM",
    "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",
    "ya29.a0AfH6SMBx3Jk2LmN4oPq",
    "EAACEdEose0cBA1B2C3d4",
    "AIzaSyDaGmWKa4JsXZ-HjGw7ISLn_3namBGewQe",
    "hf_abcDEFghiJKLmnoPQRstuVWXyz",
    "npm_abcdefghij0123456789ABCDEFGHIJKLMN",
    "MTk4NjIyNDgzNDcxOTI1MjQ4.Cl2FMQ.ZnCjm1XVW7vRze4b7Cq4se7kKWs",
    "k3Jx9QzW2mN8pR5t",
    "q7w8e9r1t2y3u4i5",
    "JBSWY3DPEHPK3PXP",
    "qwxzjkvbnmplkjhg",
    "deadbeefcafebabe",
    "a3f5c7e9-b1d2f4a6",
    "01ARZ3NDEKTSV4RRFFQ69G5FAV",
    "507f1f77bcf86cd799439011",
    "V1StGXR8_Z5jdHi6B-myT",
    "VK7JG-NPHTM-C97JM-9MPGT-3V66T",
    "user:hunter2@host",
    "https:hunter2pass@host",
    "access_token=abc",
    "room-k3Jx9QzW2mN8pR5t",
    "k3Jx9QzW2mN8pR5t.json",
    "VP-sHMD7RwQwZYnq",
    "_T_rPJJQt5dKm1KL",
    "2jTieRmH-xSc_6MF",
    "OgTTkiqtX0Tt-PJI",
    "dXNlcjpwYXNzd29yZA%3D%3D",
    "dXNlcjpw%2FYXNzd29yZA%3D%3D",
    "dXNlcjpw%252FYXNzd29yZA%253D%253D",
    "%65yJhbGciOiJIUzI1NiJ9%2Ee30",
    "ab+Cd/Ef12/Gh34Ij==",
    "ab%2Bcd%2FEf12Gh34Ij%3D",
    "ab+cd/Ef12Gh34Ij=",
    "x'k3Jx9QzW2mN8pR5t'",
    "{k3Jx9QzW2mN8pR5t}",
    "k3Jx9QzW2mN8pR5t,k3Jx9QzW2mN8pR5u",
    "räume-k3Jx9QzW2mN8pR5t",
    "🎉k3Jx9QzW2mN8pR5t",
    "1//0gFx9QzW2mN8pR5tabc-Lm3nOpQr",
    "ABCD-EFGH-1J2K-3L4M-5N6P",
    "aZ3$kL9!qW7@xC5#",
    "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    "dop_v1_abc123def456",
    "rk_test_51H8abc",
    "123456:AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw",
    "12345678901234567890123456789012",
    "s%3Ak3Jx9QzW2mN8.pR5tLm3nOpQr",
    "0x4c0883a69102937d6231471b5dbb6204fe512961",
)


@pytest.mark.parametrize("path", READABLE)
def test_path_of_words_and_numbers_is_kept(path):
    assert masked_path(path) == path


@pytest.mark.parametrize("token", TOKENS)
def test_token_goes_from_a_path(token):
    assert token not in (shown := masked_path(f"/rooms/{token}/chat"))
    assert "REDACTED" in shown
    assert shown.startswith("/rooms/")
    assert shown.endswith("/chat")


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/lobby;jsessionid=1A2B3C;color=red", "/lobby;jsessionid=REDACTED;color=red"),
        ("/bot123456:AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw/send", "/bot123456:REDACTED/send"),
        ("/room-550e8400-e29b-41d4-a716-446655440000", "/room-REDACTED"),
        ("/user:hunter2@host", "/user:REDACTED@host"),
        ("/@c2VjcmV0LXRva2VuLTEyMw!", "/@REDACTED!"),
        ("/main.3f2a9c1b8d7e6f5a.js", "/main.REDACTED.js"),
        ("/a%20b-k3Jx9QzW2mN8pR5t", "/a%20b-REDACTED"),
        ("/token/abc123", "/token/REDACTED"),
        ("/session/Ab3xZ9/chat", "/session/REDACTED/chat"),
        ("/%25252525252525", "/REDACTED"),
    ],
)
def test_only_the_token_of_a_segment_is_masked(path, shown):
    assert masked_path(path) == shown


@pytest.mark.parametrize(
    "alphabet", [string.ascii_letters + string.digits, string.ascii_lowercase + string.digits, string.hexdigits[:16]]
)
def test_random_characters_are_told_from_words(alphabet):
    """Hardly any of 1000 random tokens of 20 characters is taken for words."""
    numbers = random.Random(18)
    tokens = ["".join(numbers.choices(alphabet, k=20)) for _ in range(1000)]
    assert sum(token in masked_path(f"/rooms/{token}") for token in tokens) < 20


def test_short_token_with_a_dash_goes():
    """Of ``secrets.token_urlsafe(12)`` hardly any stays, wherever its dashes are: one in nine did."""
    numbers = random.Random(18)
    tokens = [base64.urlsafe_b64encode(numbers.randbytes(12)).decode() for _ in range(1000)]
    assert sum(token in masked_path(f"/rooms/{token}") for token in tokens) < 40


def test_pairs_of_words_are_told_from_random_characters():
    words = "the message of your first session was sent to another server because this one restarts".split()
    for words_of in itertools.combinations(words, 3):
        for path in ("-".join(words_of), "_".join(words_of).upper(), "".join(map(str.title, words_of))):
            assert masked_path(path) == path


@pytest.mark.parametrize(
    "unit", ["a", "/", "%25", "a-", "AKIA-", "a==", "eyJ", "a:", "a@", ";a=", "Basic ", "sk-", "aB3/"]
)
def test_long_path_takes_linear_time(unit):
    """A regular expression that backtracks would not come back from that."""
    masked_path("/" + unit * (100_000 // len(unit)))
    assert len(safe_path("/" + unit * (100_000 // len(unit)))) <= 256


def test_token_at_the_cut_of_a_long_path_goes():
    assert "k3Jx9" not in safe_path("/" + "/" * 2040 + "k3Jx9QzW2mN8pR5t")
    assert "k3Jx9" not in safe_path("/" + "k3Jx9QzW2mN8pR5t" * 200 + "/k3Jx9")
