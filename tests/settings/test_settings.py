"""What can be set, from code and from the environment, and what is said of the rest."""

import inspect
import json
import logging
import math
import os
import re
from pathlib import Path

import pytest
from pydantic import BaseModel, SecretStr, ValidationError
from pydantic_settings import EnvSettingsSource

from asgi_closecodes import CloseCodeMiddleware, Guard, Settings, SettingsError
from asgi_closecodes.events import UnknownSetting
from asgi_closecodes.naming import shown
from asgi_closecodes.settings import LIMITS, unknown_settings
from asgi_closecodes.settings.types import SHADOWED, TIME_LIMITS
from tests.support.asgi import events_of

README = Path(__file__).parents[2] / "asgi_closecodes/settings/README.md"


@pytest.fixture(autouse=True)
def clean(monkeypatch, request):
    """Nothing of the environment of the tests themselves; but a limit of a cluster needs a place to meet."""
    for name in list(os.environ):
        if name.upper().startswith("CLOSECODES_"):
            monkeypatch.delenv(name)
    if "cluster_max_sessions" in request.node.name:
        monkeypatch.setenv("CLOSECODES_REDIS_URL", "redis://localhost")


def variable(name):
    return f"CLOSECODES_{name.upper()}"


def shortest(_session):
    return 0


NO_LIMIT = [(None, None), ("none", None), ("None", None), (" NONE ", None)]
SESSIONS = [*NO_LIMIT, (0, 0), ("0", 0), (7, 7), ("7", 7), (2**53, 2**53)]
SECONDS = [(2, 2.0), (0.25, 0.25), ("0.25", 0.25), ("3", 3.0)]
FROM_ONE = [(1, 1.0), (2.5, 2.5), ("2.5", 2.5), ("3", 3.0)]
CODES = [(code, code) for code in (1000, 1003, 1007, 1014, 3000, 4999)] + [("4011", 4011)]
SWITCH = [(True, True), (False, False), ("true", True), ("false", False), ("1", True), ("0", False), ("on", True)]


def words(*these):
    return [(word, word) for word in these]


NO_NUMBERS = [
    *(True, False, math.nan, math.inf, -math.inf, "nan", "inf", "-inf", "lots", "1,5", [], {}, object()),
    *(10**17, 10**400, -(10**400), "1" + "0" * 30, 1e300, "1e300", "1e400"),
]
NO_COUNT = [*NO_NUMBERS, -1, "-1", 1.5, "1.5"]
NEGATIVE = [-1, "-1", -0.001, "-0.001"]
ZERO = [0, "0"]
NONE = [None, "none"]
NO_CODE = [
    *(True, False, None, "none", "", "x", 0, -1000, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 70000, 1011.5),
    *("1005", "1006", "1015", "2999", "5000"),
]
NO_SWITCH = [None, "none", "maybe", 2, "2", -1, math.nan, []]
NO_WORD = [None, "none", "nonsense", 1, True, [], b"close"]

OF_TYPE = {
    "max_sessions": (SESSIONS, NO_COUNT),
    "cluster_max_sessions": (SESSIONS, NO_COUNT),
    "when_client_full": (words("refuse", "replace_oldest"), [*NO_WORD, "Refuse", "replace_newest"]),
    "handshake_timeout": (SECONDS, [*NO_NUMBERS, *NEGATIVE, *ZERO, *NONE]),
    "handshakes_per_second": ([*NO_LIMIT, (0, 0.0), ("0", 0.0), *SECONDS], [*NO_NUMBERS, *NEGATIVE]),
    "handshake_burst": ([*NO_LIMIT, *FROM_ONE], [*NO_NUMBERS, *NEGATIVE, *ZERO, 0.5, "0.5"]),
    "max_loop_lag": ([*NO_LIMIT, *SECONDS], [*NO_NUMBERS, *NEGATIVE, *ZERO]),
    "max_memory": (
        [
            *NO_LIMIT,
            (0.8, 0.8),
            ("0.8", 0.8),
            ("80%", 0.8),
            (" 80 % ", 0.8),
            (1.0, 1.0),
            ("1.0", 1.0),
            ("100%", 1.0),
            ("512MiB", 512 * 1024**2),
            ("1.5GiB", 1.5 * 1024**3),
            ("2GB", 2 * 10**9),
            (10**9, 10**9),
            ("1000000000", 10**9),
        ],
        [*NO_NUMBERS, *NEGATIVE, *ZERO, 0.0, "0%", "120%", "-5%", "%", "inf%", "nan%", "0MiB", "5 lots"],
    ),
    "max_cpu": (
        [*NO_LIMIT, (0.5, 0.5), ("0.5", 0.5), ("80%", 0.8), (1, 1.0), ("100%", 1.0)],
        [*NO_NUMBERS, *NEGATIVE, *ZERO, 1.1, "1.1", "120%", "0%", "-5%", "%", "inf%", "nan%", 2],
    ),
    "redis_url": (
        [
            *NO_LIMIT,
            *[(url, SecretStr(url)) for url in ("redis://localhost", "rediss://:pw@host:6380/1")],
            *[(url, SecretStr(url)) for url in ("unix:///run/redis.sock", "redis+sentinel://a,b:26380/mymaster")],
            ("redis+cluster://[::1]:7000", SecretStr("redis+cluster://[::1]:7000")),
        ],
        [
            *(True, 1, "localhost", "http://localhost", "redis://", "redis://host:port", "unix://"),
            "redis+sentinel://host",
        ],
    ),
    "cluster_name": (words("chat", "chat:eu-1.b_2"), ["", "a b", "{a}", "x" * 65, None]),
    "cluster_lease_duration": ([(2, 2.0), ("3", 3.0), (3600, 3600.0)], [*NO_NUMBERS, *NEGATIVE, 0, 1.9, 3601, None]),
    "cluster_fallback": (words("share", "open", "closed"), ["half", None, "", True]),
    "shadow": (
        [
            ("max_sessions", {"max_sessions"}),
            (" max_cpu , max_sessions,", {"max_sessions", "max_cpu"}),
            (["max_memory"], {"max_memory"}),
            ("max_session_age,auth_timeout,idle_timeout,send_timeout", set(TIME_LIMITS)),
            ("all", set(SHADOWED)),
            (True, set(SHADOWED)),
            ("false", set()),
            ({"all", "max_cpu"}, set(SHADOWED)),
            *[(nothing, set()) for nothing in (None, "none", "", [])],
        ],
        [1, "nonsense", "max_cpu,nonsense", ["nonsense"], "max_cpu;max_sessions", "handshake_burst"],
    ),
    "shed_order": (
        [*words("never", "newest", "oldest", "idle"), (shortest, shortest)],
        [*NO_WORD, "Newest", "shortest"],
    ),
    "shed_rate": ([*NO_LIMIT, *SECONDS], [*NO_NUMBERS, *NEGATIVE, *ZERO]),
    "shed_grace": ([(0, 0.0), ("0", 0.0), *SECONDS], [*NO_NUMBERS, *NEGATIVE, *NONE]),
    "idle_timeout": ([*NO_LIMIT, *SECONDS], [*NO_NUMBERS, *NEGATIVE, *ZERO]),
    "cancel_after_disconnect": (SWITCH, NO_SWITCH),
    "reject_with": ([*words("auto", "close", "http"), (shortest, shortest)], [*NO_WORD, "CLOSE", "reject", "shortest"]),
    "max_retry_after": (FROM_ONE, [*NO_NUMBERS, *NEGATIVE, *ZERO, *NONE, 86401, 0.9, "0.9"]),
    "gate_failure": (words("open", "closed"), [*NO_WORD, "close"]),
    "error_code": (CODES, NO_CODE),
    "reraise": ([*SWITCH, ("auto", "auto")], [*NO_SWITCH, "AUTO", "never"]),
    "log_path": (words("redacted", "raw", "off"), [*NO_WORD, "full"]),
    "log_client": (words("full", "truncated", "hashed", "off"), [*NO_WORD, "redacted"]),
    "log_burst": ([*NO_LIMIT, (1, 1), ("1", 1), (7, 7), ("7", 7)], [*NO_COUNT, *ZERO]),
    "log_stalls": ([*NO_LIMIT, (0.01, 0.01), ("0.5", 0.5), (60, 60.0)], [*NO_NUMBERS, *NEGATIVE, *ZERO, 0.001, 61]),
}
"""Good and bad values by the first setting of each type: the others of that type need no row."""

TYPES = {name: inspect.get_annotations(Settings)[name] for name in Settings.model_fields}
FIRST = {of_type: name for name, of_type in reversed(TYPES.items())}
"""The first setting of each type, on which all its values are tried."""

GOOD = {name: OF_TYPE[FIRST[of_type]][0] for name, of_type in TYPES.items()}

NUMERIC = [
    *("max_sessions", "max_sessions_per_client", "max_handshakes_in_progress", "handshakes_per_second"),
    *("handshake_burst", "handshake_timeout", "max_memory", "shed_rate", "shed_grace", "abandon_after"),
    *("drain_window", "drain_patience", "idle_timeout", "send_timeout", "max_session_age", "auth_timeout"),
    *("messages_per_second", "message_burst", "message_patience"),
    *("max_refusals_per_second", "log_burst", "log_per_minute"),
]


def texts(values):
    """``values`` as far as they have a form in the environment, in that form."""
    return [str(value) for value in values if isinstance(value, (str, int, float)) and value != ""]


@pytest.mark.parametrize("name", OF_TYPE)
def test_number_without_a_text_is_refused(name):
    """Python writes no number of more than 4300 digits."""
    with pytest.raises(SettingsError, match=rf"\n  {name}( = <int>)? \(or"):
        Settings(**{name: 10**5000})


# Changes while it runs

GIVEN = {
    "redis_url": "redis://localhost",
    "max_loop_lag": 1,
    "max_memory": 0.6,
    "max_cpu": 0.6,
    **dict.fromkeys([name for name in LIMITS if name not in {"max_loop_lag", "max_memory", "max_cpu"}], 100),
    "messages_per_second": 100,
}
FIXED = ("redis_url", "cluster_name", "drain_on_sigterm")
READ_WHEN_USED = ("shed_rate", "drain_window", "drain_patience")


def another_value(name, current):
    return next(value for value, parsed in reversed(GOOD[name]) if parsed not in (None, current))


def state(guard):
    """What follows the settings: of the gates all that is public and plain."""
    plain = (int, float, str, type(None))
    gates = [
        {name: value for name in dir(gate) if name[0] != "_" and isinstance(value := getattr(gate, name), plain)}
        for gate in guard.gate.gates
    ]
    timeouts = guard._timeouts._idle, guard._timeouts._send, guard._timeouts._cancels, guard._timeouts._grace
    timeouts += guard._timeouts._shadow, guard.deadlines._age, guard.deadlines._auth, guard.deadlines._shadow
    logs = guard._logs._limits, vars(guard._logs._redactor)
    others = (
        guard._queue.cap,
        guard._queue.admits_per_second,
        guard._rejection._reject_with,
        guard._rejection._closes.per_second,
        guard._rejection._graphql_closes.per_second,
        guard._draining._shed_order.order,
        guard._stalls.seconds,
        guard.message_rates.rate,
    )
    return [type(gate) for gate in guard.gate.gates], gates, guard.gate.failure, guard.rules, timeouts, logs, others


@pytest.mark.parametrize("name", [name for name in Settings.model_fields if name not in FIXED])
def test_update_changes_what_follows_each_setting(name):
    guard = Guard(Settings(**GIVEN))
    before = state(guard)
    value = another_value(name, getattr(guard.settings, name))
    guard.update(**{name: value})
    assert (state(guard) == before) is (name in READ_WHEN_USED)
    assert state(guard) == state(Guard(Settings(**{**GIVEN, name: value})))


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("name", FIXED)
async def test_update_refuses_what_is_read_at_the_start(name):
    guard = Guard(Settings(redis_url="redis://localhost"))
    before = guard.settings
    async with guard.lifespan():
        with pytest.raises(SettingsError, match=f"{name} cannot be changed while the application runs: restart it"):
            guard.update(max_sessions=7, **{name: another_value(name, getattr(before, name))})
        assert guard.settings is before
        guard.update(max_sessions=7, **{name: getattr(before, name)})
        assert guard.settings.max_sessions == 7


def test_drain_on_sigterm_may_be_set_before_the_start():
    guard = Guard()
    guard.update(drain_on_sigterm=True)
    assert guard.settings.drain_on_sigterm


def test_gates_are_asked_in_the_order_of_limits():
    guard = Guard(Settings(**GIVEN))
    assert [gate.name for gate in guard.gate.gates] == [*LIMITS]
    assert [*guard.settings.limits()][: len(LIMITS)] == [*LIMITS]
    with pytest.raises(SettingsError, match=f"use {', '.join(SHADOWED)}, or all"):
        Settings(shadow="max_session")
    assert Settings(shadow="all").shadow == {*SHADOWED}


@pytest.mark.parametrize("name", ["max_sessions", "log_burst", "shed_rate", "max_memory"])
def test_huge_number_changes_nothing(name):
    guard = Guard(Settings())
    with pytest.raises(SettingsError, match=f"{name} = 1000"):
        guard.update(**{"max_sessions": 5, name: 10**400})
    assert guard.settings == Settings()
    json.dumps(guard.snapshot())


@pytest.mark.parametrize("name", NUMERIC)
def test_largest_number_works(name):
    guard = Guard(Settings(**{name: 2**53}))
    json.dumps([guard.snapshot(), guard.settings.limits()])


def test_every_type_has_good_and_bad_values_here():
    assert set(OF_TYPE) == set(FIRST.values())


@pytest.mark.parametrize("name", OF_TYPE)
def test_good_value_is_read_and_makes_a_guard(name):
    for value, read in GOOD[name]:
        found = getattr(Guard(Settings(**{name: value})).settings, name)
        assert found == read, value
        assert type(found) in {type(read), frozenset} or name == "max_memory", value


@pytest.mark.parametrize("name", OF_TYPE)
def test_good_value_is_read_from_the_environment(monkeypatch, name):
    for value, read in GOOD[name]:
        if isinstance(value, (str, int, float)):
            monkeypatch.setenv(variable(name), str(value))
            assert getattr(Settings(), name) == read, value


@pytest.mark.parametrize("name", OF_TYPE)
def test_bad_value_is_refused_as_a_keyword(name):
    given = " \\(or" if name == "redis_url" else " = "
    for value in OF_TYPE[name][1]:
        with pytest.raises(SettingsError, match=f"\n  {name}{given}"):
            Settings(**{name: value})
            pytest.fail(f"{shown(value)} is a {name}")


@pytest.mark.parametrize("name", OF_TYPE)
def test_bad_value_is_refused_from_the_environment(monkeypatch, name):
    for value in texts(OF_TYPE[name][1]):
        if value in {"True", "False"} and isinstance(Settings.model_fields[name].default, bool):
            continue  # a boolean
        monkeypatch.setenv(variable(name), value)
        given = "" if name == "redis_url" else f" = {re.escape(shown(value))}"  # there may be a password in it
        with pytest.raises(SettingsError, match=f"\n  {name}{given} \\(or"):
            Settings()
            pytest.fail(f"{shown(value)} is a {name}")


@pytest.mark.parametrize("name", Settings.model_fields)
def test_setting_is_read_under_its_name(monkeypatch, name):
    """Each has its keyword and its variable, and none is None, in code and in the environment."""
    monkeypatch.delenv("CLOSECODES_REDIS_URL", raising=False)
    monkeypatch.setenv(variable(name), "")
    assert Settings() == Settings.model_construct()
    if name.startswith("cluster_max"):
        monkeypatch.setenv("CLOSECODES_REDIS_URL", "redis://localhost")
    text, read = next((value, read) for value, read in reversed(GOOD[name]) if isinstance(value, str) and read)
    monkeypatch.setenv(variable(name), text)
    assert getattr(Settings(), name) == read
    monkeypatch.delenv(variable(name))
    assert getattr(Settings(**{name: text}), name) == read


def test_keyword_is_stronger_than_the_environment(monkeypatch):
    monkeypatch.setenv("CLOSECODES_MAX_SESSIONS", "7")
    assert Settings().max_sessions == 7
    assert Settings(max_sessions=8).max_sessions == 8
    assert Settings(max_sessions=None).max_sessions is None


def test_settings_without_variables_examine_no_field(monkeypatch):
    """The sources of pydantic-settings do, for ten times as long as all the rest takes: at each update of a guard."""
    examined = []

    def examine(_source, _field, name):
        examined.append(name)
        return None, name, False

    monkeypatch.setattr(EnvSettingsSource, "get_field_value", examine)
    Settings(max_sessions=3)
    assert examined == []
    monkeypatch.setenv("closecodes_max_Sessions", "4")
    Settings()
    assert examined


def test_names_without_the_prefix_are_not_read(monkeypatch):
    for name in Settings.model_fields:
        monkeypatch.setenv(name.upper(), "nonsense")
    assert Settings() == Settings.model_construct()


def test_settings_do_not_change_in_place():
    with pytest.raises(ValueError, match="frozen"):
        Settings().max_sessions = 5


@pytest.mark.parametrize("value", [None, 5, "max_sessions=5", []])
def test_settings_in_a_model_of_others_are_checked(value):
    """A model of the application's may have them as a field."""

    class Others(BaseModel):
        closecodes: Settings

    with pytest.raises(ValidationError, match="closecodes"):
        Others(closecodes=value)
    assert Others(closecodes={"max_sessions": "none"}) == Others(closecodes=Settings(max_sessions=None))


# Changes


@pytest.mark.parametrize("name", Settings.model_fields)
def test_change_keeps_all_the_rest(name):
    before = Settings(
        max_sessions=3, max_memory="512MiB", max_cpu="50%", shed_order=shortest, shadow="max_cpu", error_code=4000
    )
    others = set(Settings.model_fields) - {name}
    for value, read in GOOD[name]:
        after = before.changed(**{name: value})
        assert getattr(after, name) == read, value
        assert all(getattr(after, other) == getattr(before, other) for other in others), value
        assert all(type(getattr(after, other)) is type(getattr(before, other)) for other in others), value


def test_change_does_not_read_the_environment_again(monkeypatch):
    before = Settings()
    monkeypatch.setenv("CLOSECODES_MAX_SESSIONS", "7")
    monkeypatch.setenv("CLOSECODES_ERROR_CODE", "nonsense")
    assert before.changed(debug=True) == Settings.model_construct(debug=True)


# What is said of what is wrong


def test_all_that_is_wrong_is_said_at_once(monkeypatch):
    monkeypatch.setenv("CLOSECODES_TRY_AGAIN_CODE", "1015")
    monkeypatch.setenv("CLOSECODES_LOG_PATH", "everything")
    with pytest.raises(SettingsError) as raised:
        Settings(
            max_sessions=-1,
            max_cpu=3,
            error_code=1006,
            reject_with="reject",
            shadow="max_cpu,max_lag",
            debug="maybe",
            handshake_timeout=0,
            max_sesions=3,
            log_client="full",
        )
    header, *problems = str(raised.value).splitlines()
    assert header == "10 settings cannot be used:"
    said = {line.split()[0]: line for line in problems}
    assert len(said) == len(problems) == 10
    for name, value, *remedies in (
        ("max_sessions", "-1", "greater than or equal to 0", "CLOSECODES_MAX_SESSIONS"),
        ("max_cpu", "3", "less than or equal to 1", "CLOSECODES_MAX_CPU"),
        ("error_code", "1006", "use 1000-1003, 1007-1014 or 3000-4999", "CLOSECODES_ERROR_CODE"),
        ("try_again_code", "'1015'", "use 1000-1003, 1007-1014 or 3000-4999", "CLOSECODES_TRY_AGAIN_CODE"),
        ("reject_with", "'reject'", "'auto', 'close' or 'http'"),
        ("log_path", "'everything'", "'redacted', 'raw' or 'off'"),
        ("shadow", "'max_cpu,max_lag'", "must name limits, not max_lag; use max_loop_lag, max_memory"),
        ("debug", "'maybe'", "valid boolean"),
        ("handshake_timeout", "0", "greater than 0"),
    ):
        assert f"  {name} = {value} " in said[name]
        for remedy in remedies:
            assert remedy in said[name]
        assert Settings.model_fields[name].description in said[name]
    assert "no such setting; did you mean max_sessions?" in said["max_sesions"]


@pytest.mark.parametrize(
    ("name", "value"), [("max_memory", "lots"), ("shed_order", "shortest"), ("max_sessions", "many")]
)
def test_one_wrong_setting_is_one_problem(name, value):
    with pytest.raises(SettingsError) as raised:
        Settings(**{name: value})
    header, *problems = str(raised.value).splitlines()
    assert header == "1 setting cannot be used:"
    assert len(problems) == 1


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("max_session", "max_sessions"),
        ("handshake_timout", "handshake_timeout"),
        ("error_codes", "error_code"),
        ("max_sessions_per_ip", "max_sessions_per_client"),
    ],
)
def test_unknown_keyword_is_an_error_with_the_nearest_name(name, nearest):
    with pytest.raises(SettingsError, match=f"\n  {name}.*no such setting; did you mean {nearest}\\?"):
        Settings(**{name: 1})


def test_unknown_keyword_like_nothing_is_refused_without_a_guess():
    with pytest.raises(SettingsError, match=r"no such setting$"):
        Settings(xyzzy=1)


@pytest.mark.parametrize("unknown", ["max_sessoins", "redis_password"])
def test_value_of_what_is_no_setting_is_not_shown(unknown):
    with pytest.raises(SettingsError) as raised:
        Settings(**{unknown: "hunter2"}, max_sessions=-1)
    assert unknown in str(raised.value)
    assert "hunter2" not in str(raised.value)


def test_rest_of_the_environment_is_not_shown(monkeypatch):
    monkeypatch.setenv("DATABASE_PASSWORD", "hunter2")
    monkeypatch.setenv("CLOSECODES_REDIS_PASSWORD", "hunter2")
    monkeypatch.setenv("MAX_SESSIONS", "hunter2")
    monkeypatch.setenv("CLOSECODES_MAX_SESSIONS", "-1")
    with pytest.raises(SettingsError) as raised:
        Settings()
    assert "hunter2" not in str(raised.value)
    assert "'-1'" in str(raised.value)


def test_settings_error_is_a_value_error_and_hides_pydantic():
    with pytest.raises(ValueError) as raised:
        Settings(max_sessions=-1)
    assert type(raised.value) is SettingsError
    assert raised.value.__suppress_context__
    assert "pydantic" not in str(raised.value)


def test_middleware_misconfigured_outside_a_loop_is_not_built(monkeypatch):
    monkeypatch.setenv("CLOSECODES_MAX_SESSIONS", "-1")
    with pytest.raises(SettingsError, match="CLOSECODES_MAX_SESSIONS"):
        CloseCodeMiddleware(print)


# Names in the environment that are no setting


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("CLOSECODES_MAX_SESSION", "CLOSECODES_MAX_SESSIONS"),
        ("closecodes_max_session", "CLOSECODES_MAX_SESSIONS"),
        ("CLOSECODES_MAXSESSIONS", "CLOSECODES_MAX_SESSIONS"),
        ("CLOSECODES_HANDSHAKES_PER_SECONDS", "CLOSECODES_HANDSHAKES_PER_SECOND"),
        ("CLOSECODES_QQQQQQQQQQQQQQQQQQQQQQQQ", None),
    ],
)
def test_unknown_name_is_a_warning_with_the_nearest_match(monkeypatch, caplog, name, nearest):
    monkeypatch.setenv(name, "hunter2")
    seen = []
    with caplog.at_level(logging.INFO, "asgi_closecodes"):
        guard = Guard(observers=[seen.append])
    assert guard.settings == Settings.model_construct()
    assert events_of(UnknownSetting, seen) == [UnknownSetting(name, nearest)]
    [record] = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert record.name == "asgi_closecodes.config"
    assert name in record.getMessage()
    if nearest is None:
        assert "did you mean" not in record.getMessage()
    else:
        assert f"did you mean {nearest}?" in record.getMessage()
    assert "hunter2" not in str(vars(record))


def test_known_names_and_names_of_others_are_no_warning():
    known = {variable(name): "1" for name in Settings.model_fields}
    others = {"CLOSECODE_MAX_SESSIONS": "1", "MY_CLOSECODES_MAX_SESSION": "1", "MAX_SESSIONS": "1"}
    assert unknown_settings({**known, **others, "closecodes_max_sessions": "1"}) == {}
    assert unknown_settings({**known, "CLOSECODES_": "1", "CLOSECODES_DEBUGG": "1"}).keys() == {
        "CLOSECODES_",
        "CLOSECODES_DEBUGG",
    }


# The README's table


ROW = re.compile(r"^\| `(?P<name>[a-z_]+)` \| `(?P<default>[^`|]*)` \| (?P<meaning>[^|]*) \|$", re.MULTILINE)


def rows():
    return [match.groupdict() for match in ROW.finditer(README.read_text(encoding="utf-8"))]


def default_of(name):
    return Settings.model_fields[name].default


def test_readme_has_every_setting_with_default_and_description():
    """The README has every setting in order, with its default and its description."""
    expected = [
        {
            "name": name,
            "default": "none" if default_of(name) == frozenset() else str(default_of(name)),
            "meaning": field.description,
        }
        for name, field in Settings.model_fields.items()
    ]
    assert rows() == expected


@pytest.mark.parametrize("row", rows(), ids=lambda row: row["name"])
def test_readme_default_can_be_set_by_the_readme_s_name(monkeypatch, row):
    name = row["name"]
    other = next(value for value, read in GOOD[name] if read not in (default_of(name), None))
    monkeypatch.setenv(variable(name), row["default"])
    settings = Settings(**{name: other}).changed(**{name: row["default"]})
    assert getattr(Settings(), name) == getattr(settings, name) == default_of(name)


def test_readme_says_what_the_environment_names_are():
    assert "environment variables with the prefix `CLOSECODES_`" in README.read_text(encoding="utf-8")
