"""Tables on the pages that are generated from the code, between ``<!-- name -->`` and ``<!-- end of name -->``."""

import re
from collections.abc import Iterator
from itertools import zip_longest

from tests.support import generated

from .pages import Page


def stale_tables(page: Page) -> Iterator[str]:
    """Yield the first row of each generated table that is not what the code says."""
    lines = page.text.splitlines()
    for start, line in enumerate(lines, 1):
        if not (marker := re.fullmatch(r"<!-- (?!end of )([\w ]+) -->", line)):
            continue
        name, end = marker[1], f"<!-- end of {marker[1]} -->"
        make = getattr(generated, f"table_of_{name.replace(' ', '_')}", None)
        if make is None:
            if end in lines:
                yield f"{page.name}:{start}: tests.support.generated makes no table of {name}"
            continue
        if end not in lines[start:]:
            yield f"{page.name}:{start}: {end} is missing"
            continue
        rows = lines[start : lines.index(end, start)]
        for number, (seen, expected) in enumerate(zip_longest(rows, make()), start + 1):
            if seen != expected:
                yield f"{page.name}:{number}: run python -m tests.support.generated: {seen} should be {expected}"
                break
