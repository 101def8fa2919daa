import itertools
import linecache
import sys
import traceback
import types
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_closecodes.logs import stack_traces
from asgi_closecodes.logs.stack_traces import CodePosition, stack_text, stack_trace

SOURCE = """
def plainly(error):
    raise error

def from_the_middle_of_a_line(error):
    rows = {"a": {"b": [0]}}; rows["a"]["b"][0] + (lambda: raised(error))() * 2; return rows

def over_several_lines(error):
    return (
        1
        + len(
            [raised(error) for _ in range(2)],
        )
        + 2
    )

def over_many_lines(error):
    return dict(
        a=1,
        b=2,
        c=3,
        d=4,
        e=raised(error),
        f=6,
    )

def beside_wide_letters(error):
    return "\\u4f60\\u597d", "你好é", {"ключ": 1}["ключ"] + raised(error) + 1

if True:
\tdef behind_a_tab(error):
\t\treturn [1][raised(error)]
"""


def raised(error):
    raise error


def down(error, frames):
    if frames == 0:
        raise error
    down(error, frames - 1)


def in_turns(error, frames):
    if frames == 0:
        raise error
    otherwise(error, frames - 1)


def otherwise(error, frames):
    in_turns(error, frames)


def in_a_generator(error):
    return list(itertools.chain(raised(error) for _ in "x"))


def in_a_class(error):
    class Wrong:
        value = raised(error)


def as_program(filename, source=SOURCE):
    names = {"raised": raised}
    exec(compile(source, filename, "exec"), names)
    return [value for value in names.values() if isinstance(value, types.FunctionType) and value is not raised]


with_source = "<registered by tests>"
linecache.cache[with_source] = len(SOURCE), None, SOURCE.splitlines(keepends=True), with_source
WAYS = [
    *(raised, in_a_generator, in_a_class),
    *as_program(with_source),
    *as_program("<nowhere>"),
    *(lambda error, frames=frames: down(error, frames) for frames in range(8)),
    *(lambda error, frames=frames: in_turns(error, frames) for frames in (3, 4)),
]


def caught(error, way=raised):
    """Return ``error``, or what went wrong instead, with the traceback of ``way``."""
    try:
        way(error)
    except BaseException as seen:
        return seen


class Rude(Exception):
    def __str__(self):
        raise RuntimeError("nobody asked")


class Falsy(Exception):
    def __len__(self):
        return 0


class WithMembers(Exception):
    exceptions = 5


def misspelled():
    frames_of_the_room = 1
    return frame_of_the_room + frames_of_the_room  # noqa: F821


def _noted(error, notes):
    error.__notes__ = notes
    return error


def _mistaken(mistake):
    try:
        mistake()
    except Exception as error:
        return error


leaves = st.one_of(
    st.builds(ValueError, st.text(max_size=20)),
    st.builds(KeyboardInterrupt),
    st.builds(Rude),
    st.builds(Falsy),
    st.builds(WithMembers),
    st.builds(_noted, st.builds(KeyError), st.lists(st.text(max_size=9)) | st.just(5) | st.just([Rude()])),
    st.builds(
        _mistaken,
        st.sampled_from(
            [
                misspelled,
                lambda: "".joim([]),
                lambda: exec("from traceback import format_ecx"),
                lambda: compile("if True:\n    x = = 1\n", "<typed>", "exec"),
                lambda: compile("whille True:\n    pass\n", "<typed>", "exec"),
                lambda: exec("import asgi_closecodes.nothing"),
            ]
        ),
    ),
)


def _group(message, members):
    return BaseExceptionGroup(message, members)


def _chained(error, other, how):
    setattr(error, how, other)
    if how == "__cause__" and isinstance(error.__context__, ValueError):
        error.__suppress_context__ = False
    return error


errors = st.recursive(
    st.builds(caught, leaves, st.sampled_from(WAYS)) | leaves,
    lambda inner: st.one_of(
        st.builds(_group, st.text(max_size=5), st.lists(inner, min_size=1, max_size=20)),
        st.builds(_chained, inner, inner, st.sampled_from(["__cause__", "__context__"])),
        st.builds(caught, inner, st.sampled_from(WAYS)),  # raised once more
    ),
    max_leaves=20,
)


def in_parts(error):
    return type(error), error, error.__traceback__


@given(errors)
def test_stack_trace_is_what_the_standard_library_says(error):
    expected = "".join(traceback.format_exception(error))
    assert stack_trace(in_parts(error)) == expected
    assert stack_trace(in_parts(error)) == expected


def test_deep_groups_and_loops_are_as_the_standard_library_s():
    first, second = caught(ValueError("first")), caught(KeyError("second"))
    first.__cause__, second.__context__ = second, first
    deep = first
    for number in range(20):
        deep = caught(ExceptionGroup(str(number), [deep, second]))
    second.__cause__ = deep
    assert stack_trace(in_parts(deep)) == "".join(traceback.format_exception(deep))


@pytest.mark.parametrize("limit", [0, 2, -1, 10**9])
def test_limit_of_tracebacks_is_kept(monkeypatch, limit):
    error = caught(ValueError("x"), lambda error: down(error, 5))
    monkeypatch.setattr(sys, "tracebacklimit", limit, raising=False)
    assert stack_trace(in_parts(error)) == "".join(traceback.format_exception(error))


@pytest.mark.parametrize("lasti", [-1, 0, 2])
def test_traceback_made_by_hand_is_as_the_standard_library_s(lasti):
    error = caught(ValueError("x"))
    frame = error.__traceback__.tb_next.tb_frame
    for line in (1, 2):  # which counts where there is no instruction to tell
        error.__traceback__ = types.TracebackType(None, frame, lasti, line)
        assert stack_trace(in_parts(error)) == "".join(traceback.format_exception(error))


def test_traceback_of_its_own_stands_for_that_of_the_exception():
    error = caught(ValueError("x"), lambda error: down(error, 2))
    assert stack_trace((ValueError, error, None)) == "ValueError: x\n"


def test_equal_code_in_two_files_keeps_its_file(tmp_path):
    for name in ("first.py", "second.py"):
        [way] = as_program(str(tmp_path / name), "def fails(error):\n    raise error\n")
        error = caught(ValueError("x"), way)
        assert name in stack_trace(in_parts(error))


def test_code_that_is_gone_is_not_taken_for_that_in_its_place(monkeypatch):
    text = "raise error\n"
    for number in range(50):
        monkeypatch.setitem(linecache.cache, name := f"<number {number}>", (len(text), None, [text], name))
        error = caught(ValueError("x"), lambda error: exec(compile(text, name, "exec"), {"error": error}))
        assert f'"{name}"' in stack_trace(in_parts(error))


def test_line_is_looked_up_once(tmp_path):
    file = tmp_path / "changing.py"
    file.write_text("def fails(error):\n    raise error  # as it runs\n")
    [way] = as_program(str(file), file.read_text())
    before = stack_trace(in_parts(caught(ValueError("x"), way)))
    assert "raise error  # as it runs\n" in before
    file.write_text("\n# all of it is new\n")
    assert stack_trace(in_parts(caught(ValueError("x"), way))) == before


def test_line_that_could_not_be_read_is_looked_up_again(tmp_path):
    file = tmp_path / "later.py"
    [way] = as_program(str(file), text := "def fails(error):\n    raise error\n")
    error = caught(ValueError("x"), way)
    assert "    raise error\n" not in stack_trace(in_parts(error)).partition("later.py")[2]
    file.write_text(text)
    assert "    raise error\n" in stack_trace(in_parts(error)).partition("later.py")[2]


def test_stack_trace_kept_is_bounded(monkeypatch):
    monkeypatch.setattr(stack_traces, "MAX_CACHED_FRAMES", 3)
    stack_traces._frame_cache.clear()
    for way in WAYS:
        error = caught(ValueError("x"), way)
        assert stack_trace(in_parts(error)) == "".join(traceback.format_exception(error))
        assert 0 < len(stack_traces._frame_cache) <= 3


def test_line_that_holds_a_file_is_written_and_not_kept(monkeypatch):
    text = f"def fails(error): data = {'x' * 50_000!r}; raise error\n"
    monkeypatch.setitem(linecache.cache, "<data>", (len(text), None, [text], "<data>"))
    [way] = as_program("<data>", text)
    stack_traces._frame_cache.clear()
    error = caught(ValueError("x"), way)
    for _ in range(2):
        assert stack_trace(in_parts(error)) == "".join(traceback.format_exception(error))
    assert stack_traces._frame_cache
    assert sum(len(kept.text) for kept in stack_traces._frame_cache.values()) < 50_000


def test_stack_trace_keeps_nothing_of_a_request():
    # Neither frames, which hold local variables, nor exceptions.
    class Local:
        pass

    def fails(error):
        local = Local()
        assert local
        raise error

    error = caught(ValueError("x"), fails)
    frame = error.__traceback__.tb_next.tb_frame
    stack_trace(in_parts(error))
    reached = [
        vars_of for kept in stack_traces._frame_cache.values() for vars_of in (kept.locals, kept.code, kept.text)
    ]
    assert frame not in reached
    assert all(value is None or isinstance(value, (str, types.CodeType)) for value in reached)


def test_exception_that_cannot_be_described_keeps_its_frames():
    class Hostile(Exception):
        def __getattribute__(self, name):
            if name == "__cause__":
                raise RuntimeError
            return super().__getattribute__(name)

    error = caught(Hostile("x"))
    text = stack_trace(in_parts(error))
    assert f'File "{Path(__file__)}"' in text
    assert text.endswith("Hostile (its description raised RuntimeError)\n")


# The stack of a thread


def stack_of(depth):
    """Return this stack with a recursion, as frames and as places."""
    if depth:
        return stack_of(depth - 1)
    frames = [frame for frame, _ in traceback.walk_stack(sys._getframe())]
    frames.reverse()
    return (
        traceback.extract_stack(frames[-1]),
        [CodePosition(frame.f_code, frame.f_lineno, frame.f_globals["__name__"]) for frame in frames],
    )


@pytest.mark.parametrize("depth", [0, 1, 20])
def test_stack_is_as_the_standard_library_prints_it(depth):
    expected, places = stack_of(depth)
    text = stack_text(places).removeprefix("Stack (most recent call last):\n")
    assert lines_of(text) == lines_of("".join(expected.format()))


def lines_of(text):
    """The lines of a stack; the innermost frame has gone on meanwhile."""
    *lines, _ = text.split("  File ")
    return lines


def test_deep_stack_has_its_ends():
    _, places = stack_of(0)
    code = [compile("x", f"/app/{number}.py", "eval") for number in range(1000)]
    text = stack_text([*places[:1], *(CodePosition(one, 1, "app") for one in code), *places[-1:]])
    assert "/app/0.py" in text
    assert "/app/999.py" in text
    assert "... 802 frames left out ..." in text
    assert len(text) <= 33 * 1024
