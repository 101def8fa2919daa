import gc
import re
import weakref
from types import FunctionType

import pytest

from asgi_closecodes.error_identity import fingerprint, is_library, stack_fingerprint, type_name


def caught(code, filename="/app/shop/handlers.py", name="fails", module="shop.handlers", **names):
    """The exception that ``name`` raises in a module of an application."""
    scope = {"__name__": module, **names}
    exec(compile(code, filename, "exec"), scope)
    try:
        scope[name]()
    except BaseException as error:
        return error


ONE = "def fails():\n    raise ValueError('one')\n"


@pytest.mark.parametrize(
    "same",
    [
        "\n\n\ndef fails():\n    x = 1\n    raise ValueError('another message')\n",
        "def fails():\n    if True:\n        raise ValueError\n",
    ],
)
def test_moved_lines_and_other_messages_are_the_same_bug(same):
    assert fingerprint(caught(same)) == fingerprint(caught(ONE))


@pytest.mark.parametrize(
    "other",
    [
        "def fails():\n    raise KeyError('one')\n",
        "def deeper():\n    raise ValueError('one')\ndef fails():\n    deeper()\n",
        "def fails():\n    try:\n        {}['x']\n    except KeyError as e:\n        raise ValueError('one') from e\n",
    ],
)
def test_another_type_place_or_cause_is_another_bug(other):
    assert fingerprint(caught(other)) != fingerprint(caught(ONE))


CAUSED = "def fails():\n    try:\n        {}['x']\n    except KeyError as e:\n        raise ValueError('one') from e\n"
GROUP = "def fails():\n    raise ExceptionGroup('two', [ValueError(), KeyError()])\n"


@pytest.mark.parametrize(
    ("code", "known"),
    [(ONE, "e78f3accba0f"), (CAUSED, "4a4cf90c4774"), (GROUP, "775ede450c91")],
    ids=["plain", "caused", "group"],
)
def test_fingerprint_is_the_same_in_all_versions(code, known):
    """Dashboards and alerts name it."""
    assert [fingerprint(caught(code)) for _ in range(2)] == [known, known]


def test_code_that_is_run_as_two_modules_is_two_bugs():
    def fails_in(module):
        try:
            FunctionType(fails.__code__, {"__name__": module})()
        except ValueError as error:
            return fingerprint(error)

    def fails():
        raise ValueError

    assert fails_in("shop.one") == fails_in("shop.one") != fails_in("shop.two")


def test_generated_functions_are_told_apart_when_they_are_gone():
    """Their code is freed, and the next one comes to lie in the same place."""
    seen = {fingerprint(caught(f"def fails{n}():\n    raise ValueError\n", name=f"fails{n}")) for n in range(600)}
    assert len(seen) == 600


def test_fingerprint_keeps_nothing_of_the_error():
    class Local:
        pass

    def fails():
        local = Local()
        left.append(weakref.ref(local))
        raise ValueError

    left = []
    for _ in range(2):
        fingerprint(caught("def start(): fails()", name="start", fails=fails))
    gc.collect()
    assert [reference() for reference in left] == [None, None]


def test_fingerprint_keeps_no_class_that_a_function_made():
    """Its methods may refer to the session."""

    def fails():
        class Local(ValueError):
            pass

        left.append(weakref.ref(Local))
        raise Local

    left = []
    for _ in range(2):
        fingerprint(caught("def start(): fails()", name="start", fails=fails))
    gc.collect()
    assert [reference() for reference in left] == [None, None]


def test_class_renamed_after_its_first_error_is_another_bug():
    class Renamed(ValueError):
        pass

    def fails():
        raise Renamed

    before = fingerprint(caught("def start(): fails()", name="start", fails=fails))
    Renamed.__qualname__ = "shop.Renamed"
    assert fingerprint(caught("def start(): fails()", name="start", fails=fails)) != before


def test_middleware_of_a_library_changes_nothing():
    import contextlib

    @contextlib.contextmanager
    def around():
        yield

    def through_a_library():
        with contextlib.ExitStack() as stack:
            stack.enter_context(around())
            raise_it()

    error = caught(ONE)
    trace = error.__traceback__

    def raise_it():
        raise error.with_traceback(trace.tb_next)

    assert re.fullmatch("[0-9a-f]{12}", fingerprint(error))
    assert is_library(contextlib.__file__)


@pytest.mark.parametrize(
    ("file", "library"),
    [
        ("/app/.venv/lib/python3.12/site-packages/starlette/routing.py", True),
        ("/usr/lib/python3/dist-packages/redis/client.py", True),
        ("/usr/local/lib/python3.12/asyncio/tasks.py", True),
        ("C:\\app\\venv\\Lib\\site-packages\\x.py", True),
        ("<frozen runpy>", True),
        ("/app/rooms.py", False),
        ("/srv/python3/lib/rooms.py", False),
    ],
)
def test_libraries_of_other_machines_are_known_by_their_place(file, library):
    assert is_library(file) == library


def test_recursion_is_one_bug_however_deep():
    code = "def fails(n={n}):\n    if n == 0:\n        raise ValueError\n    fails(n - 1)\n"
    assert len({fingerprint(caught(code.replace("{n}", depth))) for depth in ("3", "30", "300")}) == 1


def test_recursion_by_way_of_another_function_is_too():
    code = (
        "def fails(n={n}):\n    if n == 0:\n        raise ValueError\n    other(n - 1)\n"
        "def other(n):\n    if n == 0:\n        raise ValueError\n    fails(n)\n"
    )
    assert fingerprint(caught(code.replace("{n}", "3"))) == fingerprint(caught(code.replace("{n}", "30")))


def test_equal_functions_of_two_modules_are_two():
    def defined_in(module, last):
        scope = {"__name__": module, "last": last}
        exec(compile("def fails():\n    last()\n", f"/app/{module}.py", "exec"), scope)
        return scope["fails"]

    def last():
        raise ValueError

    short = defined_in("shop.orders", last)
    long = defined_in("shop.orders", defined_in("shop.handlers", last))
    one, two = (caught("def start(): fails()", name="start", fails=fails) for fails in (short, long))
    assert fingerprint(one) != fingerprint(two)


def test_exception_object_raised_again_is_the_same_bug():
    error = ValueError()

    def fails():
        raise error

    seen = set()
    for _ in range(5):
        try:
            fails()
        except ValueError as caught_again:
            seen.add(fingerprint(caught_again))
    assert len(seen) == 1


def test_order_of_a_group_does_not_matter():
    first, second = caught(ONE), caught("def fails():\n    raise KeyError\n")
    groups = ExceptionGroup("g", [first, second]), ExceptionGroup("h", [second, first, second])
    assert fingerprint(groups[0]) == fingerprint(groups[1])


def test_circles_end():
    first, second = ValueError(), KeyError()
    first.__cause__, second.__context__ = second, first
    assert fingerprint(first)
    group = ExceptionGroup("g", [first])
    first.__context__ = group
    assert fingerprint(group)


def test_suppressed_context_does_not_count():
    code = "def fails():\n    try:\n        {}['x']\n    except KeyError:\n        raise ValueError('one') from None\n"
    assert fingerprint(caught(code)) == fingerprint(caught(ONE))


def test_names_of_types():
    class Local(Exception):
        pass

    assert type_name(ValueError) == "ValueError"
    assert type_name(Local) == f"{__name__}.test_names_of_types.<locals>.Local"


# A stack


def code_of(filename="/app/shop.py", name="f", lines_before=0):
    scope = {}
    exec(compile("\n" * lines_before + f"def {name}(): pass", filename, "exec"), scope)
    return scope[name].__code__, "shop"


LIBRARY = code_of("/app/.venv/lib/python3.12/site-packages/lib.py", "g")


def test_stack_of_the_same_functions_has_the_same_fingerprint():
    one = stack_fingerprint([code_of(), code_of(name="h")])
    assert re.fullmatch("[0-9a-f]{12}", one)
    assert one == stack_fingerprint([code_of(lines_before=9), LIBRARY, code_of(name="h"), code_of(name="h")])
    assert one != stack_fingerprint([code_of()])


def test_stack_of_libraries_alone_is_told_by_their_functions():
    assert stack_fingerprint([LIBRARY]) != stack_fingerprint([LIBRARY, code_of(LIBRARY[0].co_filename, "other")])
