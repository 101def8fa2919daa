"""What is released: the page for the index, the sdist, the wheel."""

import posixpath
import re
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
CODE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Build the sdist, and the wheel from it; return the paths of both."""
    folder = tmp_path_factory.mktemp("dist")
    run("build", "--no-isolation", "--outdir", folder, ".")
    [sdist], [wheel] = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def page(built):
    """Return the page for the index."""
    with zipfile.ZipFile(built[1]) as wheel:
        [metadata] = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
        return message_from_bytes(wheel.read(metadata)).get_payload(decode=True).decode()


def run(module, *arguments):
    done = subprocess.run([sys.executable, "-m", module, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


class Targets(HTMLParser):
    """What the links and pictures of a page in Markdown lead to."""

    def __init__(self, markdown):
        super().__init__()
        self.found = []
        self.feed(MarkdownIt("commonmark").enable("table").render(markdown))

    def handle_starttag(self, tag, attributes):
        self.found += [value for name, value in attributes if name in ("href", "src", "srcset")]


def is_relative(target):
    return re.match(r"[a-z]+:", target) is None


def test_index_page_has_no_relative_link(page):
    assert [target for target in Targets(page).found if is_relative(target)] == []


def test_index_page_links_to_the_version_of_the_wheel(built, page):
    version = built[1].name.split("-")[1]
    ours = [target for target in Targets(page).found if re.search(r"/asgi-closecodes/(blob|raw)?/?v?\d", target)]
    assert ours
    assert [target for target in ours if f"/v{version}/" not in target] == []


def test_index_page_has_the_code_as_it_is(page):
    code = CODE.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    assert code
    assert CODE.findall(page)[: len(code)] == code


def test_index_page_ends_with_the_newest_changes(page):
    versions = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert f"\n## Changes: {versions[0]}\n" in page
    assert not any(f"## {version}" in page for version in versions)


def test_what_is_built_passes_the_checks_of_the_index(built):
    run("twine", "check", "--strict", *built)


def test_wheel_has_what_a_wheel_should_have(built):
    run("check_wheel_contents", built[1])


def test_wheel_has_every_file_of_the_package(built):
    """Types, schema, dashboards, scripts of Redis, the page of the status and the JavaScript are files beside the code."""
    with zipfile.ZipFile(built[1]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "asgi_closecodes").rglob("*") if path.is_file()}
    assert names == {name for name in files if "__pycache__" not in name}


def test_sdist_has_what_its_pages_link_to(built):
    with tarfile.open(built[0]) as sdist:
        files = {name.partition("/")[2] for name in sdist.getnames()}
        pages = {
            name: sdist.extractfile(f"{built[0].name[:-7]}/{name}").read().decode()
            for name in files
            if name.endswith(".md")
        }
    folders = {folder for name in files for folder in parents(name)}
    missing = [
        f"{name}: {target}"
        for name, text in pages.items()
        for target in Targets(text).found
        if is_relative(target) and path_of(name, target) not in files | folders | {"."}
    ]
    assert len(pages) > 3
    assert missing == []


def parents(name):
    while name := posixpath.dirname(name):
        yield name


def path_of(page, target):
    """Return the path, below the root, that a relative link of a page leads to."""
    path = target.partition("#")[0]
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), path)) if path else page
