"""What changes while the peers are at it, and whether the event loop turns."""

import http.client
import json
import os
import signal
import threading
import time
from urllib.parse import quote


class Wrong(Exception):
    """The application could not do what it was asked for."""


def ask(server, name="", *, within=60, **options):
    """Ask the application for something; return its answer.

    :raises Wrong: if it failed.
    :raises OSError: if it did not answer in time.
    """
    connection = http.client.HTTPConnection(*server.address, timeout=within)
    try:
        connection.request("GET", f"/{name}?{quote(json.dumps(options))}")
        response = connection.getresponse()
        body = response.read()
    except http.client.HTTPException as error:
        raise ConnectionError(f"no answer to {name}: {error!r}") from error
    finally:
        connection.close()
    if response.status != 200:
        raise Wrong(f"{name}({options}): {body.decode(errors='replace')}")
    return json.loads(body)


def change(random):
    """Return the name and the options of one change."""
    seconds = random.uniform(0, 1)
    return random.choice(
        [
            ("update", {"max_sessions": random.choice([None, None, 0, 20, 40])}),
            ("update", {"max_sessions": None, "handshakes_per_second": None}),
            ("update", {"max_sessions_per_client": random.choice([None, None, 10, 40])}),
            ("update", {"when_client_full": random.choice(["refuse", "replace_oldest"])}),
            (
                "update",
                {"max_handshakes_in_progress": random.choice([None, 5, 20]), "handshake_timeout": 0.2 + seconds},
            ),
            ("update", {"handshakes_per_second": random.choice([None, None, 20, 1000])}),
            ("update", {"max_loop_lag": random.choice([None, 0.01, 0.2])}),
            ("update", {"max_cpu": random.choice([None, 0.5, 1.0])}),
            ("update", {"max_memory": random.choice([None, None, "1MiB", "99%"])}),
            ("update", {"shadow": random.choice(["none", "all", "max_sessions", "max_sessions_per_client"])}),
            ("update", {"shed_order": random.choice(["never", "newest", "oldest", "idle", "by_age", "by_a_bug"])}),
            ("update", {"shed_rate": random.choice([None, 1, 20, 1000]), "shed_grace": random.choice([0, 0.1, 1])}),
            ("update", {"reject_with": random.choice(["close", "http", "auto"])}),
            ("update", {"max_refusals_per_second": random.choice([None, 0, 5, 200])}),
            ("update", {"gate_failure": random.choice(["open", "closed"])}),
            ("update", {"error_code": random.choice([1011, 4011]), "try_again_code": random.choice([1013, 4013])}),
            (
                "update",
                {"log_burst": random.choice([None, 1, 10]), "log_per_minute": random.choice([None, 0, 10, 1e6])},
            ),
            ("update", {"log_path": random.choice(["redacted", "raw", "off"])}),
            ("update", {"log_client": random.choice(["full", "truncated", "hashed", "off"])}),
            ("drain", {"window": random.choice([0, 0.5, 2]), "seconds": seconds}),
            ("shed", {"count": random.randrange(1, 20)}),
            ("shed", {"count": random.randrange(1, 20)}),
            ("behave", {"mood": random.choice(["works", "refuses", "fails", "fails at the end", "dawdles"])}),
            ("behave", {"raises": random.random() < 0.5}),
            ("behave", {"when_full": random.choice(["refuse", "replace_oldest"])}),
            ("stall", {"seconds": seconds / 2}),
        ]
    )


def keep_changing(server, random, is_over, problems):
    """Change something every now and then, until it is over."""
    while not is_over.wait(random.uniform(0.1, 1)):
        name, options = change(random)
        try:
            ask(server, name, **options)
        except Wrong as error:
            problems[f"failed: {error}"] += 1
        except OSError:
            pass  # the heartbeat tells


class Heartbeat(threading.Thread):
    """Asks four times a second for a sign of life, until one takes too long; then all is over."""

    def __init__(self, server, pid, limit, is_over):
        super().__init__(daemon=True)
        self.slowest = 0.0
        self.problem = None
        self._server, self._pid, self._limit, self._is_over = server, pid, limit, is_over

    def run(self):
        while self.problem is None and not self._is_over.wait(0.25):
            asked_at = time.monotonic()
            try:
                ask(self._server, within=self._limit)
            except OSError as error:
                self.problem = f"no sign of life within {self._limit} s: {error!r}"
                self._find_out()
            self.slowest = max(self.slowest, time.monotonic() - asked_at)
        self._is_over.set()

    def _find_out(self):
        """Have the process write to its log where it is."""
        try:
            for _ in range(3):
                os.kill(self._pid, signal.SIGUSR1)
                time.sleep(0.3)
        except ProcessLookupError:
            self.problem = "the process has died"
