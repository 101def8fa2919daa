"""Observers for metrics and traces, and a filter that keeps secrets out of Sentry."""
