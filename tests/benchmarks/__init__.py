"""Measurements, each beside its bare counterpart in the same run. Not collected by pytest."""
