"""Processes of the server: memory, open files, and how many of them serve."""

from __future__ import annotations

import psutil

_FEW = 8
"""Free files with which a process already lacks files: servers and event loops reserve some."""


class Server:
    """Process of a server and its child processes, as its workers.

    :raises psutil.Error: if it does not exist, or access is denied.
    """

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self.begin()

    def begin(self) -> None:
        """Measure its usage without sessions."""
        self._before, self._base = self._used(), self._memory()

    def _all(self) -> list[psutil.Process]:
        return [self._root, *self._root.children(recursive=True)]

    def _used(self) -> dict[int, float]:
        return {process.pid: sum(process.cpu_times()[:2]) for process in self._all()}

    def _memory(self) -> int:
        return sum(process.memory_info().rss for process in self._all())

    def grown(self) -> int | None:
        """Return by how many bytes it has grown since :meth:`begin`; None if it is gone."""
        try:
            return self._memory() - self._base
        except psutil.Error:
            return None

    def lacks_files(self) -> int:
        """Return the open files limit of a process that has used it up; 0 if none is known to."""
        for process in self._all():
            try:
                limit, _ = process.rlimit(psutil.RLIMIT_NOFILE)
                if 0 < limit <= process.num_fds() + _FEW:
                    return limit
            except (AttributeError, psutil.Error):  # only Linux has the limit
                continue
        return 0

    def workers(self) -> int:
        """Return how many processes worked since then: at least a fifth as much as the busiest; 0 if none did."""
        try:
            spent = [used - self._before.get(pid, 0.0) for pid, used in self._used().items()]
        except psutil.Error:
            return 1
        most = max(spent)
        return sum(each >= most / 5 for each in spent) if most >= 0.05 else 0
