"""Names on the pages, and tables that are generated, are those of the code."""

import pytest

from tests.support import generated

from .names import unknown_names
from .pages import Page, pages
from .tables import stale_tables


@pytest.mark.parametrize("page", pages(), ids=str)
def test_page_names_what_there_is(page):
    assert list(unknown_names(page)) == []


@pytest.mark.parametrize("page", pages(), ids=str)
def test_generated_table_is_what_the_code_says(page):
    assert list(stale_tables(page)) == []


@pytest.mark.parametrize("name", [name for name in vars(generated) if name.startswith("table_of_")])
def test_generated_table_is_on_a_page(name):
    marker = f"<!-- {name.removeprefix('table_of_').replace('_', ' ')} -->\n"
    assert any(marker in page.text for page in pages())


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("`CLOSECODES_MAX_SESSION=5`", "there is no setting CLOSECODES_MAX_SESSION"),
        ("set CLOSECODES_DEBUGG.", "there is no setting CLOSECODES_DEBUGG"),
        ("CLOSECODES_MAX_LOOP_LAG=much", "max_loop_lag = 'much' (or CLOSECODES_MAX_LOOP_LAG): "),
        ("`asgi-closecodes[prometheus,sentry]`", "there is no extra sentry"),
        ("`asgi_closecodes.gates.sensor`", "there is no asgi_closecodes.gates.sensor"),
        ("`asgi_closecodes.errors`", "there is no asgi_closecodes.errors"),
        ("`closecodes_session_active`", "there is no metric closecodes_session_active"),
        ("`guard.close_all_sessions()`", "close_all_sessions is nowhere in the code"),
        ("`MaxSessionsPerPlanet(5, key=…)`", "MaxSessionsPerPlanet is nowhere in the code"),
        ("`closecodes.session.initiator`", "there is no event or key closecodes.session.initiator"),
    ],
)
def test_unknown_name_is_named_with_its_line(text, problem):
    [seen] = unknown_names(Page.parse("README.md", f"# Page\n\nIt is\n{text}\n"))
    assert seen.startswith(f"README.md:4: {problem}")


def test_unknown_setting_in_a_table_is_named_with_its_line():
    table = "| gate | setting |\n|---|---|\n| `A` | `max_sessions` |\n| `max_size` | `max_everybody` |\n"
    seen, _ = unknown_names(Page.parse("README.md", table))
    assert seen == "README.md:4: there is no setting max_everybody"


def test_known_names_pass():
    text = """
`CLOSECODES_MAX_MEMORY=80%`, `CLOSECODES_MAX_SESSIONS=$N`, `_ASGI_CLOSECODES_COMPLETE`, `CLOSECODES_`,
`asgi-closecodes[cli]`, `asgi_closecodes.gates.MaxSessions`, the loggers `asgi_closecodes.error` and `asgi_closecodes`,
`closecodes_admission_seconds_bucket`, `closecodes_serve`, `closecodes.sessions.closed`, `closecodes.drain.*`,
`closecodes.errors.suppressed`, `closecodes.error.id`, [a file](asgi_closecodes/cli/logs/closecodes.lnav.json)
"""
    assert list(unknown_names(Page.parse("README.md", text))) == []


def test_table_that_differs_is_named_with_its_line():
    rows = generated.table_of_metrics()
    stale = [*rows[:2], rows[2].replace("sum", "gauge"), *rows[3:]]
    text = "\n".join(["# Page", "", "<!-- metrics -->", *stale, "<!-- end of metrics -->", ""])
    [seen] = stale_tables(Page.parse("README.md", text))
    assert seen.startswith("README.md:6: run python -m tests.support.generated: | `closecodes_sessions_active` | gauge")
    assert list(stale_tables(Page.parse("README.md", text.replace(stale[2], rows[2])))) == []


@pytest.mark.parametrize(
    ("lines", "line", "why"),
    [
        (["<!-- metrics -->", "| a |"], 2, "<!-- end of metrics --> is missing"),
        (["", "<!-- colours -->", "<!-- end of colours -->"], 3, "tests.support.generated makes no table of colours"),
        (["<!-- events -->", "<!-- end of events -->"], 3, "run python -m tests.support.generated: None should be"),
    ],
)
def test_table_that_is_cut_is_named_with_its_line(lines, line, why):
    [seen] = stale_tables(Page.parse("README.md", "\n".join(["# Page", *lines])))
    assert seen.startswith(f"README.md:{line}: {why}")
