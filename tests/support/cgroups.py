"""Control groups as files, for sensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def tree(root: Path, files: Mapping[str, object]) -> Path:
    for path, text in files.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")
    return root


def v2(path: str = "/app", **more: str) -> dict[str, str]:
    return {"proc/self/cgroup": f"0::{path}", **more}


def group(
    path: str,
    *,
    maximum: str | int = "max",
    high: str | int = "max",
    current: int = 0,
    anon: int = 0,
    inactive: int = 0,
) -> dict[str, str | int]:
    base = f"sys/fs/cgroup{path}"
    return {
        f"{base}/memory.max": maximum,
        f"{base}/memory.high": high,
        f"{base}/memory.current": current,
        f"{base}/memory.stat": f"anon {anon}\nfile 5\ninactive_file {inactive}",
    }
