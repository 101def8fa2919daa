"""Imports, in a test or what a test starts, of a name that this repository does not have.

``python -m tests.support.imports`` prints them. The type checker finds them in typed functions alone, and the
applications that tests start as processes would tell only when they run.
"""

from __future__ import annotations

import ast
import symtable
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
OURS = ("asgi_closecodes", "demo_app", "tests")


def missing(file: Path, root: Path = ROOT) -> Iterator[str]:
    """Yield a line for each name that the file imports from this repository and that is not there."""
    wanted: list[tuple[str, str | None]]
    package = file.relative_to(root).parts[:-1]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        match node:
            case ast.ImportFrom():
                above = ".".join(package[: len(package) + 1 - node.level]) if node.level else ""
                module = ".".join(filter(None, [above, node.module]))
                wanted = [(module, alias.name) for alias in node.names]
            case ast.Import():
                wanted = [(alias.name, None) for alias in node.names]
            case _:
                continue
        for module, name in wanted:
            if module.partition(".")[0] in OURS and not _has(root / module.replace(".", "/"), name):
                what = f"{module} has no {name}" if name else f"there is no module {module}"
                yield f"{file.relative_to(root).as_posix()}:{node.lineno}: {what}"


def _has(module: Path, name: str | None) -> bool:
    source = module / "__init__.py" if module.is_dir() else module.with_suffix(".py")
    if name in (None, "*"):
        return module.is_dir() or source.exists()
    return name in _names(source) or _has(module / name, None)


@cache
def _names(source: Path) -> frozenset[str]:
    """Return the names that a module binds at its top level."""
    if not source.exists():
        return frozenset()
    table = symtable.symtable(source.read_text(encoding="utf-8"), str(source), "exec")
    bound = (symbol for symbol in table.get_symbols() if symbol.is_assigned() or symbol.is_imported())
    return frozenset(symbol.get_name() for symbol in bound)


def main() -> int:
    """Print what is missing; return the exit status."""
    lines = [line for file in sorted((ROOT / "tests").rglob("*.py")) for line in missing(file)]
    print("\n".join(lines) or "Every name that is imported is there.")
    return bool(lines)


if __name__ == "__main__":
    sys.exit(main())
