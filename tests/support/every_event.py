"""One event of each class."""

from asgi_closecodes import Close, events
from asgi_closecodes.logs.messages import LINES

FACTS = events.SessionFacts(
    id="0123456789ab",
    route="/rooms/{id}",
    path="/rooms/5",
    scheme="ws",
    client=("192.0.2.1", 50000),
    phase="open",
    duration=1.5,
    received=2,
    sent=3,
)
CLOSE = Close(1013, "try again later")
EVENTS = [
    events.SessionFailed(
        FACTS,
        "ABCDEFGHJKMN",
        "0123456789ab",
        ValueError("x"),
        Close(1011, "internal error; ref=ABCDEFGHJKMN"),
        True,
    ),
    events.CloseFailed(FACTS, CLOSE, None),
    events.CloseRepaired(FACTS, 1006, Close(1011)),
    events.GateFailed(FACTS, "Mine", ValueError("x"), "admit", True),
    events.CallbackFailed("exceptions", ValueError("x")),
    events.BackgroundFailed("a_function", ValueError("x")),
    events.SensorUnknown("memory", "OSError: x"),
    events.SessionRefused(FACTS, CLOSE, "max_sessions", "full", 2.34, "close", 5, 5),
    events.SessionShed(FACTS, CLOSE, "full", 2.0),
    events.GateSaturated("max_sessions", "full", 5, 5),
    events.GateRecovered("max_sessions", "full", 7, 3.5),
    events.SessionAbandoned(FACTS, CLOSE, 60.0),
    events.SheddingFutile("max_memory", "memory", 1.4, 1.0, 195),
    events.LoopStalled(1.25, "0123456789ab", 3, "Stack", "/app/main.py", 42, "handle", FACTS),
    events.DrainStarted(5, 30.0),
    events.DrainFinished(5, 29.5, 2),
    events.SigtermDrainUnavailable("reasons"),
    events.DrainWindowTooLong(window=30.0, limit=30.0),
    events.SessionAdmitted(FACTS),
    events.SessionOpened(FACTS),
    events.SessionClosed(FACTS, CLOSE, "handler"),
    events.SessionClosedWithError(FACTS, Close(4500, "log in")),
    events.RouteNotFound(FACTS),
    events.LimitsChanged({"max_sessions": 5}),
    events.FewFiles(1000, 20, 1024, 1084),
    events.UnknownSetting("CLOSECODES_X", None),
    events.SettingIgnored("CLOSECODES_X", "it is given in code too"),
    events.LogsSuppressed("closecodes.session.refused", 5),
    events.ClusterSynced("chat", 1, 5, 10, 3, 6, 2, 0.0, 30.0, False),
    events.ClusterSyncFailed("chat", "ConnectionError"),
    events.ClusterUnreachable("chat", "ConnectionError", 12.34, "share"),
    events.ClusterFallback("chat", "share"),
    events.ClusterRecovered("chat", 7, 3.21),
    events.ClusterRelearning("chat", 30.0),
    events.ClusterMisconfigured("chat", "limits differ"),
]

LOGGED = {event.event_name: event for event in EVENTS if type(event) in LINES}
"""Events that are logged, by the names of their records."""
