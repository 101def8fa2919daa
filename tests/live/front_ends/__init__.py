"""Real clients of other projects at a server that is full, by hand: ``python -m tests.live.front_ends [DIRECTORY]``."""
