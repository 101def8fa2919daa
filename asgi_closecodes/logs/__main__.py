"""``python -m asgi_closecodes.logs [json|yaml]`` prints the path of a file for ``uvicorn --log-config``."""

import sys
from pathlib import Path

form = sys.argv[1] if len(sys.argv) > 1 else "json"
if form not in {"json", "yaml"}:
    sys.exit(f"form must be json or yaml, not {form!r}")
print(Path(__file__).with_name(f"uvicorn.{form}"))  # noqa: T201 - its purpose
