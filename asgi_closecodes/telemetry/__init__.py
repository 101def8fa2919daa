"""Observers that turn events into metrics and traces, and what keeps secrets out of Sentry."""
