"""A small application whose every button shows one close code: ``python -m demo_app``."""
