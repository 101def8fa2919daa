"""Links of the pages lead somewhere."""

import pytest

from . import links
from .links import broken_links
from .pages import Page, github_slug, pages


@pytest.mark.parametrize("page", pages(), ids=str)
def test_page_links_resolve(page):
    assert list(broken_links(page)) == []


@pytest.mark.parametrize(
    ("link", "why"),
    [
        ("nowhere.md", "there is no such file"),
        ("#nowhere", "README.md has no such heading"),
        ("CHANGELOG.md#nowhere", "CHANGELOG.md has no such heading"),
        ("tests/documentation#nowhere", "the folder has no README.md"),
        ("asgi_closecodes#nowhere", "asgi_closecodes/README.md has no such heading"),
        ("pyproject.toml#L100000", "there is no such line"),
        ("../elsewhere.md", "points outside of the repository"),
        ("/README.md", "points outside of the repository"),
        ("ftp://example.com", "ftp is not one of http, https, mailto"),
    ],
)
def test_broken_link_is_named_with_its_line(link, why):
    page = Page.parse("README.md", f"# Here\n\nIn one line,\nand in [another]({link}).\n")
    assert list(broken_links(page)) == [f"README.md:4: {link}: {why}"]


def test_untracked_file_is_a_broken_link(monkeypatch):
    monkeypatch.setattr(links, "tracked", frozenset)
    assert list(broken_links(Page.parse("README.md", "[it](LICENSE)\n"))) == ["README.md:1: LICENSE: is not tracked"]


def test_link_to_what_no_sdist_has_is_broken(monkeypatch):
    page = Page.parse("README.md", "[it](LICENSE)\n")
    monkeypatch.setattr(links, "_shipped", lambda: {"README.md"})
    assert list(broken_links(page)) == ["README.md:1: LICENSE: is not in the sdist"]
    monkeypatch.setattr(links, "_shipped", lambda: {"asgi_closecodes"})
    assert list(broken_links(page)) == [], "neither is the page"


def test_links_that_lead_somewhere_pass():
    text = """
# A `heading` of mine: 1 & 2!
## Same
## Same
<a id="place"></a> <a href="#same">up</a> [one](#a-heading-of-mine-1--2) [two](#same-1) [three](#place)
[four](https://example.com/x#y) [five](CHANGELOG.md#unreleased) [six](asgi_closecodes/session) [seven][7]
[eight](pyproject.toml#L1) [nine](asgi_closecodes#to-add-something)

[7]: LICENSE
"""
    page = Page.parse("README.md", text)
    assert len(page.links) == 10
    assert list(broken_links(page)) == []


@pytest.mark.parametrize(
    ("heading", "slug"),
    [("What it changes", "what-it-changes"), ("`a_b`, c – d", "a_b-c--d"), ("Größe: 1.5", "größe-15")],
)
def test_slug_is_github_s(heading, slug):
    assert github_slug(heading) == slug
