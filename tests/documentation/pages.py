"""The pages for readers, taken apart: fenced blocks, links, anchors, inline code and tables, each with its line."""

import functools
import re
import subprocess
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
_PATTERNS = ("README.md", "**/README.md", "CHANGELOG.md", ".github/**/*.md")
_ANCHOR = re.compile(r"<[^>]*?\b(?:id|name)=[\"']([^\"']+)[\"']")
_HTML_LINK = re.compile(r"<[^>]*?\b(?:href|src|srcset)=[\"']([^\"']+)[\"']")


@dataclass(frozen=True, repr=False)
class Block:
    """A fenced block; ``line`` is that of its first line of code."""

    page: "Page"
    line: int
    language: str
    source: str
    headings: tuple[str, ...]

    def problem(self, offset: int, why: str) -> str:
        """Return what is wrong in the line ``offset`` of the block, counted from 0."""
        return f"{self.page.name}:{self.line + offset}: {why}"

    @classmethod
    def only(cls, language: str, source: str) -> "Block":
        """Return the block of a page that has no other; it begins in line 4."""
        [block] = Page.parse("README.md", f"# Page\n\n```{language}\n{source}\n```\n").blocks
        return block

    def __repr__(self):
        return f"{self.page.name}:{self.line}-{self.language or 'none'}"


@dataclass(repr=False)
class Page:
    name: str
    text: str
    blocks: list[Block] = field(default_factory=list)
    links: list[tuple[int, str]] = field(default_factory=list)
    anchors: set[str] = field(default_factory=set)
    codes: list[tuple[int, str]] = field(default_factory=list)
    columns: list[tuple[int, str, str]] = field(default_factory=list)
    """Inline code in tables: line, text of the column's head, code."""

    def __repr__(self):
        return self.name

    @classmethod
    def read(cls, path: Path) -> "Page":
        name = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
        return cls.parse(name, path.read_text(encoding="utf-8"))

    @classmethod
    def parse(cls, name: str, text: str) -> "Page":
        page = cls(name, text)
        _Parser(page).run()
        return page


class _Parser:
    def __init__(self, page: Page) -> None:
        self._page = page
        self._lines = page.text.splitlines()
        self._headings: dict[int, str] = {}
        self._slugs: Counter[str] = Counter()
        self._heads: list[str] = []
        self._column = -1
        self._in_head = False

    def run(self) -> None:
        level = 0
        for token in MarkdownIt("commonmark").enable("table").parse(self._page.text):
            match token.type:
                case "fence":
                    self._block(token)
                case "code_block":
                    self._block(token, indented=True)
                case "heading_open":
                    level = int(token.tag[1:])
                case "heading_close":
                    level = 0
                case "thead_open":
                    self._heads, self._in_head = [], True
                case "thead_close":
                    self._in_head = False
                case "tr_open":
                    self._column = -1
                case "th_open" | "td_open":
                    self._column += 1
                case "table_close":
                    self._column = -1
                case "html_block":
                    self._html(token.content, token.map[0] + 1)
                case "inline":
                    self._inline(token)
                    if level:
                        self._heading(level, token)

    def _block(self, token, *, indented=False):
        headings = tuple(self._headings[level] for level in sorted(self._headings))
        language = token.info.partition(" ")[0]
        first = token.map[0] + (1 if indented else 2)
        self._page.blocks.append(Block(self._page, first, language, token.content, headings))

    def _heading(self, level, token):
        text = "".join(child.content for child in token.children if child.type in {"text", "code_inline"})
        self._headings = {other: title for other, title in self._headings.items() if other < level} | {level: text}
        slug = github_slug(text)
        self._page.anchors.add(f"{slug}-{self._slugs[slug]}" if self._slugs[slug] else slug)
        self._slugs[slug] += 1

    def _inline(self, token):
        text = "".join(child.content for child in token.children)
        if self._in_head:
            self._heads.append(text)
        line, end = token.map[0], token.map[1]
        for child in token.children:
            needle = child.attrs.get("href") or child.attrs.get("src") or child.content
            # The first line from here on that has it: a paragraph has many lines, a token knows of none.
            line = next((number for number in range(line, end) if needle in self._lines[number]), line)
            match child.type:
                case "link_open" | "image":
                    self._page.links.append((line + 1, needle))
                case "html_inline":
                    self._html(child.content, line + 1)
                case "code_inline":
                    self._page.codes.append((line + 1, child.content))
                    if 0 <= self._column < len(self._heads) and not self._in_head:
                        self._page.columns.append((line + 1, self._heads[self._column], child.content))

    def _html(self, html, line):
        self._page.anchors.update(_ANCHOR.findall(html))
        for match in _HTML_LINK.finditer(html):
            self._page.links.append((line + html.count("\n", 0, match.start()), match[1]))


def github_slug(heading: str) -> str:
    """Return the anchor that GitHub gives to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@functools.cache
def tracked() -> frozenset[str]:
    """Return the files of the repository; of an sdist, which has no git, those that are there."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode == 0 and done.stdout:
        return frozenset(name for name in done.stdout.split("\0") if name and (ROOT / name).exists())
    return frozenset(
        path.relative_to(ROOT).as_posix()
        for path in ROOT.rglob("*")
        if path.is_file() and not {".venv", "build", "dist"}.intersection(path.relative_to(ROOT).parts)
    )


@functools.cache
def pages() -> tuple[Page, ...]:
    """Return every page that is for readers."""
    found = {path for pattern in _PATTERNS for path in ROOT.glob(pattern)}
    return tuple(Page.read(path) for path in sorted(found) if path.relative_to(ROOT).as_posix() in tracked())
