"""The code of README.md, which tests run as it stands there."""

import re

from asgi_closecodes import CloseCodeMiddleware, Settings, TryAgainLater
from tests.support.servers import ROOT

README = (ROOT / "asgi_closecodes/integrations/README.md").read_text()


def code_of(title):
    """Return the code of the recipe of ``title``."""
    [code] = re.findall(rf"^### {title}\n.*?^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    return code


def follow(title, **names):
    """Run the recipe of ``title`` with ``names``, and return its application."""
    names = {one.__name__: one for one in (CloseCodeMiddleware, Settings, TryAgainLater)} | names
    exec(compile(code_of(title), f"README.md of {title}", "exec"), names)
    return names["app"]
