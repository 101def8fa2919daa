"""Names of users' objects for errors and logs: never ``repr()``, which may contain a key or a password."""

from __future__ import annotations

import functools
import types

_MAX_NAME_CHARS = 200
_MAX_TEXT_CHARS = 80
_MAX_ASSIGNMENT_CHARS = 20
_MAX_WRAPPERS = 8

_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, types.WrapperDescriptorType, types.MethodDescriptorType)


def name_of(thing: object) -> str:
    """Return the qualified name of a function, a method or a class, else of the object's class.

    No code of the object runs: its attributes may raise or contain a secret.
    """
    for _ in range(_MAX_WRAPPERS):
        kind = type(thing)
        if issubclass(kind, functools.partial):
            thing = functools.partial.func.__get__(thing)
        elif kind is types.MethodType:
            thing = thing.__func__  # type: ignore[attr-defined]
        else:
            break
    if kind in _FUNCTIONS:
        return _qualified_name(getattr(thing, "__module__", None), thing.__qualname__)  # type: ignore[attr-defined]
    cls = thing if issubclass(kind, type) else kind
    try:
        module = type.__dict__["__module__"].__get__(cls)
    except AttributeError:
        module = None
    return _qualified_name(module, type.__dict__["__qualname__"].__get__(cls))


def shown(value: object) -> str:
    """Return ``value`` for an error text: numbers and short words, else only its name or class.

    Long texts, and those with the punctuation of URLs or parameters, may contain a password.
    """
    kind = type(value)
    if value is None or kind is bool:
        return repr(value)
    if issubclass(kind, int):
        try:
            text = int.__repr__(value)
        except ValueError:  # more than 4300 digits
            return f"<{name_of(value)}>"
        return text if len(text) <= _MAX_TEXT_CHARS else f"{text[: _MAX_TEXT_CHARS - 1]}…"
    if issubclass(kind, float):
        return float.__repr__(value)
    if kind is str:
        assert isinstance(value, str)
        if (
            len(value) > _MAX_TEXT_CHARS
            or "@" in value
            or "//" in value
            or ("=" in value and len(value) > _MAX_ASSIGNMENT_CHARS)
        ):
            return f"<str of {len(value)} characters>"
        return repr(value)
    if issubclass(kind, type):
        return f"<class '{name_of(value)}'>"
    if kind in {*_FUNCTIONS, types.MethodType} or issubclass(kind, functools.partial):
        return name_of(value)
    return f"<{name_of(value)} object>"


def _qualified_name(module: object, name: str) -> str:
    text = name if module in {None, "builtins"} or type(module) is not str else f"{module}.{name}"
    return text[:_MAX_NAME_CHARS] if text.isprintable() else ascii(text[:_MAX_NAME_CHARS])[1:-1]
