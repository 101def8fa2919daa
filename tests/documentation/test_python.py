"""Python on the pages runs."""

import pytest

from .pages import ROOT, Page, pages
from .python_blocks import problems

pytestmark = pytest.mark.slow

BROKEN = """# A page

```python
one = 1 +
```

```python
from asgi_closecodes import Guard

guard = Guard()
guard.drain(everybody=True)
```

## Another guard

```python
def later():
    return guard


await guard.drain(0)
raise ValueError(guard.draining)
```

```python
def later():
    return one, nobody_knows, [later for _ in later.__name__]
```

```python
raise SystemExit
```

```python
def test_half():
    half = 1 / 2
    assert half == 1
```

```python
import warnings

warnings.warn("use new()", DeprecationWarning)
```
"""


WHOLE = """
# Page

## One

```python
import sys

before = len(sys.modules)


def later():
    return before, __name__


def earlier():
    return "of the first section"


from prometheus_client import Counter

counter = Counter("of_the_page", "")
```

```python
app.add_middleware(object)
await session.shed("kicked")
assert later()[1] == "page"
```

A program of its own:

```python
from prometheus_client import Counter

counter = Counter("of_the_page", "")
app = counter
```

```python
app.inc()
```

## Another one

```python
app.post  # the reader's own, not that counter
assert earlier() == "of the first section"


def earlier():
    return "of this section"
```

```python
assert earlier() == "of this section"
```

```python
from asgi_closecodes.client import connect

async for session in connect("ws://127.0.0.1:8000/chat"):
    async with session:
        await session.send_text("hello")
        received = [message async for message in session]
assert received == ["hello"], received
```
"""


ENDING = """
```python
import os

os._exit(3)
```
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Run all pages at once: what they use is imported once."""
    paths = {page.name: ROOT / page.name for page in pages()}
    for name, text in {"broken.md": BROKEN, "whole.md": WHOLE, "ending.md": ENDING}.items():
        paths[name] = tmp_path_factory.mktemp("pages") / name
        paths[name].write_text(text)
    by_path = problems(*paths.values())
    return {name: by_path[str(path)] for name, path in paths.items()}


@pytest.mark.parametrize("page", pages(), ids=str)
def test_python_block_runs(found, page):
    assert found[page.name] == []


def test_broken_python_is_named_with_its_line(found):
    first, *others = found["broken.md"]
    assert first.startswith("broken.md:4: invalid syntax")
    assert others == [
        "broken.md:11: TypeError: Guard.drain() got an unexpected keyword argument 'everybody'",
        "broken.md:22: ValueError: True",
        "broken.md:27: undefined name 'one'",
        "broken.md:27: undefined name 'nobody_knows'",
        "broken.md:31: SystemExit",
        "broken.md:37: assert 0.5 == 1",
        "broken.md:43: DeprecationWarning: use new()",
    ]


def test_names_come_from_the_page_or_its_reader(found):
    assert found["whole.md"] == []


def test_example_that_ends_the_process_is_a_problem(found):
    assert found["ending.md"] == ["ending.md:3: the example ends its process"]


def test_pages_are_all_that_is_for_readers():
    names = {page.name for page in pages()}
    assert {"README.md", "CHANGELOG.md", "asgi_closecodes/README.md"} <= names


def test_blocks_in_lists_and_quotes_have_their_lines():
    page = Page.parse("README.md", "# A\n\n* one:\n\n  ```python\n  x = 1\n  ```\n\n> ```sh\n> ls\n> ```\n")
    assert [(block.line, block.language, block.source) for block in page.blocks] == [
        (6, "python", "x = 1\n"),
        (10, "sh", "ls\n"),
    ]
