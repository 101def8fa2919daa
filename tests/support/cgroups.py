"""Control groups as files, for sensors."""

from __future__ import annotations


def tree(root, files):
    for path, text in files.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")
    return root


def v2(path="/app", **more):
    return {"proc/self/cgroup": f"0::{path}", **more}


def group(path, *, maximum="max", high="max", current=0, anon=0, inactive=0):
    base = f"sys/fs/cgroup{path}"
    return {
        f"{base}/memory.max": maximum,
        f"{base}/memory.high": high,
        f"{base}/memory.current": current,
        f"{base}/memory.stat": f"anon {anon}\nfile 5\ninactive_file {inactive}",
    }
