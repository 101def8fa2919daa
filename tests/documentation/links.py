"""Links between the pages: the files that they name are tracked and in the sdist, and have the anchors."""

import functools
import posixpath
import re
import tomllib
from collections.abc import Iterator
from urllib.parse import unquote, urlsplit

from .pages import ROOT, Page, tracked

ELSEWHERE = {"http", "https", "mailto"}


def broken_links(page: Page) -> Iterator[str]:
    """Yield what is wrong with the links of ``page``."""
    for line, link in page.links:
        if why := _broken(page, link):
            yield f"{page.name}:{line}: {link}: {why}"


def _broken(page, link):
    parts = urlsplit(link)
    if parts.scheme:
        return None if parts.scheme in ELSEWHERE else f"{parts.scheme} is not one of {', '.join(sorted(ELSEWHERE))}"
    target = posixpath.normpath(posixpath.join(posixpath.dirname(page.name), unquote(parts.path)))
    if not parts.path:
        target = page.name
    if target.startswith(("/", "..")):
        return "points outside of the repository"
    is_folder = any(name.startswith(f"{target}/") for name in tracked()) or target == "."
    if not is_folder and target != page.name and target not in tracked():
        return "is not tracked" if (ROOT / target).exists() else "there is no such file"
    if _is_shipped(page.name) and not _is_shipped(target):
        return "is not in the sdist"
    if parts.fragment:
        return _missing_anchor(page, posixpath.join(target, "README.md") if is_folder else target, parts.fragment)
    return None


def _missing_anchor(page, target, fragment):
    if not target.endswith(".md"):
        last = re.fullmatch(r"L\d+(?:-L(\d+))?", fragment)
        lines = (ROOT / target).read_text(encoding="utf-8").count("\n")
        return None if last and int(re.findall(r"\d+", fragment)[-1]) <= lines else "there is no such line"
    if target != page.name and target not in tracked():
        return "the folder has no README.md"
    anchors = page.anchors if target == page.name else Page.read(ROOT / target).anchors
    return None if fragment in anchors else f"{target} has no such heading"


@functools.cache
def _shipped():
    with (ROOT / "pyproject.toml").open("rb") as file:
        included = tomllib.load(file)["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    return {".", "pyproject.toml", *(name.strip("/") for name in included)}


def _is_shipped(name):
    return any(name == part or name.startswith(f"{part}/") for part in _shipped())
