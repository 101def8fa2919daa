"""``python -m tests.live.soak [SETUP ...]``: see whether anything is left, lost or stuck after peers of every kind.

Takes a minute a set-up unless told otherwise, uses 127.0.0.1 alone, and is no part of CI.
"""

import argparse
import contextlib
import random
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.servers import SETUPS, serve

from . import judge
from .controls import Heartbeat, Wrong, ask, keep_changing
from .handlers import HANDLERS
from .peers import PEERS, SecretTold, behave

AT_ONCE = 48
"""Peers; the handshakes of the controls come on top."""

BEHAVING = 0.25
"""The share of peers that behave."""


@dataclass
class Soak:
    """One set-up's: what happened, and what is wrong."""

    setup: str
    options: argparse.Namespace
    problems: Counter = field(default_factory=Counter)
    notes: Counter = field(default_factory=Counter)
    peers: Counter = field(default_factory=Counter)
    ends: dict = field(default_factory=lambda: defaultdict(Counter))
    """Of those that behaved, by handler."""
    states: list = field(default_factory=list)
    slowest: float = 0.0

    def run(self, folder):
        app = "tests.live.soak.app:" + ("bare" if self.options.bare else "wrapped")
        env = {"SOAK_SEED": str(self.options.seed), "MALLOC_ARENA_MAX": "2"}
        with serve(self.setup, app, folder, env=env) as server:
            try:
                self._run(server)
            except (OSError, Wrong) as error:
                self.problems[f"the application does not answer: {error!r}"] += 1
        log = server.log()
        self.problems.update(judge.phrases(log))
        self.notes.update({f"traceback: {what}": count for what, count in judge.tracebacks(log).items()})
        if len(self.states) == 3:
            start, warm, end = self.states
            self.problems.update(judge.left_over(end, start))
            self.problems.update(judge.growth(warm, end))
            if not self.options.bare:
                self.problems.update(judge.sums(end, log))
            if end["pid"] != start["pid"]:
                self.problems["another process answers than at the start"] += 1
            self.notes.update({f"cut off by its time limit: {name}": count for name, count in end["cut off"].items()})

    def _run(self, server):
        start = ask(server, "state")
        self.states.append(start)
        # In two parts: what the first one leaves in caches and pools is no leak.
        for seconds in (self.options.seconds * 0.3, self.options.seconds * 0.7):
            if not self._attack(server, seconds, start["pid"]):
                return
            self.states.append(self._settled(server, start))

    def _attack(self, server, seconds, pid):
        """Let the peers come for so long; return whether the server has survived."""
        is_over = threading.Event()
        heartbeat = Heartbeat(server, pid, self.options.heartbeat, is_over)
        part = len(self.states)
        threads = [heartbeat]
        if not self.options.bare and not self.options.steady:
            chance = random.Random(f"{self.options.seed}-{part}-controls")
            threads.append(threading.Thread(target=keep_changing, args=(server, chance, is_over, self.problems)))
        for number in range(AT_ONCE):
            chance = random.Random(f"{self.options.seed}-{part}-{number}")
            threads.append(threading.Thread(target=self._send_peers, args=(server, chance, is_over), daemon=True))
        for thread in threads:
            thread.start()
        is_over.wait(seconds)
        is_over.set()
        for thread in threads:
            thread.join(30)
        self.slowest = max(self.slowest, heartbeat.slowest)
        if heartbeat.problem is not None:
            self.problems[heartbeat.problem] += 1
        return heartbeat.problem is None

    def _send_peers(self, server, chance, is_over):
        while not is_over.is_set():
            name = chance.choice(self.options.handlers)
            kind = "behave" if chance.random() < BEHAVING else chance.choice(self.options.peers)
            self.peers[kind] += 1
            try:
                if kind == "behave":
                    self.ends[name][behave(server, f"/{name}", chance)] += 1
                else:
                    with contextlib.suppress(OSError, ValueError, IndexError):  # answers may be anything
                        PEERS[kind](server, f"/{name}", chance)
            except SecretTold as error:
                self.problems[f"an exception's text was told, by {name} to {kind}: {error}"] += 1
            except OSError:
                time.sleep(0.1)

    def _settled(self, server, start):
        """Return the state as soon as nothing is left, or in the end."""
        if not self.options.bare:
            ask(server, "calm")
        deadline = time.monotonic() + self.options.settle
        while any(judge.left_over(state := ask(server, "state"), start)) and time.monotonic() < deadline:
            time.sleep(1)
        return state

    def tell(self):
        for note, count in sorted(self.notes.items()):
            print(f"  {count:6} {note}")
        for name, ends in sorted(self.ends.items()):
            print(f"  {name}: {', '.join(f'{count} {end}' for end, count in ends.most_common())}", flush=True)

    def row(self):
        start, warm, end = (*self.states, *[None] * 3)[:3]
        events = {} if end is None else end["events"]

        def both(before, after, number):
            return " to ".join("-" if state is None else str(number(state)) for state in (before, after))

        return (
            self.setup,
            sum(self.peers.values()),
            *(events.get(f"Session{what}", 0) for what in ("Admitted", "Refused", "Shed", "Failed")),
            both(warm, end, lambda state: state["rss"] >> 20),
            both(start, end, lambda state: len(state["descriptors"])),
            f"{self.slowest:.2f}",
            len(self.problems),
        )


HEAD = ("set-up", "peers", "admitted", "refused", "shed", "failed", "MiB", "descriptors", "slowest beat", "problems")


def line(cells):
    return "".join(f"{cell!s:<19}" if number == 0 else f"{cell!s:>13}" for number, cell in enumerate(cells))


def main():
    options = _options()
    print(f"seed {options.seed}", line(HEAD), sep="\n", flush=True)
    is_good = True
    with tempfile.TemporaryDirectory() as temporary:
        for setup in options.setups or SETUPS:
            soak = Soak(setup, options)
            folder = (options.logs or Path(temporary)) / setup
            folder.mkdir(parents=True, exist_ok=True)
            soak.run(folder)
            print(line(soak.row()), flush=True)
            for problem, count in soak.problems.items():
                print(f"  violated (seed {options.seed}, {count} times): {problem}", flush=True)
            if options.notes:
                soak.tell()
            is_good = is_good and not soak.problems
    return 0 if is_good else 1


def _options():
    parser = argparse.ArgumentParser(prog="python -m tests.live.soak", description=__doc__.partition("\n\n")[0])
    parser.add_argument("setups", nargs="*", metavar="SETUP", help=f"by default all: {', '.join(SETUPS)}")
    parser.add_argument("--seconds", type=float, default=60, help="a set-up; the pauses come on top")
    parser.add_argument(
        "--seed", type=int, default=random.randrange(10**6), help="for the choices, not for their timing"
    )
    parser.add_argument("--heartbeat", type=float, default=5, help="seconds that a sign of life may take")
    parser.add_argument("--settle", type=float, default=40, help="seconds after which nothing may be left of the peers")
    parser.add_argument("--handler", action="append", choices=sorted(HANDLERS), help="only this one; may be repeated")
    parser.add_argument("--peer", action="append", choices=sorted(PEERS), help="only this hostile kind, likewise")
    parser.add_argument("--without", action="append", default=[], metavar="NAME", help="leave a handler or peer out")
    parser.add_argument("--steady", action="store_true", help="change nothing meanwhile")
    parser.add_argument("--bare", action="store_true", help="without the middleware: what is left is the server's own")
    parser.add_argument("--logs", type=Path, help="keep the servers' output in this folder")
    parser.add_argument("--notes", action="store_true", help="tell how the peers fared, and what the servers logged")
    options = parser.parse_args()
    for setup in options.setups:
        if setup not in SETUPS:
            parser.error(f"{setup!r} is no set-up; use one of {', '.join(SETUPS)}")
    for name in options.without:
        if name not in {*HANDLERS, *PEERS}:
            parser.error(f"--without {name}: no such handler or peer; use one of {', '.join([*HANDLERS, *PEERS])}")
    options.handlers = [name for name in options.handler or HANDLERS if name not in options.without]
    options.peers = [name for name in options.peer or PEERS if name not in options.without]
    return options


if __name__ == "__main__":
    sys.exit(main())
