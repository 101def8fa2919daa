"""The client rule as a table; asgi_closecodes.client.Backoff and the JavaScript module's are to agree with it.

Each case: a name, the options, what happens, and the wait in seconds after each of the closes, None for giving up. What happens
is a close (code, reason), "opened", "message", or a number of seconds that pass. The random number is always 1. The option
``renew`` says that the client can renew its credentials.
"""

from __future__ import annotations

import json
import urllib.request
from typing import Any

from .servers import Running

CASES: list[tuple[str, Any, Any, Any]] = [
    ("doubles_up_to_the_cap", {}, [1006] * 8, [1, 2, 4, 8, 16, 32, 60, 60]),
    ("has_a_cap_to_choose", {"cap": 5}, [1006] * 5, [1, 2, 4, 5, 5]),
    ("overload_without_a_hint_is_no_haste", {}, [1013] * 5, [4, 4, 4, 8, 16]),
    (
        "opening_alone_does_not_reset",
        {},
        ["opened", 1013, "opened", 1013, "opened", 1013, "opened", 1013],
        [4, 4, 4, 8],
    ),
    ("a_message_resets", {}, [1006, 1006, "opened", "message", 1006, 1006], [1, 2, 1, 2]),
    ("five_seconds_reset", {}, [1006, 1006, "opened", 5, 1006, 1006], [1, 2, 1, 2]),
    ("less_than_five_seconds_do_not", {}, [1006, 1006, "opened", 4.9, 1006], [1, 2, 4]),
    ("time_without_being_open_does_not", {}, [1006, 1006, 60, 1006, "opened", 1, 1006, 60, 1006], [1, 2, 4, 8, 16]),
    ("a_message_is_forgotten_with_its_session", {}, ["opened", "message", 1006, 1006, 1006], [1, 2, 4]),
    ("a_hint_is_honoured", {}, [(1013, "try again later; retry_after=2.5; cause=full")], [2.5]),
    ("a_hint_comes_with_any_code", {}, [(1012, "service restart; retry_after=1.5")], [1.5]),
    ("a_hint_is_a_minimum", {}, [1006, 1006, 1006, (1013, "x; retry_after=2")], [1, 2, 4, 8]),
    ("a_hint_of_nothing_is_a_hint", {}, [(1013, "x; retry_after=0")], [1]),
    ("a_huge_hint_is_capped", {}, [(1013, "x; retry_after=1" + "0" * 90)], [600]),
    ("a_hint_s_cap_can_be_chosen", {"max_hint": 30}, [(1013, "x; retry_after=45")], [30]),
    *(
        (f"what_is_no_hint_is_ignored {reason}", {}, [(1013, reason)], [4])
        for reason in (
            "x; retry_after=-5",
            "x; retry_after=nan",
            "x; retry_after=inf",
            "x; retry_after=1e5",
            "x; retry_after=0x20",
            "x; retry_after=",
            "x; retry_after",
            "x; retry_after=9 9",
            "x; retry_after=soon; cause=full",
            "x; Xretry_after=9",
            "retry_after=9",
            "x; retry_after=\u0669",  # a digit elsewhere
            "x; retry_after=.",
            "x;\u00a0retry_after=9",  # a space elsewhere
            "x; retry_after=9\n",
            "",
        )
    ),
    ("the_last_hint_counts", {}, [(1013, "x; retry_after=600; retry_after=2.5; cause=full")], [2.5]),
    ("not_one_in_a_row_with_others", {}, [(1013, "x; retry_after=9; retry_after=8; retry_after=7")], [7]),
    ("what_is_no_hint_does_not_count", {}, [(1013, "x; retry_after=3; retry_after=soon")], [3]),
    ("spaces_and_unknown_parameters", {}, [(1013, "busy;a=1;  retry_after=7 ;b=2")], [7]),
    ("a_crash_grows_and_is_the_end_after_five", {}, [1011] * 5, [1, 2, 4, 8, None]),
    ("crashes_can_be_bounded_elsewhere", {"max_crashes": 2}, [1011, 1011], [1, None]),
    ("crashes_are_counted_in_a_row", {"max_crashes": 2}, [1011, 1006, 1011, 1011], [1, 2, 4, None]),
    ("a_message_before_a_crash_proves_nothing", {}, ["opened", "message", 1011] * 5, [1, 2, 4, 8, None]),
    ("five_seconds_before_a_crash_do", {}, ["opened", 5, 1011] * 7, [1] * 7),
    ("a_crash_by_its_private_code", {}, [1011, 4011, 1011, 4011, 1011], [1, 2, 4, 8, None]),
    ("overload_by_its_private_code", {}, [4013, (4013, "x; retry_after=9")], [4, 9]),
    *((f"{code}_is_retried", {}, [code, code], [1, 2]) for code in (1001, 1006, 1012, 1014, 3008, 4012)),
    *(
        (f"{code}_is_not", {}, [code], [None])
        for code in (
            1000,
            1002,
            1003,
            1005,
            1007,
            1008,
            1009,
            1010,
            1015,
            3000,
            3003,
            4000,
            4001,
            4003,
            4008,
            4029,
            4999,
        )
    ),
    *((f"{code}_is_not_renewed", {"renew": True}, [code], [None]) for code in (1000, 1008, 3003, 4000, 4001, 4003)),
    (
        "a_timeout_grows_like_a_lost_connection",
        {"renew": True},
        [3008, 1006, 3008, (3008, "x; retry_after=9")],
        [1, 2, 4, 9],
    ),
    ("3000_is_renewed_once", {"renew": True}, [3000, 3000], [0, None]),
    ("3000_is_not_renewed_even_after_long", {}, ["opened", 60, 3000], [None]),
    ("opening_does_not_renew_again", {"renew": True}, ["opened", 3000, "opened", 4.9, 3000], [0, None]),
    ("a_message_does_not_renew_again", {"renew": True}, ["opened", "message", 3000] * 2, [0, None]),
    ("time_without_being_open_does_not_renew_again", {"renew": True}, [3000, 60, 3000], [0, None]),
    ("other_closes_do_not_renew_again", {"renew": True}, [3000, 1006, 1011, 3000], [0, 1, 2, None]),
    ("five_seconds_renew_again", {"renew": True}, ["opened", 5, 3000] * 3 + ["opened", 3000], [0, 0, 0, None]),
    ("five_seconds_of_another_session_do_too", {"renew": True}, [3000, "opened", 5, 1012, 3000, 3000], [0, 1, 0, None]),
    ("3000_neither_grows_nor_resets", {"renew": True}, [1006, 1006, 3000, 1006], [1, 2, 0, 4]),
    ("3000_has_no_jitter_but_a_hint", {"renew": True, "max_hint": 30}, [(3000, "x; retry_after=2.5")], [2.5]),
    ("3000_has_a_capped_hint", {"renew": True, "max_hint": 30}, [(3000, "x; retry_after=45")], [30]),
    ("3000_may_be_told_to_go_on", {"renew": True, "retry": [3000]}, [3000, 3000, 3000], [0, 1, 2]),
    ("3000_may_be_retried_without_renewal", {"retry": [3000]}, [3000, 3000], [1, 2]),
    ("not_even_with_a_hint", {}, [(1008, "x; retry_after=3")], [None]),
    ("unless_it_is_told_so", {"retry": [1008, 4029]}, [1008, (4029, "x; retry_after=9"), 4003], [1, 9, None]),
    ("no_number_grows_without_end", {"cap": 3}, [1006] * 1100, [1, 2] + [3] * 1098),
]

IDS = [name for name, *_ in CASES]

REASONS: list[tuple[str, str | None, str | None, float | None]] = [
    ("", None, None, None),
    ("try again later; retry_after=2.5; cause=full", None, "full", 2.5),
    ("internal error; ref=1PB4XQ7Z0M8K", "1PB4XQ7Z0M8K", None, None),
    ("too many messages; cause=messages", None, "messages", None),
    ("x; cause=mine; ref=MINE; cause=full; ref=1PB4XQ7Z0M8K", "1PB4XQ7Z0M8K", "full", None),
    ("x; cause=full; cause=not valid", None, "full", None),
    ("x; retry_after=0; cause=a.b-c_9", None, "a.b-c_9", 0),
    ("busy;a=1;  cause=full ;b=2;ref=A", "A", "full", None),
    ("x; cause=" + "a" * 33, None, None, None),
    ("x; Cause=full; ref=; cause; xref=A; ref=\u00e9", None, None, None),
    ("cause=full", None, None, None),
    ("x; cause=full\n", None, None, None),
    ("x, cause:full", None, None, None),
]
"""Reasons, and the ref, the cause and the hint in seconds that a client reads from them."""

ATTEMPTS_IN_TEN_SECONDS = 5
"""Against a server that accepts and closes with 1013, hint or not."""


def plain(what: tuple[int, str] | str | float) -> list[Any]:
    """A step as a list: ["close", code, reason], ["pass", seconds], ["opened"] or ["message"]."""
    if isinstance(what, tuple):
        return ["close", *what]
    if isinstance(what, str):
        return [what]
    return ["close", what, ""] if what >= 1000 else ["pass", what]


assert json.dumps(CASES, allow_nan=False)


def seen(server: Running) -> Any:
    """Return the times of handshakes and the codes of clients by path."""
    with urllib.request.urlopen(server.url.replace("ws", "http", 1) + "/seen", timeout=10) as response:
        return json.load(response)
