"""Compares what ``asgi-closecodes capacity`` finds with a sweep by hand."""
