"""One of every kind of event, with the ``event.name``, the logger and the level of its record."""

from asgi_closecodes import Close, events

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
EVENTS = {
    "closecodes.session.exception": (
        events.SessionFailed(
            FACTS,
            "ABCDEFGHJKMN",
            "0123456789ab",
            ValueError("x"),
            Close(1011, "internal error; ref=ABCDEFGHJKMN"),
            True,
        ),
        "error",
        "ERROR",
    ),
    "closecodes.session.close_failed": (events.CloseFailed(FACTS, CLOSE, None), "error", "WARNING"),
    "closecodes.session.close_repaired": (events.CloseRepaired(FACTS, 1006, Close(1011)), "error", "WARNING"),
    "closecodes.gate.failed": (events.GateFailed(FACTS, "Mine", ValueError("x"), "admit", True), "error", "ERROR"),
    "closecodes.callback.failed": (events.CallbackFailed("exceptions", ValueError("x")), "error", "ERROR"),
    "closecodes.session.refused": (
        events.SessionRefused(FACTS, CLOSE, "MaxSessions", "full", 2.34, "close", 5, 5),
        "gate",
        "WARNING",
    ),
    "closecodes.session.shed": (events.SessionShed(FACTS, CLOSE, "full", 2.0), "gate", "WARNING"),
    "closecodes.gate.saturated": (events.GateSaturated("MaxSessions", "full", 5, 5), "gate", "WARNING"),
    "closecodes.gate.recovered": (events.GateRecovered("MaxSessions", "full", 7, 3.5), "gate", "INFO"),
    "closecodes.drain.started": (events.DrainStarted(5, 30.0), "gate", "INFO"),
    "closecodes.drain.finished": (events.DrainFinished(5, 29.5), "gate", "INFO"),
    "closecodes.drain.unavailable": (events.SignalLeftAlone("reasons"), "config", "WARNING"),
    "closecodes.session.opened": (events.SessionOpened(FACTS), "session", "DEBUG"),
    "closecodes.session.closed": (events.SessionClosed(FACTS, CLOSE, "handler"), "session", "DEBUG"),
    "closecodes.session.not_found": (events.RouteNotFound(FACTS), "session", "INFO"),
    "closecodes.config.limits": (events.LimitsSet({"max_sessions": 5}), "config", "INFO"),
    "closecodes.config.ignored": (events.SettingIgnored("CLOSECODES_X", None), "config", "WARNING"),
    "closecodes.cluster.away": (events.ClusterAway("chat", "ConnectionError", 12.34, "share"), "gate", "WARNING"),
    "closecodes.cluster.fallback": (events.ClusterFallback("chat", "share"), "gate", "WARNING"),
    "closecodes.cluster.back": (events.ClusterBack("chat", 7, 3.21), "gate", "INFO"),
    "closecodes.cluster.learning": (events.ClusterLearning("chat", 30.0), "gate", "WARNING"),
    "closecodes.cluster.misconfigured": (events.ClusterMisconfigured("chat", "limits differ"), "gate", "WARNING"),
}
