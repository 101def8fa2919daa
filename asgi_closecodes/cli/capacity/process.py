"""The server's process: what it uses, and how many of it serve."""

from __future__ import annotations

import psutil

_FEW = 8
"""Files that a process may have left and yet lack: servers and event loops keep some for later."""


class Server:
    """A process and those it started, as the workers of a server.

    :raises psutil.Error: if it is not there, or may not be looked at.
    """

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self.begin()

    def begin(self) -> None:
        """Look at what it uses without sessions."""
        self._before, self._base = self._used(), self._memory()

    def _all(self) -> list[psutil.Process]:
        return [self._root, *self._root.children(recursive=True)]

    def _used(self) -> dict[int, float]:
        return {process.pid: sum(process.cpu_times()[:2]) for process in self._all()}

    def _memory(self) -> int:
        return sum(process.memory_info().rss for process in self._all())

    def grown(self) -> int | None:
        """Return by how many bytes it has grown since it began; None if it is gone."""
        try:
            return self._memory() - self._base
        except psutil.Error:
            return None

    def lacks_files(self) -> int:
        """Return how many files one of the processes may open if it has no more to open; 0 if none is known to."""
        for process in self._all():
            try:
                limit, _ = process.rlimit(psutil.RLIMIT_NOFILE)
                if 0 < limit <= process.num_fds() + _FEW:
                    return limit
            except (AttributeError, psutil.Error):  # only Linux tells
                continue
        return 0

    def workers(self) -> int:
        """Return how many processes worked since then: at least a fifth of what the busiest did; 0 if none did."""
        try:
            spent = [used - self._before.get(pid, 0.0) for pid, used in self._used().items()]
        except psutil.Error:
            return 1
        most = max(spent)
        return sum(each >= most / 5 for each in spent) if most >= 0.05 else 0
