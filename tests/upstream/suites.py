"""What is run, and which tests cannot pass behind the middleware."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Suite:
    """The tests of one project: all files that speak of WebSockets."""

    name: str
    extras: tuple[str, ...]
    """What they import and this project's own extra ``test`` lacks."""
    leave_out: tuple[str, ...] = ()
    expected_red: dict[str, str] = field(default_factory=dict)
    """Test id, with or without its parameters (then for all of them): why it cannot pass."""


SUITES = (
    Suite(
        "starlette",
        extras=("httpx2", "blockbuster", "itsdangerous", "jinja2", "python-multipart", "opentelemetry-sdk"),
    ),
    Suite(
        "uvicorn",
        extras=("httpx2", "trustme", "pytest-mock", "a2wsgi", "zttp"),
    ),
    Suite(
        "fastapi",
        extras=("httpx2", "python-multipart", "opentelemetry-sdk", "dirty-equals", "inline-snapshot"),
    ),
)
