import io
import json
import logging
import logging.config
import logging.handlers
import queue
import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_closecodes.logs import ConsoleFormatter, JsonFormatter, configure_logging
from asgi_closecodes.logs.stack_traces import CodePosition, stack_text

# What people send: line ends, terminal escapes, bidirectional controls, lone surrogates.
nasty = st.text(st.one_of(st.sampled_from("\r\n\x1b\x00\u2028\u2029\u202e\x85\x9b\ud800\udfffa{}%"), st.characters()))


class Rude:
    def __str__(self):
        raise RuntimeError("nobody asked")

    __repr__ = __str__


def record_of(message="said", *arguments, error=None, **extra):
    record = logging.makeLogRecord(
        {"name": "some.logger", "levelno": logging.ERROR, "levelname": "ERROR", "msg": message, "args": arguments}
    )
    if error is not None:
        try:
            raise error
        except BaseException:
            record.exc_info = sys.exc_info()
    vars(record).update(extra)
    return record


def as_json(record):
    text = JsonFormatter().format(record)
    assert text.isprintable()
    return json.loads(text)


# JSON


def test_json_of_a_dictionary_has_its_items():
    """But for those that say who speaks, and when."""
    written = as_json(record_of({"user": 5, "logger": "forged", "level": "forged"}, room="lobby"))
    assert written["user"] == 5
    assert written["room"] == "lobby"
    assert (written["logger"], written["level"], written["message"]) == ("some.logger", "error", "")


def test_json_of_a_stack_has_it():
    assert as_json(record_of(stack_info="Stack (most recent call last):\n  here"))["stack_info"].endswith("here")


def test_json_has_no_attribute_of_the_record_itself():
    written = as_json(record_of(_private=1, color_message="said", taskName="Task-1"))
    assert sorted(written) == ["level", "logger", "message", "process.pid", "timestamp"]


@given(nasty, nasty, nasty)
def test_whatever_is_in_it_is_one_line_of_json(message, value, of_error):
    error = ValueError(of_error)
    error.add_note(value)
    written = as_json(record_of("%s", message, error=error, **{"a.key": value}))
    assert written["message"] == message
    assert written["a.key"] == value
    assert written["exception.message"] == of_error
    assert written["exception.notes"] == [value]
    assert written["exception.stacktrace"].startswith("Traceback (most recent call last):\n")


anything = st.recursive(
    st.one_of(
        nasty,
        st.floats(),
        st.integers(),
        st.binary(),
        st.none(),
        st.sets(st.integers()),
        st.builds(Rude),
        st.builds(object),
    ),
    lambda inner: st.lists(inner) | st.dictionaries(st.one_of(nasty, st.integers(), st.tuples(st.integers())), inner),
)


@given(anything)
def test_whatever_is_an_extra_is_written(value):
    assert "closecodes.x" in as_json(record_of(**{"closecodes.x": value}))


def test_list_in_itself_is_written():
    loop = []
    loop.append(loop)
    assert as_json(record_of(**{"closecodes.x": loop}))["closecodes.x"] == "[[...]]"


def test_number_that_json_cannot_hold_alone_becomes_text():
    """A number that JSON cannot hold is text, and those beside it stay numbers."""
    written = as_json(record_of(bad=float("nan"), long=10**5000, good=0.5, several=[1, {"a": None}]))
    assert (written["bad"], written["good"], written["several"]) == ("nan", 0.5, [1, {"a": None}])
    assert isinstance(written["long"], str)


def test_message_of_parts_is_written_whatever_their_names():
    written = as_json(record_of({(1, 2): "a", float("nan"): "b", 3: 4}))
    assert (written["(1, 2)"], written["nan"], written["3"]) == ("a", "b", 4)


def test_keys_that_every_line_has():
    record = record_of("one %s", "two")
    record.created = 1_700_000_000.123456
    written = as_json(record)
    assert written == {
        "timestamp": "2023-11-14T22:13:20.123456Z",
        "level": "error",
        "logger": "some.logger",
        "message": "one two",
        "process.pid": record.process,
    }


def test_extra_does_not_say_who_speaks_and_when():
    written = as_json(record_of(timestamp="never", level="calm", logger="mine", **{"process.pid": 0}))
    assert written["level"] == "error"
    assert written["logger"] == "some.logger"
    assert written["timestamp"] != "never"


def test_uvicorn_s_coloured_copy_is_left_out():
    assert "color_message" not in as_json(record_of(color_message="\x1b[1m"))


class Custom(Exception):
    pass


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (ValueError("x"), "ValueError"),
        (Custom("x"), f"{__name__}.Custom"),
        (ExceptionGroup("g", [KeyError()]), "ExceptionGroup"),
    ],
)
def test_exception_is_written_in_parts(error, name):
    written = as_json(record_of(error=error))
    assert written["exception.type"] == name
    assert written["exception.message"] == str(error)
    assert "exception.notes" not in written
    assert "in record_of\n" in written["exception.stacktrace"]
    assert "exc_info" not in written


def test_causes_and_members_of_groups_are_in_the_stack_trace():
    error = ExceptionGroup("several", [KeyError("inside")])
    error.__cause__ = OSError("before")
    trace = as_json(record_of(error=error))["exception.stacktrace"]
    assert "OSError: before" in trace
    assert "KeyError: 'inside'" in trace


def monsters():
    """Exceptions that break naive formatting."""
    first, second = ValueError("first"), KeyError("second")
    first.__cause__, second.__context__ = second, first
    yield "a loop of causes", first

    group = ExceptionGroup("g", [first])
    second.__cause__ = group
    yield "a group in itself", group

    chain = ValueError(0)
    for number in range(3000):
        chain, chain.__cause__ = ValueError(number), chain
    yield "a long chain", chain

    deep = ValueError("bottom")
    for number in range(500):
        deep = ExceptionGroup(str(number), [deep])
    yield "a deep group", deep
    yield "a wide group", ExceptionGroup("wide", [ValueError(number) for number in range(5000)])

    rude = Custom(Rude())
    rude.add_note("fine")
    rude.__notes__.append(Rude())
    yield "unprintable notes", rude

    odd = Custom("x")
    odd.__notes__ = 5
    yield "notes that are no list", odd

    class Hostile(Exception):
        def __getattribute__(self, name):
            if name in {"__notes__", "args"}:
                raise RuntimeError(name)
            return super().__getattribute__(name)

    yield "attributes that raise", Hostile("x")
    yield "a long message", ValueError("x" * 10_000_000)

    noted = ValueError("x")
    for _ in range(1000):
        noted.add_note("n" * 100_000)
    yield "long notes", noted


@pytest.mark.parametrize(("error"), [pytest.param(error, id=name) for name, error in monsters()])
@pytest.mark.parametrize("formatter", [JsonFormatter(), ConsoleFormatter(colours=False)])
def test_monsters_are_written_and_stay_small(error, formatter):
    text = formatter.format(record_of("said", error=error))
    assert "said" in text
    assert len(text.encode()) < 150_000
    assert not ({*text} - {"\n"}) & {*map(chr, range(32))}


@pytest.mark.parametrize("formatter", [JsonFormatter(), ConsoleFormatter(colours=False)])
@pytest.mark.parametrize("mutual", [False, True])
def test_recursion_of_10_000_frames_is_written(formatter, mutual):
    def down(left):
        if left == 0:
            raise RecursionError("too deep")
        (other if mutual else down)(left - 1)

    def other(left):
        down(left)

    before = sys.getrecursionlimit()
    sys.setrecursionlimit(30_000)
    try:
        down(10_000)
    except RecursionError as error:
        sys.setrecursionlimit(before)
        record = record_of("said")
        record.exc_info = type(error), error, error.__traceback__
        text = formatter.format(record)
    finally:
        sys.setrecursionlimit(before)
    assert "too deep" in text
    assert len(text.encode()) < 150_000


def test_message_that_cannot_be_printed_is_contained():
    assert as_json(record_of(error=ValueError(Rude())))["exception.message"].startswith("<unprintable")


def test_stack_trace_has_at_most_32_kib_its_head_and_its_tail():
    trace = as_json(record_of(error=ValueError("é" * 50_000 + "the end")))["exception.stacktrace"]
    assert len(trace.encode()) <= 32 * 1024
    assert trace.startswith("Traceback")
    assert "bytes left out" in trace
    assert trace.endswith("the end\n")


def test_record_that_was_queued_is_written_like_any_other():
    lines = queue.Queue()
    logging.handlers.QueueHandler(lines).handle(record_of("said %s", "it", error=ValueError("x"), **{"a.key": 1}))
    written = as_json(lines.get())
    assert written["message"].startswith("said it")
    assert written["a.key"] == 1
    assert "ValueError: x" in written.get("exception.stacktrace", written["message"])


def test_formatter_can_be_named_in_a_dictionary():
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"json": {"()": "asgi_closecodes.logs.JsonFormatter"}},
            "handlers": {
                "out": {"class": "logging.StreamHandler", "formatter": "json", "stream": (stream := io.StringIO())}
            },
            "loggers": {"named.in.a.dictionary": {"handlers": ["out"], "propagate": False}},
        }
    )
    logging.getLogger("named.in.a.dictionary").error("said")
    assert json.loads(stream.getvalue())["message"] == "said"


# Console


@given(nasty, nasty, nasty)
def test_formatted_text_drives_no_terminal_and_forges_no_line(message, path, of_error):
    error = ValueError(of_error)
    text = ConsoleFormatter().format(record_of("%s", message, error=error, **{"client.address": path}))
    first, *rest = text.split("\n")
    assert all(line.startswith("    ") for line in rest)
    assert all(
        line.isprintable() or not re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202e\ud800-\udfff]", line)
        for line in (first, *rest)
    )


def test_line_says_when_how_bad_and_what():
    text = ConsoleFormatter().format(
        record_of("said", **{"closecodes.session.id": "abc", "client.address": "192.0.2.1"})
    )
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d\d\d ERROR    said  session=abc client=192\.0\.2\.1", text)


def test_library_frames_are_dimmed_only_where_colours_are_on():
    def fails():
        json.loads("nonsense")

    try:
        fails()
    except ValueError:
        record = record_of()
        record.exc_info = sys.exc_info()
    plain = ConsoleFormatter().format(record)
    assert "\x1b" not in plain
    coloured = ConsoleFormatter(colours=True).format(record).split("\n")
    [ours] = [line for line in coloured if "in fails" in line]
    theirs = [line for line in coloured if "json/decoder.py" in line]
    assert "\x1b" not in ours
    assert theirs
    assert all("\x1b[2m" in line for line in theirs)


def test_console_dims_libraries_in_the_stack_of_a_stall():
    place = CodePosition(json.loads.__code__, json.loads.__code__.co_firstlineno, "json")
    here = sys._getframe()
    stack = stack_text([place, CodePosition(here.f_code, here.f_lineno, __name__)])
    record = record_of(**{"code.stacktrace": stack})
    _, title, *lines = ConsoleFormatter(colours=True).format(record).split("\n")
    assert title.strip() == "Stack (most recent call last):"
    assert ["\x1b[2m" in line for line in lines if "File" in line] == [True, False]
    assert as_json(record)["code.stacktrace"] == stack


@pytest.mark.parametrize("stack", [None, 5, ["x"]])
def test_console_ignores_a_stack_that_is_no_text(stack):
    assert "\n" not in ConsoleFormatter().format(record_of(**{"code.stacktrace": stack}))


def test_local_variables_are_not_printed():
    secret = "correct-horse"
    assert secret
    try:
        raise ValueError
    except ValueError:
        record = record_of()
        record.exc_info = sys.exc_info()
    assert secret not in ConsoleFormatter(colours=True).format(record)
    assert secret not in JsonFormatter().format(record)


# configure_logging


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def logger():
    logger = logging.getLogger("configured.by.tests")
    yield logger
    logger.handlers.clear()
    logger.propagate = True


def configured(logger, stream, *arguments, **options):
    configure_logging(*arguments, stream=stream, logger=logger.name, **options)
    logger.info("said")
    return stream.getvalue()


def test_formatter_is_json_unless_on_a_terminal(logger):
    assert json.loads(configured(logger, io.StringIO()))["message"] == "said"
    assert "\x1b[" in configured(logger, Terminal())
    assert json.loads(configured(logger, Terminal(), "json"))["message"] == "said"
    assert configured(logger, io.StringIO(), "console").endswith("INFO     said\n")


def test_no_color_is_honoured(logger, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in configured(logger, Terminal())


def test_second_call_replaces_the_first_and_nothing_else(logger):
    theirs = logging.StreamHandler(io.StringIO())
    logger.addHandler(theirs)
    first = io.StringIO()
    configured(logger, first)
    configured(logger, io.StringIO())
    assert first.getvalue().count("\n") == 1
    assert theirs in logger.handlers
    assert len(logger.handlers) == 2


def test_level_is_a_name_or_a_number(logger):
    assert configured(logger, io.StringIO(), level="warning") == ""
    assert configured(logger, io.StringIO(), level=10) != ""


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ({"format": "xml"}, "format must be 'auto', 'json' or 'console', not 'xml'"),
        ({"level": "LOUD"}, "level must be one of"),
    ],
)
def test_unknown_argument_is_an_error(options, remedy):
    with pytest.raises(ValueError, match=remedy):
        configure_logging(**options, logger="configured.by.tests")
