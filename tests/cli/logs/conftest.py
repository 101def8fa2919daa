"""Tests of what is logged see its records."""

from tests.support.records import records as records
